"""Passage ids: gathered compactly while passages stream by, each once, found over several tables.

A corpus may hold tens of millions of ids. As Python strings they would take gigabytes, so they are
gathered as their bytes, one after another, and looked at for repetitions by eight-byte hashes.
"""

from __future__ import annotations

import array
import bisect
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from kard_jax.core import files
from kard_jax.retrieval import sealed
from kard_jax.retrieval.strings import Strings, Table

_FIRST_LOOK = 1 << 16  # ids before the first look for repetitions; each later one at twice as many
_SPARE = 1 << 26  # bytes that the sort may take beyond a few times the ids' own


class Gathered:
  """Ids in passage order, as `strings.save` stores them, but never as Python strings."""

  def __init__(self) -> None:
    self._data = bytearray()
    self._ends = array.array("q", [0])

  def __len__(self) -> int:
    return len(self._ends) - 1

  def extend(self, ids: Iterable[str]) -> None:
    """Takes the next ids."""
    encoded = [id.encode() for id in ids]
    ends = itertools.accumulate(map(len, encoded), initial=len(self._data))
    self._ends.extend(itertools.islice(ends, 1, None))
    self._data += b"".join(encoded)

  def save(self, folder: files.PathLike) -> None:
    """Writes `ids_data.npy`, `ids_offsets.npy` and `ids_order.npy`.

    Raises:
      InputError: an id stands twice.
    """
    path = sealed.local(folder)
    data, offsets = np.frombuffer(self._data, np.uint8), np.frombuffer(self._ends, np.int64)
    order = _order(data, offsets)
    np.save(path / "ids_data.npy", data)
    np.save(path / "ids_offsets.npy", offsets)
    np.save(path / "ids_order.npy", order)


class Joined(Table):
  """The ids of several tables as one: `len`, `[i]`, iteration, and `find` by value."""

  def __init__(self, parts: Sequence[Strings]):
    self._parts = list(parts)
    self._firsts = list(itertools.accumulate(map(len, parts), initial=0))

  def __len__(self) -> int:
    return self._firsts[-1]

  def _at(self, place: int) -> str:
    part = bisect.bisect_right(self._firsts, place) - 1
    return self._parts[part][place - self._firsts[part]]

  def __iter__(self) -> Iterator[str]:
    return itertools.chain.from_iterable(self._parts)

  def find(self, value: str) -> int | None:
    """The place of an id, or None when no table holds it."""
    for first, part in zip(self._firsts, self._parts, strict=False):
      place = part.find(value)
      if place is not None:
        return first + place
    return None


class Taken:
  """Which of new ids an older table holds already, without a search for each.

  Args:
    ids: the older ids; their hashes are kept, eight bytes each.
  """

  def __init__(self, ids: Strings | Joined):
    self._ids = ids
    self._hashes = np.fromiter(map(hash, ids), np.int64, len(ids))
    self._hashes.sort()

  def first(self, ids: Sequence[str]) -> tuple[int, int] | None:
    """The first of `ids` that is taken: its number among them, and its place in the older table."""
    hashes = np.fromiter(map(hash, ids), np.int64, len(ids))
    places = np.searchsorted(self._hashes, hashes)
    places[places == len(self._hashes)] = 0
    for number in np.flatnonzero(self._hashes[places] == hashes).tolist():
      found = self._ids.find(ids[number])  # other ids may share the hash
      if found is not None:
        return number, found
    return None


class Once:
  """Notices an id that comes a second time, eight bytes an id.

  Args:
    explain: called with hashes that more than one id has; it looks at the ids themselves, and
      raises if two are the same.
  """

  def __init__(self, explain: Callable[[set[int]], None]):
    self._explain = explain
    self._hashes = array.array("q")
    self._next_look = _FIRST_LOOK

  def __len__(self) -> int:
    return len(self._hashes)

  def add(self, id: str) -> None:
    """Takes the next id."""
    self._hashes.append(hash(id))
    if len(self._hashes) == self._next_look:
      self.look()
      self._next_look *= 2

  def look(self) -> None:
    """Looks at all ids so far; to be called once more after the last."""
    hashes = np.frombuffer(self._hashes, np.int64)
    hashes.sort()  # in place: their order means nothing
    repeated = hashes[1:][hashes[1:] == hashes[:-1]]
    if len(repeated):
      self._explain(set(repeated.tolist()))


def _order(data: np.ndarray, offsets: np.ndarray) -> np.ndarray:
  """int32: the permutation that sorts the ids by their bytes.

  Raises:
    InputError: two are the same.
  """
  lengths = np.diff(offsets)
  count, width = len(lengths), int(lengths.max(initial=1))
  if width * count <= 3 * len(data) + _SPARE and not (data == 0).any():
    # NumPy compares bytes as UTF-8 sorts, and takes zeros at the end for padding.
    table = np.zeros((count, width), np.uint8)
    for column in range(width):
      rows = np.flatnonzero(lengths > column)
      table[rows, column] = data[offsets[rows] + column]
    fixed = table.reshape(-1).view(f"S{width}")
    order = np.argsort(fixed, kind="stable")
    same = np.flatnonzero(fixed[order[1:]] == fixed[order[:-1]])
  else:
    view = memoryview(data)  # type: ignore[arg-type]
    ids = [bytes(view[start:end]) for start, end in itertools.pairwise(offsets.tolist())]
    order = np.array(sorted(range(count), key=ids.__getitem__), np.int64)
    pairs = itertools.pairwise(order.tolist())
    same = np.array([i for i, (one, two) in enumerate(pairs) if ids[one] == ids[two]], np.int64)
  if len(same):
    before, after = (int(place) for place in order[same[0] : same[0] + 2])
    value = data[offsets[after] : offsets[after + 1]].tobytes().decode()
    raise files.InputError(f"ids: {value!r} stands twice, at {before} and {after} (counted from 0)")
  return order.astype(np.int32)
