"""What a stage was made from: hashes of its inputs and outputs, its settings, package versions.

A finished stage has `<stage>.meta.json` in the work directory, written last. A stage is skipped
when that record still matches; where it does not, the difference is named and nothing is touched.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from etils import epath

from kard_jax.core import files, hosts
from kard_jax.core.files import InputError, PathLike

FORMAT = 1
_PACKAGES: tuple[str, ...] = (
  "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "seqio", "tensorflow", "numpy",
  "array-record", "sentencepiece", "PyStemmer", "gin-config",
)  # fmt: skip


class Stage:
  """One stage of a recipe in a work directory: what it reads and writes, and the record of both.

  Attributes:
    name: the stage's name, as in `<name>.meta.json`.
    workdir: where the stages of a recipe meet.
    settings: what decides the outputs, as text (`gin_text.Settings.fingerprint`).
    operative_config: gin's operative configuration, for the record.
  """

  def __init__(self, name: str, workdir: PathLike, settings: Mapping[str, str]):
    self.name = name
    self.workdir = epath.Path(workdir)
    self.settings = dict(settings)
    self.operative_config = ""
    self._inputs: dict[str, epath.Path] = {}
    self._outputs: dict[str, epath.Path | None] = {}  # None: written in place
    self._origins: dict[str, epath.Path] = {}
    self._known_origins: dict[str, Any] = {}  # their record, also of those that are gone
    self._redo = False

  @property
  def meta(self) -> epath.Path:
    """The record of the finished stage."""
    return self.workdir / f"{self.name}.meta.json"

  @property
  def _scratch(self) -> epath.Path:
    return self.workdir / f".tmp-{self.name}"

  def reads(self, path: PathLike) -> epath.Path:
    """An input, relative to the work directory or absolute; its hash is recorded.

    Raises:
      InputError: it is not there.
    """
    found = self.workdir / path
    if not found.exists():
      raise InputError(
        f"{found}: no such file or folder; stage {self.name} reads it. Run the stages before it"
      )
    self._inputs[str(path)] = found
    return found

  def reads_outside(self, paths: Iterable[PathLike]) -> None:
    """Records inputs that are not in the work directory; relative to the current directory."""
    for path in paths:
      self.reads(path if "://" in str(path) else os.path.abspath(path))

  def begins_from(self, paths: Mapping[str, epath.Path]) -> None:
    """Records what the stage reads once, at its very beginning, such as a pretrained model.

    It may be gone later: then the stage still counts as finished, and a run in a kept folder can go
    on. While it is there, it must not have changed.

    Args:
      paths: a name that holds on any machine -> file or folder.
    """
    self._origins.update(paths)
    self._known_origins = self._origin_record(self._known_origins)

  def origin_hashes(self) -> dict[str, str]:
    """The SHA-256 of what the stage begins from, by name."""
    return {name: entry["sha256"] for name, entry in self._known_origins.items()}

  def has_begun(self, path: PathLike) -> bool:
    """Whether there is a folder that `keeps` would go on with."""
    return (self.workdir / path / "begun.json").exists() and not self._redo

  def writes(self, path: PathLike) -> epath.Path:
    """A place to write an output, moved to `workdir/path` when the whole stage has succeeded.

    On several hosts only what process 0 writes becomes an output.
    """
    temporary = self._scratch / (path if hosts.is_lead() else f"host-{hosts.index()}/{path}")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    self._outputs[str(path)] = temporary
    return temporary

  def joins(self, path: PathLike) -> epath.Path:
    """Puts what the hosts have written of an output of lines behind one another, at process 0.

    Each has its part, `hosts.share`, in the file that `writes` gave it; all must call this.

    Returns:
      the output, whole at process 0.
    """
    whole = self._outputs[str(path)]
    assert whole is not None
    hosts.meet(f"the parts of {path}")
    if hosts.is_lead():
      with whole.open("ab") as file:
        for index in range(1, hosts.count()):
          with (self._scratch / f"host-{index}" / path).open("rb") as part:
            shutil.copyfileobj(part, file)
    return whole

  def keeps(self, path: PathLike) -> epath.Path:
    """A folder written in place, which survives a kill; the caller resumes from it.

    What is half done there must come from the same settings and inputs: `reads` all inputs first.

    Raises:
      InputError: the folder was begun with other settings or inputs.
    """
    with hosts.lead_first(str(path)):
      return self._keep(path)

  def _keep(self, path: PathLike) -> epath.Path:
    folder = self.workdir / path
    begun = folder / "begun.json"
    if self._redo and begun.exists() and hosts.is_lead():
      folder.rmtree()
      if self.meta.exists():  # it told of the folder; a kill from here on must not leave it
        self.meta.unlink()
    now = {
      "settings": self.settings,
      "inputs": self._hashes(self._inputs),
      "origins": self._known_origins,
    }
    if begun.exists():
      settings, inputs = _read_record(begun, "settings", "inputs")
      self._compare_settings(settings, f"{folder} was begun")
      self._compare_hashes(inputs, now["inputs"], f"{folder} was begun")
      self._known_origins = self._same_origins(begun, f"{folder} was begun")
    else:
      folder.mkdir(parents=True, exist_ok=True)
      files.write_json(begun, now)
    self._outputs[str(path)] = None
    return folder

  def input_hashes(self) -> dict[str, str]:
    """The SHA-256 of every input so far, by its path as given to `reads`."""
    return {path: entry["sha256"] for path, entry in self._hashes(self._inputs).items()}

  def is_finished(self) -> bool:
    """Whether the stage is done and nothing has changed since.

    Raises:
      InputError: it was done with other settings, or an input or output has changed since.
    """
    if not self.meta.exists():
      return False
    settings, inputs, outputs = _read_record(self.meta, "settings", "inputs", "outputs")
    self._compare_settings(settings, f"stage {self.name} in {self.workdir} was made")
    if any(not (self.workdir / path).exists() for path in outputs):
      return False  # an output was deleted: make it again
    for kind, recorded in (("inputs", inputs), ("outputs", outputs)):
      now = self._hashes({path: self.workdir / path for path in recorded}, recorded)
      self._compare_hashes(recorded, now, f"stage {self.name} in {self.workdir} was made", kind)
    self._same_origins(self.meta, f"stage {self.name} in {self.workdir} was made")
    return True

  def adopt(self, other: PathLike) -> bool:
    """Takes the outputs of another work directory, where the stage was made of the same things.

    Files are linked if the file system can, so that they take no room, and copied if not.

    Args:
      other: the other work directory.

    Returns:
      whether it did: the stage is finished there, has the same settings, and all that it read is
      here too and the same.
    """
    there = Stage(self.name, other, self.settings)
    try:
      if not there.is_finished():
        return False
    except InputError:
      return False
    record = json.loads(there.meta.read_text())
    origins = {name: entry["place"] for name, entry in record.get("origins", {}).items()}
    inputs = {path: path for path in record["inputs"]}
    for kind, places in (("inputs", inputs), ("origins", origins)):
      known = record.get(kind, {})
      here = self._hashes({name: self.workdir / place for name, place in places.items()}, known)
      if any(here.get(name, {}).get("sha256") != known[name]["sha256"] for name in known):
        return False
      record[kind] = {name: known[name] | entry for name, entry in here.items()}
    for path in record["outputs"]:
      with files.atomic(self.workdir / path) as place:
        _link(there.workdir / path, place)
    here = {path: self.workdir / path for path in record["outputs"]}
    files.write_json(self.meta, record | {"outputs": self._hashes(here, record["outputs"])})
    return True

  @contextlib.contextmanager
  def running(self, redo: bool = False, shared: bool = True) -> Iterator[Stage]:
    """Runs the stage's body; on success moves its outputs into place and writes the record.

    Of several hosts process 0 does both, when all have run the body.

    Args:
      redo: forget folders that an earlier run keeps for resuming.
      shared: whether all hosts work in the body; else they wait for process 0, however long it
        takes.
    """
    started = time.time()
    self._redo = redo
    if self._scratch.exists() and hosts.is_lead():
      self._scratch.rmtree()  # left by a kill
    hosts.meet(f"the start of {self.name}")
    try:
      yield self
      hosts.meet(f"the end of {self.name}", 0.0 if shared else None)
      if hosts.is_lead():
        self._finish(started)
      hosts.meet(f"the record of {self.name}", None)
    finally:
      # A failed run's others may still write there; the next run removes it.
      if self._scratch.exists() and hosts.count() == 1:
        self._scratch.rmtree()

  def _finish(self, started: float) -> None:
    """Moves the outputs into place and writes the record."""
    inputs = self._hashes(self._inputs)
    if self.meta.exists():
      self.meta.unlink()  # from here to the end the outputs may be of two runs
    for path, temporary in self._outputs.items():
      if temporary is not None:
        with files.atomic(self.workdir / path) as place:
          temporary.rename(place)
    record: dict[str, Any] = {
      "format": FORMAT,
      "stage": self.name,
      "seconds": round(time.time() - started, 1),
      "settings": self.settings,
      "inputs": inputs,
      "origins": self._origin_record(self._known_origins),
      "outputs": self._hashes({path: self.workdir / path for path in self._outputs}),
      "packages": _package_versions(),
      "operative_config": self.operative_config,
    }
    files.write_json(self.meta, record)
    if self._scratch.exists():
      self._scratch.rmtree()

  def _compare_settings(self, before: Mapping[str, str], what: str) -> None:
    keys = [k for k in sorted({*before, *self.settings}) if before.get(k) != self.settings.get(k)]
    if keys:
      shown = "; ".join(
        f"{k} = {before.get(k, '(unset)')}, now {self.settings.get(k, '(unset)')}" for k in keys[:4]
      )
      more = f" and {len(keys) - 4} more" if len(keys) > 4 else ""
      raise InputError(
        f"{what} with {shown}{more}. Keep both with another --gin.WORKDIR=\"'...'\", "
        "or make it again with --redo"
      )

  def _compare_hashes(
    self,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    what: str,
    kind: str = "inputs",
  ) -> None:
    for path in sorted({*before, *now}):
      old, new = (hashes.get(path, {}).get("sha256") for hashes in (before, now))
      if old != new:
        verb = "from" if kind == "inputs" else "with the output"
        state = "is gone" if new is None else "has changed since" if old else "is new"
        raise InputError(
          f"{what} {verb} {self.workdir / path}, which {state}. Put it back, "
          "or make the stage again with --redo"
        )

  def _origin_record(self, known: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of origins, brought up to date for those that this run was told of."""
    record = dict(known)
    for name, entry in self._hashes(self._origins, known).items():
      place = os.path.abspath(self._origins[name])
      root = os.path.abspath(self.workdir) + os.sep
      record[name] = entry | {"place": place.removeprefix(root)}
    return record

  def _same_origins(self, recorded: epath.Path, what: str) -> dict[str, Any]:
    """The origins in a record; those that are still there must not have changed."""
    before = json.loads(recorded.read_text()).get("origins", {})  # an older record has none
    places = {name: self.workdir / entry["place"] for name, entry in before.items()}
    for name, entry in self._hashes(places | self._origins, before).items():
      if name not in before or entry["sha256"] != before[name]["sha256"]:
        raise InputError(
          f"{what} from {name}, which has changed since. Put it back, or make the stage again "
          "with --redo"
        )
    return before

  def _hashes(
    self, paths: Mapping[str, epath.Path], known: Mapping[str, Any] | None = None
  ) -> dict[str, Any]:
    """path -> {"sha256", "stamp"}; a file whose size and time match `known` is not read again."""
    result = {}
    for name, path in paths.items():
      if not path.exists():
        continue
      stamp = _stamp(path)
      old = (known or {}).get(name, {})
      same = old.get("stamp") == stamp
      result[name] = {"sha256": old["sha256"] if same else files.sha256(path), "stamp": stamp}
    return result


def _read_record(path: epath.Path, *keys: str) -> list[dict[str, Any]]:
  try:
    record = json.loads(path.read_text())
    return [dict(record[key]) for key in keys]
  except (ValueError, KeyError, TypeError):
    raise InputError(f"{path}: not a stage's record; delete it, or use --redo") from None


def _link(source: epath.Path, target: epath.Path) -> None:
  if source.is_dir():
    target.mkdir(parents=True, exist_ok=True)
    for name in files.names_below(source):
      (target / name).parent.mkdir(parents=True, exist_ok=True)
      _link(source / name, target / name)
    return
  try:
    os.link(source, target)
  except OSError:  # another file system, or one without links
    source.copy(target)


def _stamp(path: epath.Path) -> str:
  """Names, sizes and times of the files at a path: equal stamps save reading the bytes again."""
  names = sorted(files.names_below(path)) if path.is_dir() else [""]
  digest = hashlib.sha256()
  for name in names:
    file = path / name if name else path
    try:
      stat = os.stat(file)
      digest.update(f"{name}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ino}\n".encode())
    except OSError:  # a remote path
      remote = file.stat()
      digest.update(f"{name}:{remote.length}:{remote.mtime}\n".encode())
  return digest.hexdigest()[:16]


def _package_versions() -> dict[str, str]:
  versions = {}
  for name in _PACKAGES:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      versions[name] = importlib.metadata.version(name)
  return versions
