"""A recipe as a plan: its stages with their settings; for some methods alone, or as a sweep."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from kard_jax.core import gin_text, provenance
from kard_jax.core.files import InputError, PathLike

_ANSWER = "answer_"
_INITIAL = "train.train.initial"


class Planned(NamedTuple):
  """A stage of a recipe.

  Attributes:
    gin_files: later ones win.
    overrides: those of the command line that concern it, `NAME=value`.
    settings: what holds with both.
  """

  gin_files: tuple[str, ...]
  overrides: tuple[str, ...]
  settings: gin_text.Settings

  @property
  def name(self) -> str:
    """Such as `student_kard`."""
    return gin_text.stage_name(self.settings)

  def stage(self) -> provenance.Stage:
    """Its record in the work directory."""
    return provenance.Stage(self.name, gin_text.workdir(self.settings), self.settings.fingerprint())


class Point(NamedTuple):
  """One run of a sweep.

  Attributes:
    value: what is varied, here.
    workdir: where it runs.
    methods: that the sweep is about; None: all.
    overrides: `NAME=value`, for the whole recipe.
  """

  value: Any
  workdir: str
  methods: Sequence[str] | None
  overrides: tuple[str, ...]


def plan(folder: pathlib.Path, overrides: Sequence[str] = ()) -> list[Planned]:
  """The stages of a recipe, in their order.

  Args:
    folder: see `gin_text.stages`.
    overrides: `NAME=value`; each goes to the stages whose files bind that name.

  Raises:
    InputError: the folder has no stages, a macro does not fit, or no stage uses an override.
  """
  found = [_planned(gin_files, overrides) for gin_files in gin_text.stages(folder)]
  if not found:
    raise InputError(
      f"{folder}: no numbered gin files such as 1_prepare.gin, nor a recipe.gin with STAGES"
    )
  for override in overrides:
    if not any(override in planned.overrides for planned in found):
      names = {key for planned in found for key in planned.settings.bindings}
      name = override.partition("=")[0]
      raise InputError(f"--gin.{override}: no stage uses {name}{gin_text.near(name, names)}")
  return found


def _planned(gin_files: Sequence[str], overrides: Sequence[str]) -> Planned:
  plain = gin_text.resolve_unchecked(gin_files)
  known = {
    key for key in plain.bindings if "." in key or key in {*plain.mentioned, gin_text.WORKDIR}
  }
  mine = [override for override in overrides if override.partition("=")[0] in known]
  return Planned(tuple(gin_files), tuple(mine), gin_text.resolve(gin_files, mine))


def for_methods(planned: Sequence[Planned], methods: Collection[str]) -> list[Planned]:
  """Leaves out the answering of other methods, and the training of what only these would use.

  Args:
    planned: all stages.
    methods: names of answering stages, without `answer_`.

  Raises:
    InputError: no stage answers with one of the methods.
  """
  there = [stage.name.removeprefix(_ANSWER) for stage in planned if stage.name.startswith(_ANSWER)]
  if unknown := [method for method in methods if method not in there]:
    raise InputError(
      f"no stage answers with the method {unknown[0]!r}; there are {', '.join(there)}"
    )
  kept: list[Planned] = []
  used: set[str] = set()  # folders, by the stages that are kept
  spare: set[str] = set()  # by those that are not
  for stage in reversed(planned):
    name, folder = stage.name, stage.settings.value("FOLDER")
    if name.startswith(_ANSWER):
      left_out = name.removeprefix(_ANSWER) not in methods
    else:
      left_out = folder in spare - used
    (spare if left_out else used).update(_folders(stage))
    if not left_out:
      kept.append(stage)
  return kept[::-1]


def _folders(stage: Planned) -> set[str]:
  """The folders of trained parameters that a stage reads."""
  names = ["STUDENT", "RERANKER_FOLDER"] if stage.name.startswith("answer_") else [_INITIAL]
  return {value for name in names if isinstance(value := stage.settings.value(name), str)}


def sweep(folder: pathlib.Path, gin_file: PathLike, overrides: Sequence[str] = ()) -> list[Point]:
  """The runs of a sweep: one for each of its values, in a work directory of its own.

  Args:
    folder: of the recipe. A run's work directory is `<WORKDIR>/sweeps/<sweep>/<value>`.
    gin_file: binds SWEEP, its name; SWEEP_VALUES, a list; and macros of the recipe, some of them to
      %SWEEP_VALUE. METHODS are those that the sweep is about.
    overrides: from the command line, `NAME=value`; they win, also over SWEEP_VALUES.

  Raises:
    InputError: the file lacks one of these, or two values have the same folder.
  """
  settings = gin_text.resolve_unchecked([str(gin_file)])
  name, methods = settings.value("SWEEP"), settings.value("METHODS")
  values = gin_text.resolve_unchecked([str(gin_file)], overrides).value("SWEEP_VALUES")
  if not isinstance(name, str) or not isinstance(values, list | tuple) or not values:
    raise InputError(f"{gin_file}: SWEEP = 'a name' and SWEEP_VALUES = [...] are needed")
  if "SWEEP_VALUE" not in settings.mentioned:
    raise InputError(f"{gin_file}: no macro is bound to %SWEEP_VALUE, so all runs would be alike")
  base = gin_text.workdir(gin_text.resolve_unchecked(gin_text.stages(folder)[0], overrides))
  others = [o for o in overrides if o.partition("=")[0] not in ("SWEEP_VALUES", gin_text.WORKDIR)]
  points: list[Point] = []
  for value in values:
    place = f"{base}/sweeps/{name}/{re.sub(r'[^A-Za-z0-9.-]+', '_', str(value))}"
    if any(place == point.workdir for point in points):
      raise InputError(f"{gin_file}: SWEEP_VALUES = {values}: two of them are the same, or nearly")
    bound = {key: binding.value for key, binding in settings.bindings.items()}
    bound = {key: repr(value) if text == "%SWEEP_VALUE" else text for key, text in bound.items()}
    bound |= {"SWEEP_VALUE": repr(value), gin_text.WORKDIR: repr(place)}
    mine = [f"{key}={text}" for key, text in bound.items() if key != "SWEEP_VALUES"]
    points.append(Point(value, place, methods, (*mine, *others)))
  return points
