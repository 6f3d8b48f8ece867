"""Safetensors folders: one file, or shards with an index; read by slices, written in one go.

A file is opened for each read and closed after it: pages that a memory-map has touched count as
this process's memory until it is closed, and would add up to the size of the checkpoint.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import ml_dtypes
import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from kard_jax.core.files import InputError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000  # of a file, at most, where the source does not say
WEIGHTS = {
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
}
DTYPES = WEIGHTS | {  # buffers of old files: BERT's position_ids, GPT-2's causal mask
  "I64": np.dtype(np.int64),
  "U8": np.dtype(np.uint8),
  "BOOL": np.dtype(np.bool_),
}
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.msgpack", "*.h5")
_AGAIN = "download it again"


class Tensor(NamedTuple):
  """A stored tensor."""

  file: pathlib.Path
  shape: tuple[int, ...]
  dtype: np.dtype


class Tensors(Mapping[str, Tensor]):
  """The tensors of a folder, by name; `read` gives parts of them."""

  def __init__(self, folder: pathlib.Path):
    """Reads the headers.

    Raises:
      InputError: no safetensors, a shard that is missing or not whole, an index and shards that
        do not agree, or an element type other than float32, float16 and bfloat16.
    """
    self.folder = folder
    self._tensors: dict[str, Tensor] = {}
    if (folder / SINGLE).exists():
      self._tensors.update(_header(folder / SINGLE))
      return
    if not (folder / INDEX).exists():
      raise InputError(_nothing(folder))
    weight_map = _weight_map(folder / INDEX)
    for file_name in sorted(set(weight_map.values())):
      file = folder / file_name
      if not file.exists():
        raise InputError(f"{folder / INDEX}: names {file_name}, which is not here; {_AGAIN}")
      there = dict(_header(file))
      for name in (name for name, place in weight_map.items() if place == file_name):
        if name not in there:
          raise InputError(f"{file}: lacks {name}, which {INDEX} says is in it; {_AGAIN}")
        self._tensors[name] = there[name]

  def __getitem__(self, name: str) -> Tensor:
    return self._tensors[name]

  def __iter__(self) -> Iterator[str]:
    return iter(self._tensors)

  def __len__(self) -> int:
    return len(self._tensors)

  def read(self, name: str, part: tuple[slice, ...] = ()) -> np.ndarray:
    """A part of a tensor, in the element type it is stored in; all of it by default."""
    with safetensors.safe_open(self[name].file, "np") as file:
      if not part or not self[name].shape:
        return file.get_tensor(name)
      return file.get_slice(name)[part]

  def same(self, one: str, other: str) -> bool:
    """Whether two tensors hold the same bits; compared in blocks of rows."""
    if self[one][1:] != self[other][1:]:
      return False
    shape = self[one].shape
    rows = max(1, (1 << 22) // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0] if shape else 1, rows):
      part = (slice(start, min(start + rows, shape[0])),) if shape else ()
      if self.read(one, part).tobytes() != self.read(other, part).tobytes():
        return False
    return True


def _header(file: pathlib.Path) -> Iterator[tuple[str, Tensor]]:
  try:
    with safetensors.safe_open(file, "np") as opened:
      for name in opened.keys():  # noqa: SIM118 (it has no __iter__)
        part = opened.get_slice(name)
        kind = part.get_dtype()
        if kind not in DTYPES:
          raise InputError(
            f"{file}: {name} has elements of type {kind}; float32, float16 and bfloat16 can be "
            "read (save the model again in one of these)"
          )
        yield name, Tensor(file, tuple(part.get_shape()), DTYPES[kind])
  except (safetensors.SafetensorError, OSError) as error:
    with file.open("rb") as raw:
      pointer = raw.read(40).startswith(b"version https://git-lfs")
    if pointer:
      raise InputError(f"{file}: a Git LFS pointer, not the weights; run `git lfs pull`") from None
    raise InputError(f"{file}: not a whole safetensors file ({error}); {_AGAIN}") from None


def _weight_map(index: pathlib.Path) -> dict[str, str]:
  try:
    weight_map = json.loads(index.read_bytes())["weight_map"]
    if not all(isinstance(name, str) and "/" not in name for name in weight_map.values()):
      raise ValueError("file names are needed")
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    reason = f"{type(error).__name__}: {error}"
    raise InputError(f"{index}: no weight_map of tensors to files ({reason}); {_AGAIN}") from None
  return weight_map


def _nothing(folder: pathlib.Path) -> str:
  """Why a folder cannot be read."""
  if shards := sorted(folder.glob("model-*-of-*.safetensors")):
    return f"{folder}: has {shards[0].name} but no {INDEX}; download the index too"
  if others := sorted(folder.glob("*.safetensors")):
    return f"{folder}: has {others[0].name}; its name must be {SINGLE}"
  pickled = [path.name for pattern in _PICKLED for path in sorted(folder.glob(pattern))]
  what = f"only {pickled[0]}" if pickled else "no weights"
  return (
    f"{folder}: {what}, and safetensors alone are read (a pickle can run any program). Where torch "
    'and transformers are installed, convert: python -c "import transformers as t; '
    f"t.AutoModelForSeq2SeqLM.from_pretrained('{folder}').save_pretrained('{folder}')\" "
    "(AutoModelForCausalLM for a decoder)"
  )


def write(
  folder: pathlib.Path,
  tensors: Iterable[tuple[str, np.ndarray]],
  places: Mapping[str, str],
) -> None:
  """Writes tensors to the files that `places` names for them, and an index if these are several.

  Args:
    folder: exists.
    tensors: in the order of their files, so that no more than one file's are held.
    places: the file name of each tensor.
  """
  waiting: dict[str, np.ndarray] = {}
  current, total, elements = "", 0, 0

  def flush() -> None:
    if waiting:
      safetensors_numpy.save_file(waiting, folder / current, metadata={"format": "pt"})
      waiting.clear()

  for name, array in tensors:
    if places[name] != current:
      flush()
      current = places[name]
    waiting[name] = np.ascontiguousarray(array)
    total, elements = total + array.nbytes, elements + array.size
  flush()
  if set(places.values()) != {SINGLE}:
    index = {
      "metadata": {"total_parameters": elements, "total_size": total},
      "weight_map": dict(sorted(places.items())),
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def shard(sizes: Mapping[str, int], limit: int) -> dict[str, str]:
  """The file name of each tensor: files of at most `limit` bytes, a larger tensor alone in one."""
  numbers: dict[str, int] = {}
  number, filled = 0, 0
  for name, size in sizes.items():
    if filled and filled + size > limit:
      number, filled = number + 1, 0
    numbers[name], filled = number, filled + size
  if not number:
    return dict.fromkeys(sizes, SINGLE)
  return {
    name: f"model-{at + 1:05d}-of-{number + 1:05d}.safetensors" for name, at in numbers.items()
  }
