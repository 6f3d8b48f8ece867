"""Parameters from wherever they lie: a Hugging Face model, a T5X checkpoint, a run of ours.

A run that trained a part alone (adapters, one side) has that part in its checkpoints; its
`origin.json` says on which parameters it builds and which hashes their files had, so that loading
it gives whole networks, adapters merged.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from kard_jax.convert import huggingface, peft, source, t5x, zarr_store
from kard_jax.core import checkpoints, files, lora, selection
from kard_jax.core.files import InputError, PathLike
from kard_jax.core.objective import Params
from kard_jax.core.partitioning import Partitioner

ORIGIN = "origin.json"
FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Place:
  """Where parameters lie.

  Attributes:
    given: as the user named it.
    folder: local.
    step: of the checkpoint, in the folder of a run; None for another model's folder.
  """

  given: str
  folder: epath.Path
  step: int | None = None

  def files(self) -> dict[str, epath.Path]:
    """What decides the parameters, by a name that holds on any machine."""
    if self.step is not None:
      names = [ORIGIN] if (self.folder / ORIGIN).exists() else []
      return {f"{self.given}/{name}": self.folder / name for name in (*names, str(self.step))}
    if zarr_store.is_checkpoint(self.folder):
      return {self.given: self.folder}
    if (self.folder / peft.CONFIG).exists():
      names = [peft.CONFIG, peft.WEIGHTS]
      return {f"{self.given}/{name}": self.folder / name for name in names}
    paths = [self.folder / source.CONFIG, *sorted(self.folder.glob("*.safetensors*"))]
    return {f"{self.given}/{path.name}": path for path in paths}

  def hashes(self) -> dict[str, str]:
    """The SHA-256 of each of `files`."""
    return {name: files.sha256(path) for name, path in self.files().items()}


def find(given: PathLike, workdir: PathLike | None = None, which: str | int = "best") -> Place:
  """Finds parameters: below the work directory, as a folder, or by a name on the Hub.

  Args:
    given: such as "student/dapt", "models/mine" (PEFT's adapters, too) or "google/flan-t5-base".
    workdir: of the recipe.
    which: checkpoint of a run: "best", "latest" or its step.

  Raises:
    InputError: nothing is there, or it is neither a model nor a run.
  """
  below = epath.Path(workdir or ".") / given
  folder = below if workdir and below.is_dir() else epath.Path(source.find(given))
  known = (source.CONFIG, peft.CONFIG)
  if any((folder / name).exists() for name in known) or zarr_store.is_checkpoint(folder):
    return Place(str(given), folder)
  if (folder / "begun.json").exists() or (folder / ORIGIN).exists() or _steps(folder):
    return Place(str(given), folder, checkpoints.choose(folder, which))
  raise InputError(
    f"{folder}: holds neither a {source.CONFIG} nor checkpoints of T5X or of a training run"
  )


def _steps(folder: epath.Path) -> list[str]:
  return [path.name for path in folder.iterdir() if path.name.isdigit()]


def load(
  place: Place,
  network: nn.Module,
  partitioner: Partitioner | None = None,
  inputs: Sequence[np.ndarray] | None = None,
) -> Params:
  """The parameters of a plain network: unboxed, float32, each already where the mesh wants it.

  Args:
    place: from `find`.
    network: theirs.
    partitioner: mesh and rules; None puts all on the first device.
    inputs: what the network is called with, where its family is not among `huggingface.FAMILIES`.

  Raises:
    InputError: they are not this network's, or what a run was built on is not there any more.
  """
  if place.step is None:
    if zarr_store.is_checkpoint(place.folder):
      if not isinstance(network, t5x.NETWORK):
        raise InputError(f"{place.folder}: of T5, not of a {type(network).__name__}")
      return t5x.load(place.folder, network, partitioner)
    if (place.folder / peft.CONFIG).exists():
      adapter, leaves = peft.load(place.folder, network)
      below = load(find(peft.base(place.folder)), network, partitioner)
      return adapter.merge(selection.join(below, leaves))
    return huggingface.load(place.folder, network, partitioner)
  origin = Origin.read(place.folder)
  partitioner = partitioner or Partitioner({"data": 1, "tensor": 1}, (), devices=1)
  tokens = inputs or [np.zeros((1, 8), np.int32)] * huggingface.family_of(network).INPUTS
  with partitioner.active(), origin.lora.active() if origin.lora else contextlib.nullcontext():
    boxed = jax.eval_shape(lambda *xs: network.init(jax.random.key(0), *xs)["params"], *tokens)
  shardings = partitioner.shardings(boxed)
  wanted = checkpoints.abstract(nn.meta.unbox(boxed), shardings)
  stored, frozen = selection.split(wanted, origin.is_trained)
  params = checkpoints.restore_params(place.folder, stored, which=place.step)
  if frozen:
    base = selection.flatten(load(origin.base(place.folder), network, partitioner, inputs))
    if lacking := [path for path in selection.flatten(frozen) if path not in base]:
      raise InputError(f"{origin.given}: has no parameter {lacking[0]}, which {place.folder} needs")
    for path in selection.flatten(frozen):  # as they were while training
      base[path] = base[path].astype(origin.frozen_dtype).astype(jnp.float32)
    params = selection.join(
      selection.unflatten({path: base[path] for path in selection.flatten(frozen)}), params
    )
  return origin.lora.merge(params) if origin.lora else params


def adapters(place: Place) -> tuple[Params, lora.Lora]:
  """The adapters of a LoRA run alone, on the first device, and what they are.

  Raises:
    InputError: the place is not a run, or one without adapters.
  """
  origin = Origin.read(place.folder) if place.step is not None else Origin()
  if origin.lora is None:
    raise InputError(f"{place.folder}: not the folder of a run that trained adapters (LORA)")
  params = checkpoints.restore_all_params(place.folder, place.step or 0)
  return selection.split(params, lora.is_adapter)[0], origin.lora


@dataclasses.dataclass(frozen=True)
class Origin:
  """What a run's checkpoints leave out: what it began from, and which part it trained.

  Attributes:
    given: what it began from, as the user named it; None: fresh parameters.
    beside: the same relative to the run's folder, where both are in one work directory.
    step: of the checkpoint it began from, where that is a run too.
    hashes: SHA-256 of the files it began from.
    lora: its adapters.
    trained: names of the parameters that were trained (`core.selection`); None: all.
    frozen_dtype: element type of the others while training.
  """

  given: str | None = None
  beside: str | None = None
  step: int | None = None
  hashes: Mapping[str, str] = dataclasses.field(default_factory=dict)
  lora: lora.Lora | None = None
  trained: Sequence[str] | None = None
  frozen_dtype: str = "float32"

  def is_trained(self, path: str) -> bool:
    """Whether the run's checkpoints hold a parameter."""
    return self.trained is None or selection.chosen(path, self.trained)

  def write(self, folder: PathLike) -> None:
    """Writes the record into the folder of a run."""
    files.write_json(epath.Path(folder) / ORIGIN, {"format": FORMAT} | dataclasses.asdict(self))

  @classmethod
  def read(cls, folder: PathLike) -> Origin:
    """The record of a run; one that has none trained everything.

    Raises:
      InputError: it is not such a record.
    """
    file = epath.Path(folder) / ORIGIN
    if not file.exists():
      return cls()
    try:
      values: dict[str, Any] = json.loads(file.read_text())
      if values.pop("format") != FORMAT:
        raise InputError(f"{file}: of another version of kard_jax")
      adapters = values.pop("lora")
      return cls(lora=lora.Lora(**adapters) if adapters else None, **values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      if isinstance(error, InputError):
        raise
      raise InputError(f"{file}: not the record of a run's origin ({error})") from None

  def base(self, folder: epath.Path) -> Place:
    """Where the parameters are that a run in `folder` began from.

    Raises:
      InputError: they are not there, or not those.
    """
    if self.given is None:
      raise InputError(f"{folder / ORIGIN}: names no initial parameters")
    beside = folder / self.beside if self.beside else None
    given = beside if beside and beside.is_dir() else self.given
    try:
      found = find(given, which=self.step or "best")
    except InputError as error:
      raise InputError(
        f"{folder}: holds a part alone and builds on {self.given}: {error}"
      ) from None
    place = dataclasses.replace(found, given=self.given)
    now = place.hashes()
    for name in sorted({*now, *self.hashes}):
      if now.get(name) != self.hashes.get(name):
        raise InputError(
          f"{folder}: was trained on top of {self.given}, and {name} is not what it was then"
        )
    return place


def beside(place: Place, folder: PathLike, workdir: PathLike) -> str | None:
  """The path from a run's folder to what it begins from, where both are in the work directory."""
  root, there = os.path.abspath(workdir), os.path.abspath(place.folder)
  return os.path.relpath(there, folder) if there.startswith(root + os.sep) else None
