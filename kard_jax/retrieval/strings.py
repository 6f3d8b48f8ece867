"""A table of strings as two arrays, so that millions of them open at once and cost no memory.

One array holds the UTF-8 bytes of all strings, one where each begins. Index terms are stored sorted
and found by bisection; passage ids are stored in passage order, with their sorted order beside.
"""

from __future__ import annotations

import abc
import bisect
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np

from kard_jax.core import files
from kard_jax.retrieval import sealed


class Table(Sequence[str], abc.ABC):
  """Strings by number, from either end, and by slice."""

  @overload
  def __getitem__(self, index: int) -> str: ...
  @overload
  def __getitem__(self, index: slice) -> list[str]: ...
  def __getitem__(self, index: Any) -> Any:
    if isinstance(index, slice):
      return [self[i] for i in range(*index.indices(len(self)))]
    size = len(self)
    if not -size <= index < size:
      raise IndexError(f"string {index} of a table of {size}")
    return self._at(int(index) % size)

  @abc.abstractmethod
  def _at(self, place: int) -> str:
    """The string at a place, counted from 0."""


class Strings(Table):
  """Strings that lie on disk: `len`, `[i]`, iteration, and `find` by value.

  Args:
    data: uint8, the UTF-8 bytes of all strings, one after another.
    offsets: int64, where each begins, and the end: one more than there are strings.
    order: the permutation that sorts them (by code point), or None when they are stored sorted.
  """

  def __init__(self, data: np.ndarray, offsets: np.ndarray, order: np.ndarray | None = None):
    self._array = data
    self._data = memoryview(data)  # type: ignore[arg-type]  # slices faster than an array
    self._offsets, self._order = offsets, order

  def __len__(self) -> int:
    return len(self._offsets) - 1

  def _at(self, place: int) -> str:
    return self._bytes(place).decode()

  def __iter__(self) -> Iterator[str]:
    return (self._bytes(i).decode() for i in range(len(self)))

  def arrays(self) -> tuple[np.ndarray, np.ndarray]:
    """All bytes (uint8), and where each string begins and the last ends (int64)."""
    return self._array, self._offsets

  def find(self, value: str) -> int | None:
    """The place of a string, or None when it is not in the table. About log2(len) reads."""
    wanted = value.encode("utf-8", "surrogatepass")  # a lone surrogate is never in the table
    order = self._order
    at = (lambda i: i) if order is None else (lambda i: int(order[i]))
    # UTF-8 bytes sort as code points do, so the stored order is the order of the bytes.
    rank = bisect.bisect_left(range(len(self)), wanted, key=lambda i: self._bytes(at(i)))
    if rank == len(self) or self._bytes(at(rank)) != wanted:
      return None
    return at(rank)

  def _bytes(self, index: int) -> bytes:
    return self._data[int(self._offsets[index]) : int(self._offsets[index + 1])].tobytes()


def save(folder: files.PathLike, name: str, values: Sequence[str], *, in_order: bool) -> None:
  """Writes `<name>_data.npy`, `<name>_offsets.npy` and, unless `in_order`, `<name>_order.npy`.

  Args:
    folder: where to.
    name: of the table.
    values: the strings.
    in_order: `values` are sorted already.

  Raises:
    InputError: a string stands twice.
  """
  path = sealed.local(folder)
  encoded = [value.encode() for value in values]
  offsets = np.zeros(len(encoded) + 1, np.int64)
  np.cumsum([len(value) for value in encoded], out=offsets[1:])
  np.save(path / f"{name}_data.npy", np.frombuffer(b"".join(encoded), np.uint8))
  np.save(path / f"{name}_offsets.npy", offsets)
  order = range(len(values)) if in_order else sorted(range(len(values)), key=values.__getitem__)
  for before, after in itertools.pairwise(order):
    if values[before] == values[after]:
      raise files.InputError(
        f"{name}: {values[after]!r} stands twice, at {before} and {after} (counted from 0)"
      )
  if not in_order:
    np.save(path / f"{name}_order.npy", np.asarray(order, np.int32))


def load(
  folder: files.PathLike, name: str, *, in_order: bool, remedy: str, offsets: Any = np.int64
) -> Strings:
  """Memory-maps what `save` wrote; `offsets` is their type, where another writer chose it."""
  return Strings(
    sealed.array(folder, f"{name}_data", np.uint8, remedy=remedy),
    sealed.array(folder, f"{name}_offsets", offsets, remedy=remedy),
    None if in_order else sealed.array(folder, f"{name}_order", np.int32, remedy=remedy),
  )
