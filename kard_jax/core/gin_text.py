"""Gin files and overrides as text: what is bound where, every macro checked, nothing imported.

It finds misspelt macros by file and line, and gives a stage's record its settings; gin itself reads
the same files later (`config.activate`), and imports what they name.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib.util
import pathlib
import re
import tokenize
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from gin import config_parser

from kard_jax.core import hosts
from kard_jax.core.files import InputError

ROOT = pathlib.Path(__file__).resolve().parents[2]  # where `gin_configs/` stands
WORKDIR, STAGES = "WORKDIR", "STAGES"
INSTALL_T5X = (
  "Install it: pip install --no-deps -r requirements-t5x.txt (docs/t5x.md); or leave out "
  "gin_configs/t5x/"
)
_T5X = "t5x/"  # of the gin files in T5X's package
TIMES = {f"{name.upper()}_TIMEOUT": name for name in hosts.Times._fields}  # seconds, see there
_READ_HERE = {WORKDIR, STAGES, *TIMES}  # macros that launchers read themselves
# What decides no output.
_ASIDE = ("partitioning.", "monitor.", "@monitor.", "pipelines.", "@pipelines.")
_MACRO = re.compile(r"^[A-Z][A-Z0-9_]*$")


class Binding(NamedTuple):
  """One setting: its value as gin would write it, the macros in it, and where it was made."""

  value: str
  macros: tuple[str, ...]
  where: str


@dataclasses.dataclass(frozen=True)
class Settings:
  """A configuration as text: what holds after every include and override.

  Attributes:
    bindings: key (`STEPS`, `t5.T5.embed_dim`, `eval/decode.Sampler.samples`) -> its last binding.
    files: the gin files given, in order.
    overrides: the command line's `NAME=value`, in order.
    mentioned: every macro that some statement uses, also one that a later statement replaces.
  """

  bindings: Mapping[str, Binding]
  files: tuple[str, ...]
  overrides: tuple[str, ...]
  mentioned: frozenset[str]

  def value(self, key: str) -> Any:
    """The Python value of a binding that is a literal or a macro; None when it is not bound."""
    binding = self.bindings.get(key)
    if binding is None:
      return None
    if binding.value.startswith("%"):
      return self.value(binding.value[1:])
    return _parse_literal(binding)

  def fingerprint(self) -> dict[str, str]:
    """The settings that decide a stage's outputs: parameters, and the macros that reach them.

    Not where it is put (WORKDIR), nor on which devices it runs: a run may go on on another mesh,
    whose hardware file may have another REMAT. Nor what is shown of it, nor whether its tokens come
    from a cache.
    """
    reached = {
      key
      for key, binding in self.bindings.items()
      if "." in key
      and not key.endswith((".remat", ".cache"))
      and not any(text.startswith(_ASIDE) for text in (key, binding.value))
    }
    waiting = [macro for key in reached for macro in self.bindings[key].macros]
    while waiting:
      macro = waiting.pop()
      if macro in self.bindings and macro not in reached and macro != WORKDIR:
        reached.add(macro)
        waiting.extend(self.bindings[macro].macros)
    return {key: binding.value for key, binding in self.bindings.items() if key in reached}


class _Text(config_parser.ParserDelegate):
  """Gin's values as text: nothing is imported or looked up."""

  class Raw(str):
    """A reference or macro as it was written; no text in quotes."""

    __slots__ = ()
    __repr__ = str.__str__

  def configurable_reference(self, name: str, evaluate: bool) -> Raw:
    return self.Raw(f"@{name}()" if evaluate else f"@{name}")

  def macro(self, name: str) -> Raw:
    return self.Raw(f"%{name}")


def find(gin_file: str) -> pathlib.Path:
  """The path of a gin file: as given, else below the directory that holds `gin_configs/`.

  Raises:
    InputError: neither place has it.
  """
  places = [pathlib.Path(gin_file), ROOT / gin_file]
  if gin_file.startswith(_T5X):
    places.append(beside_t5x() / gin_file)
  for path in places:
    if path.is_file():
      return path
  raise InputError(f"{gin_file}: no such gin file, neither here nor below {ROOT}")


def beside_t5x() -> pathlib.Path:
  """The folder that holds T5X's package, which is not imported for it.

  Raises:
    InputError: there is no such package.
  """
  found = importlib.util.find_spec("t5x")
  if found is None or not found.submodule_search_locations:
    raise InputError(f"T5X is not installed. {INSTALL_T5X}")
  return pathlib.Path(found.submodule_search_locations[0]).parent


def resolve(
  gin_files: Sequence[str], overrides: Sequence[str] = (), *, complete: bool = True
) -> Settings:
  """Reads gin files and overrides as text, and checks every macro.

  Args:
    gin_files: paths, later ones win; `include` works as in gin.
    overrides: `NAME=value` from the command line; they win over the files.
    complete: False allows `%gin.REQUIRED`, for those who need a part of the settings only.

  Raises:
    InputError: a file is missing or is not gin; a macro is bound but nothing uses it (a
      misspelling), is used but not bound, or is still `%gin.REQUIRED`; an override does not parse.
  """
  settings = resolve_unchecked(gin_files, overrides)
  _check_macros(settings, complete)
  return settings


def resolve_unchecked(gin_files: Sequence[str], overrides: Sequence[str] = ()) -> Settings:
  """As `resolve`, without looking at macros."""
  bindings: dict[str, Binding] = {}
  mentioned: set[str] = set()
  for gin_file in layers(gin_files):
    for key, binding in _all_statements(gin_file):
      bindings[key] = binding
      mentioned.update(binding.macros)
  for override in overrides:
    name, equals, value = override.partition("=")
    if not equals:
      raise InputError(f"--gin.{override}: needs =value")
    where = f"--gin.{override}"
    try:
      for key, binding in _statements(f"{name} = {value}\n", where):
        bindings[key] = binding._replace(where=where)
        mentioned.update(binding.macros)
    except InputError:
      raise InputError(
        f"{where}: not a gin value. Text needs quotes inside quotes: --gin.{name}=\"'{value}'\""
      ) from None
  return Settings(bindings, tuple(map(str, gin_files)), tuple(overrides), frozenset(mentioned))


def layers(gin_files: Sequence[str]) -> list[str]:
  """Gin files in the order in which they are read: those with T5X's run files in them come first.

  What T5X's set are defaults, BATCH_SIZE = 128 among them, wherever the file was given.
  """
  files = [str(gin_file) for gin_file in gin_files]
  return sorted(files, key=lambda gin_file: not any(map(is_t5x, _all_statements(gin_file))))


def is_t5x(statement: tuple[str, Binding]) -> bool:
  """Whether a setting, with its key, stands in one of T5X's own gin files."""
  return statement[1].where.startswith(_T5X)


def _all_statements(
  gin_file: str, including: tuple[pathlib.Path, ...] = (), where: str = ""
) -> Iterator[tuple[str, Binding]]:
  """The settings of a file and of what it includes, in gin's order."""
  try:
    path = find(gin_file)
  except InputError as error:
    raise InputError(f"{where}{error}") from None
  place = path.absolute()
  if place in including:
    raise InputError(f"{where}{gin_file} includes itself")
  stat = path.stat()
  for key, item in _statements_of(path, gin_file, stat.st_mtime_ns, stat.st_size):
    if key == "include":
      yield from _all_statements(item.value, (*including, place), f"{item.where}: ")
    else:
      yield key, item


@functools.lru_cache(maxsize=1024)
def _statements_of(
  path: pathlib.Path, shown: str, changed: int, size: int
) -> tuple[tuple[str, Binding], ...]:
  """A file's own statements; the stages of a recipe include the same files again and again."""
  del changed, size  # another file then
  with path.open(encoding="utf-8") as file:
    return tuple(_statements(file, shown))


def _statements(source: Any, shown: str) -> Iterator[tuple[str, Binding]]:
  try:
    for statement in config_parser.ConfigParser(source, _Text()):
      if isinstance(statement, config_parser.IncludeStatement):
        yield "include", Binding(statement.filename, (), f"{shown}:{statement.location.line_num}")
      if not isinstance(statement, config_parser.BindingStatement):
        continue
      key = ".".join(filter(None, (statement.selector, statement.arg_name)))
      key = f"{statement.scope}/{key}" if statement.scope else key
      macros = tuple(text[1:] for text in _raw_texts(statement.value) if text.startswith("%"))
      yield key, Binding(repr(statement.value), macros, f"{shown}:{statement.location.line_num}")
  except SyntaxError as error:
    line = error.args[1][1] if len(error.args) > 1 else error.lineno
    reason = " ".join(str(error.args[0]).split())
    raise InputError(f"{shown}:{line}: not a gin statement ({reason})") from None
  except tokenize.TokenError as error:
    raise InputError(f"{shown}:{error.args[1][0]}: a bracket or quote stays open") from None
  except UnicodeDecodeError as error:
    raise InputError(f"{shown}: not UTF-8 ({error})") from None


def _raw_texts(value: Any) -> Iterator[str]:
  if isinstance(value, _Text.Raw):
    yield str(value)
  elif isinstance(value, Mapping):
    for item in value.items():
      yield from _raw_texts(item)
  elif isinstance(value, (list, tuple)):
    for item in value:
      yield from _raw_texts(item)


def _check_macros(settings: Settings, complete: bool) -> None:
  bound = {key for key in settings.bindings if "." not in key}
  used = settings.mentioned
  unused = sorted(bound - used - _READ_HERE)
  siblings = _used_by_siblings(settings) if unused else frozenset()
  for key in unused:
    if key not in siblings:
      where = settings.bindings[key].where
      hint = near(key, used | (frozenset() if where.startswith("--gin.") else siblings) | {WORKDIR})
      raise InputError(f"{where}: nothing uses the macro {key}{hint}")
  for key, binding in settings.bindings.items():
    for name in binding.macros:
      if name == "gin.REQUIRED" and complete:
        raise InputError(f"{binding.where}: set {key}, in a recipe or as --gin.{key}=...")
      if name not in bound and "." not in name:
        raise InputError(f"{binding.where}: {key} uses %{name}, bound nowhere{near(name, bound)}")


def idle_overrides(settings: Settings) -> list[str]:
  """The command line's macros that only other stages of the recipe use, in order."""
  names = [override.partition("=")[0] for override in settings.overrides]
  used = settings.mentioned | _READ_HERE
  return [name for name in names if "." not in name and name not in used]


def _used_by_siblings(settings: Settings) -> frozenset[str]:
  """The macros that other stages of the same recipe use: stages share a file of macros."""
  places = [binding.where for binding in settings.bindings.values()]
  files = {place.rpartition(":")[0] for place in places if not place.startswith("--gin.")}
  folders = {path.parent for some in _shared(settings) for path in some}
  return frozenset(
    macro
    for folder in sorted({*(find(file).parent for file in {settings.files[0], *files}), *folders})
    for path in stage_files(folder)
    for _, binding in _all_statements(str(path))
    for macro in binding.macros
  )


def stage_files(folder: pathlib.Path) -> list[pathlib.Path]:
  """The numbered gin files of a recipe, `1_prepare.gin` to `9_score.gin`, in their order."""
  return sorted(filter(_is_numbered, folder.glob("*.gin")), key=_place)


def _place(path: pathlib.Path) -> tuple[int, str]:
  return int(path.name.split("_")[0]), path.name


def stages(folder: pathlib.Path) -> list[list[str]]:
  """The gin files of each stage of a recipe, in their order.

  A recipe is a folder of numbered stages. Or its `recipe.gin` names one or more such folders by
  STAGES and says what is special: it is given behind each of their stages. A stage of a later
  folder, or of the recipe's own, takes the place of an earlier one's of the same name.

  Raises:
    InputError: STAGES names no folder with stages.
  """
  recipe = folder / "recipe.gin"
  own = stage_files(folder)
  shared = _shared(resolve_unchecked([str(recipe)])) if recipe.is_file() else []
  if not shared:
    return [[str(path)] for path in own]
  paths = {stage_name_of(path): path for some in (*shared, own) for path in some}
  return [[str(path), str(recipe)] for path in sorted(paths.values(), key=_place)]


def _shared(settings: Settings) -> list[list[pathlib.Path]]:
  """The stages in each folder of STAGES."""
  named = settings.value(STAGES) or []
  found = []
  for name in [named] if isinstance(named, str) else named:
    places = (stage_files(place) for place in (pathlib.Path(name), ROOT / name))
    if not (paths := next(filter(None, places), [])):
      where = settings.bindings[STAGES].where
      raise InputError(f"{where}: {name!r} is no folder with stages such as 1_prepare.gin")
    found.append(paths)
  return found


def near(name: str, names: Collection[str]) -> str:
  """The end of a message about an unknown macro: those of nearly its name, or nothing."""
  close = difflib.get_close_matches(name, sorted(filter(_MACRO.match, names)), n=3, cutoff=0.5)
  return f"; did you mean {' or '.join(close)}?" if close else ""


def _parse_literal(binding: Binding) -> Any:
  value = config_parser.ConfigParser(binding.value, _Text()).parse_value()
  if any(True for _ in _raw_texts(value)):
    raise InputError(f"{binding.where}: a plain value is needed, this is {binding.value}")
  return value


def stage_name(settings: Settings) -> str:
  """`gin_configs/recipes/x/3_student_kard.gin` -> `student_kard`.

  Of several files the first with a number is the stage's own; where none has one, the first.
  """
  paths = [pathlib.Path(gin_file) for gin_file in settings.files]
  return stage_name_of(next(filter(_is_numbered, paths), paths[0]))


def _is_numbered(path: pathlib.Path) -> bool:
  return re.match(r"\d+_", path.name) is not None


def stage_name_of(path: pathlib.Path) -> str:
  """The same, of the stage's own gin file."""
  return re.sub(r"^\d+_", "", path.stem)


def workdir(settings: Settings) -> str:
  """The WORKDIR of a configuration.

  Raises:
    InputError: it is not set, or not a text.
  """
  value = settings.value(WORKDIR)
  if not value or not isinstance(value, str):
    raise InputError(f"{settings.files[0]}: set WORKDIR, as in --gin.WORKDIR=\"'runs/mine'\"")
  return value
