"""What an exported folder holds: which tensors under which names, of which type, in which file."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from kard_jax.convert import tables, tensors
from kard_jax.convert.source import Source
from kard_jax.convert.tensors import Tensors
from kard_jax.core.files import InputError

DTYPES = {
  "float32": np.dtype(np.float32),
  "float16": np.dtype(np.float16),
  "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


@dataclasses.dataclass(frozen=True)
class _Piece:
  """A tensor to write: of one entry, or of all parts of a fused one."""

  paths: tuple[tuple[str, int | None], ...]  # parameter, and layer where it is stacked
  layout: tables.Layout
  dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class Plan:
  """Tensors by name, and the file of each."""

  pieces: Mapping[str, _Piece | None]  # None: copied from `like`
  places: Mapping[str, str]
  params: Mapping[str, Any]
  like: Tensors | None

  def write(self, folder: pathlib.Path) -> None:
    """Writes all files of weights."""
    tensors.write(folder, self._arrays(), self.places)

  def _arrays(self) -> Iterator[tuple[str, np.ndarray]]:
    for name in sorted(self.pieces, key=lambda name: self.places[name]):  # stable
      piece = self.pieces[name]
      if piece is None:
        assert self.like is not None
        yield name, self.like.read(name)
        continue
      parts = [
        np.asarray(self.params[path] if layer is None else self.params[path][layer])
        for path, layer in piece.paths
      ]
      yield name, cast(name, piece.layout.write(parts), piece.dtype)


def plan(
  like: Source,
  matched: Mapping[str, list[tables.Entry]],
  params: Mapping[str, Any],
  inert: Callable[[str], bool],
  dtype: str | None,
  shard_bytes: int,
) -> Plan:
  """Lays out a folder as `like` is, where it has weights.

  Args:
    like: the same architecture.
    matched: entries of each parameter.
    params: by path.
    inert: whether a tensor of `like` that is no parameter is known to have no effect.
    dtype: of all tensors; None: like's.
    shard_bytes: of a file, at most, where the files are not like's.
  """
  theirs = like.tensors if like.has_weights else None
  forced = dtype_named(dtype) if dtype else None
  default = forced or DTYPES.get(configdtype_named(like), DTYPES["float32"])
  pieces: dict[str, _Piece | None] = {}
  sizes: dict[str, int] = {}
  for group in grouped(matched).values():
    entry, path, _ = group[0]
    names = [name for name in entry.names if theirs is not None and name in theirs]
    shape = tables.layer_shape(path, matched[path], params[path].shape)
    count = int(np.prod(entry.layout.stored_shape(shape)))
    for name in names or [entry.name]:
      kind = forced or (theirs[name].dtype if theirs is not None and names else default)
      pieces[name] = _Piece(tuple((path, layer) for _, path, layer in group), entry.layout, kind)
      sizes[name] = count * kind.itemsize
  for name in theirs or ():
    if name not in pieces and inert(name):
      pieces[name] = None
  if theirs is not None and {*pieces} == {*theirs} and not forced:
    places = {name: theirs[name].file.name for name in pieces}
  else:
    pieces = {name: piece for name, piece in pieces.items() if piece}
    places = tensors.shard(sizes, shard_bytes)
  return Plan(pieces, places, params, theirs)


def grouped(
  matched: Mapping[str, list[tables.Entry]],
) -> dict[str, list[tuple[tables.Entry, str, int | None]]]:
  """For each stored tensor its entries in the order of their parts, with parameter and layer."""
  groups: dict[str, list[tuple[tables.Entry, str, int | None]]] = {}
  for path, entries in matched.items():
    stacked = tables.is_stacked(path, entries)
    for layer, entry in enumerate(entries):
      groups.setdefault(entry.name, []).append((entry, path, layer if stacked else None))
  for group in groups.values():
    group.sort(key=lambda item: item[0].layout.part)
  return groups


def config(like: Source, dtype: str | None) -> bytes:
  """The config.json to write: like's, byte for byte unless the element type is another."""
  if dtype is None or configdtype_named(like) == dtype:
    return like.config.file.read_bytes()
  values = {k: v for k, v in like.config.values.items() if k != "torch_dtype"} | {"dtype": dtype}
  return (json.dumps(values, indent=2, sort_keys=True) + "\n").encode()


def configdtype_named(like: Source) -> str:
  """The element type that a config.json names; empty if none."""
  return like.config.get("dtype", "") or like.config.get("torch_dtype", "")


def dtype_named(name: str) -> np.dtype:
  """An element type by name."""
  if name not in DTYPES:
    raise InputError(f"dtype {name!r}: choose one of {', '.join(DTYPES)}")
  return DTYPES[name]


def cast(name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
  """An array in another element type.

  Raises:
    InputError: a number is too large for it.
  """
  with np.errstate(over="ignore"):
    done = array.astype(dtype, copy=False)
  if dtype == np.float16 and not np.array_equal(np.isfinite(done), np.isfinite(array)):
    raise InputError(f"{name}: has numbers beyond float16's; export as bfloat16 or float32")
  return done
