"""The files of a T5X checkpoint: a msgpack file, and a zarr array beside it for each parameter.

`checkpoint` is a msgpack tree, `{version, optimizer: {target, state}}`. A leaf is an array, or
says where its zarr folder is (`target.encoder.encoder_norm.scale`). Arrays are read by slices.
"""

from __future__ import annotations

import itertools
import json
import math
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import ml_dtypes
import msgpack
import numpy as np
from flax import serialization, traverse_util

from kard_jax.core.files import InputError, PathLike

FILE = "checkpoint"
VERSION = 3  # the one that T5X has written since June 2021
_CHUNK_BYTES = 64 << 20
_AGAIN = "copy the checkpoint again"
_DTYPES = {np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)}


def is_checkpoint(source: PathLike) -> bool:
  """Whether a place looks like a T5X checkpoint, or a folder of them."""
  place = pathlib.Path(source)
  return (place / FILE).is_file() or (place / "state" / FILE).is_file() or bool(steps(place))


def steps(folder: pathlib.Path) -> dict[int, pathlib.Path]:
  """The checkpoints in a T5X model's folder, by step."""
  found = {}
  for place in folder.glob(f"{FILE}_*"):
    if (match := re.fullmatch(rf"{FILE}_(\d+)", place.name)) and (place / FILE).is_file():
      found[int(match[1])] = place
  return dict(sorted(found.items()))


class Store:
  """The parameters of a checkpoint, by path; optimizer state is passed over.

  Attributes:
    folder: of the step.
    step: of training.
    shapes: of each parameter.
    dtypes: of each parameter.
  """

  def __init__(self, source: PathLike):
    """Reads the msgpack file; of arrays, whether they are whole.

    Args:
      source: a checkpoint's folder, or that of a model, whose latest is taken.

    Raises:
      InputError: no checkpoint, one that is not whole, or one of another kind.
    """
    place = pathlib.Path(source)
    if not (place / FILE).is_file() and (found := steps(place)):
      place = list(found.values())[-1]
    self.folder = place
    self._file = place / FILE
    if (place / "state" / FILE).is_file() and not self._file.is_file():
      raise InputError(
        f"{place}: written by T5X through Orbax; save it with t5x.checkpoints.Checkpointer"
      )
    tree = self._tree()
    self.step = int(np.asarray(tree.get("state", {}).get("step", 0)))
    self._leaves = traverse_util.flatten_dict(tree["target"], sep="/", is_leaf=_is_leaf)
    self.shapes: dict[str, tuple[int, ...]] = {}
    self.dtypes: dict[str, np.dtype] = {}
    for path, leaf in self._leaves.items():
      self._register(path, leaf)

  def _tree(self) -> dict[str, Any]:
    if not self._file.is_file():
      raise InputError(f"{self.folder}: no T5X checkpoint (it has no file {FILE!r})")
    try:
      content = serialization.msgpack_restore(self._file.read_bytes())
      tree = content.get("optimizer", content)
      if not isinstance(tree["target"], dict):
        raise TypeError("target is no tree")
    except (ValueError, KeyError, TypeError, AttributeError, msgpack.UnpackException) as error:
      reason = f"{type(error).__name__}: {error}"
      raise InputError(f"{self._file}: not a T5X checkpoint's ({reason}); {_AGAIN}") from None
    if content.get("version", VERSION) < 2:
      raise InputError(f"{self._file}: version {content['version']}; 2 and 3 can be read")
    return tree

  def _register(self, path: str, leaf: Any) -> None:
    if not _is_leaf(leaf):
      shape, dtype = np.shape(leaf), np.asarray(leaf).dtype
    else:
      folder = self._folder(leaf)
      try:
        header = json.loads((folder / ".zarray").read_bytes())
        shape, name = tuple(header["shape"]), header["dtype"]
        chunks = header["chunks"]
        dtype = np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
      except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{folder}: no whole zarr array ({reason}); {_AGAIN}") from None
      grid = (range(math.ceil(size / chunk)) for size, chunk in zip(shape, chunks, strict=True))
      for indices in itertools.product(*grid):
        chunk = folder / (header.get("dimension_separator", ".").join(map(str, indices)) or "0")
        if not chunk.is_file():  # a zarr reader would take zeros for it
          raise InputError(f"{chunk}: is missing; {_AGAIN}")
    if dtype not in _DTYPES:
      raise InputError(
        f"{self.folder}: {path} has elements of type {dtype}; float32, float16 and bfloat16 can be "
        "read (T5X's version 2 wrote bfloat16 as uint16: save it with a newer T5X)"
      )
    self.shapes[path], self.dtypes[path] = shape, dtype

  def _folder(self, leaf: Mapping[str, Any]) -> pathlib.Path:
    inside = leaf["kvstore"].get("path", leaf.get("path", ""))
    return self.folder / inside.strip("/").split("/")[-1]

  def read(self, path: str, part: tuple[slice, ...] = ()) -> np.ndarray:
    """A part of a parameter, in the element type it is stored in; all of it by default."""
    leaf = self._leaves[path]
    if not _is_leaf(leaf):
      return np.asarray(leaf)[part]
    import tensorstore  # only where there are such arrays

    folder = self._folder(leaf)
    spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{folder}/"}}
    try:
      array = tensorstore.open(spec, open=True, read=True).result()
      return np.asarray((array[part] if part else array).read().result())
    except ValueError as error:
      reason = " ".join(str(error).split())[:200]
      raise InputError(f"{folder}: cannot be read ({reason}); {_AGAIN}") from None


def _is_leaf(node: Any, *_: Any) -> bool:
  """Whether a node of the tree says where an array is."""
  if isinstance(node, tuple):  # flatten_dict passes the path first
    node = _[0] if _ else node
  return isinstance(node, dict) and {"driver", "kvstore", "metadata"} <= node.keys()


def write(folder: pathlib.Path, arrays: Iterable[tuple[str, np.ndarray]], step: int) -> None:
  """Writes a checkpoint without optimizer state.

  Args:
    folder: of the step; exists.
    arrays: one after another, by path.
    step: of training.
  """
  import tensorstore

  target: dict[str, Any] = {}
  for path, array in arrays:
    name = f"target/{path}".replace("/", ".")
    spec = {
      "driver": "zarr",
      "dtype": array.dtype.name,
      "kvstore": {"driver": "file", "path": f"{name}/"},
      "metadata": {
        "chunks": list(_chunks(array)),
        "compressor": {"id": "gzip", "level": 1},
        "shape": list(array.shape),
      },
    }
    here: dict[str, Any] = spec | {"kvstore": {"driver": "file", "path": f"{folder / name}/"}}
    here |= {"store_data_equal_to_fill_value": True}  # a chunk of zeros is a chunk too
    store = tensorstore.open(here, create=True, delete_existing=True).result()
    store.write(array).result()
    target[path] = spec
  tree = {
    "target": traverse_util.unflatten_dict(target, sep="/"),
    "state": {"step": np.int32(step)},
  }
  content = serialization.msgpack_serialize({"version": VERSION, "optimizer": tree})
  (folder / FILE).write_bytes(content)


def _chunks(array: np.ndarray) -> Iterator[int]:
  """A shape of chunks of at most 64 MiB, split along the first axes."""
  size = array.nbytes
  for length in array.shape:
    parts = min(length, math.ceil(size / _CHUNK_BYTES))
    chunk = math.ceil(length / max(1, parts))
    yield chunk
    size = size * chunk // max(1, length)
