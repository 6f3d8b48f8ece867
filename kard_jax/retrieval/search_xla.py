"""Search on a mesh of devices: jit-compiled, the passages dealt out over all of them.

Each device keeps the postings of its passages, term after term: passage numbers, and what part of
the term's weight the passage gets. A batch of queries becomes equal pieces of postings; a step adds
a fixed number of pieces to the sums of all queries, so that one program serves every batch. Each
device then finds its own best passages, and the best of these are the answer. Sums are whole
numbers: any number of devices gives the same bits, and so do the processor's kernels.
"""

from __future__ import annotations

import dataclasses
import functools
import weakref
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array

from kard_jax.core import files
from kard_jax.retrieval import search_cpu
from kard_jax.retrieval.index import Index
from kard_jax.retrieval.queries import Encoded

_AXIS = "passages"
_PIECE = 256  # S, postings in a piece
_PIECES = 4096  # I, pieces added in one step on each device: a million postings
_BATCH = 32  # B, queries whose sums are kept at once
_TERMS = 1 << 16  # expanded at a time


class Searcher:
  """An index's postings on the devices of a mesh.

  Args:
    index: checked.
    mesh: any; its devices are used as one row. None: all accelerators, or one processor.

  Raises:
    InputError: a device's share is more than 2**31 postings.
  """

  def __init__(self, index: Index, mesh: Mesh | None):
    if mesh is not None:
      devices = mesh.devices.reshape(-1)
    else:
      found = jax.local_devices()  # of several hosts each searches by itself
      devices = np.array(found[:1] if found[0].platform == "cpu" else found)
    self._mesh = Mesh(devices, (_AXIS,), axis_types=(AxisType.Auto,))
    self._size = len(index)
    self._share = -(-self._size // len(devices))  # passages on each device
    shares = [_share(index, i * self._share, self._share) for i in range(len(devices))]
    longest = max(len(share.passages) for share in shares)
    _check(longest, str(index.directory))
    self._offsets = [share.offsets for share in shares]  # by segment: [terms + 1]
    width = longest + _PIECE  # a piece may reach past the last posting
    self._passages = self._put(np.stack([_padded(s.passages, width) for s in shares]))
    self._parts = self._put(np.stack([_padded(s.parts, width) for s in shares]))

  def top_k(
    self, encoded: Encoded, weights: np.ndarray, units: np.ndarray, k: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """ids int32 [B, k] and scores float32 [B, k]; see `bm25.top_k`."""
    queries = len(encoded.ends)
    ids, scores = np.full((queries, k), -1, np.int32), np.zeros((queries, k), np.float32)
    kept = min(k, self._size)
    for low in range(0, queries, _BATCH):
      high = min(low + _BATCH, queries)
      sums = self._zeros()
      for pieces in self._pieces(encoded, weights, low, high):
        sums = _add(sums, self._passages, self._parts, *map(self._put, pieces), mesh=self._mesh)
      best, passages = map(np.asarray, _select(sums, k=kept, mesh=self._mesh))
      rows = slice(low, high)
      ids[rows, :kept] = passages[: high - low]
      scores[rows, :kept] = (best[: high - low] * units[rows, None]).astype(np.float32)
    return ids, scores

  def _put(self, array: np.ndarray) -> Array:
    return jax.device_put(array, NamedSharding(self._mesh, P(_AXIS)))

  def _zeros(self) -> Array:
    shape = (len(self._offsets), _BATCH, self._share)
    return jnp.zeros(shape, jnp.int32, device=NamedSharding(self._mesh, P(_AXIS)))

  def _pieces(
    self, encoded: Encoded, weights: np.ndarray, low: int, high: int
  ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Steps of (query, begin, count, weight), each int32 [devices, I]."""
    first = int(encoded.ends[low - 1]) if low else 0
    span = slice(first, int(encoded.ends[high - 1]))
    query = np.repeat(np.arange(high - low), np.diff(encoded.ends[low:high], prepend=first))
    columns = []
    for offsets in self._offsets:
      rows = [
        _cut(query, offsets[segment], encoded.ids[segment, span], weights[span])
        for segment in range(len(offsets))
      ]
      columns.append(np.concatenate(rows, 1))
    steps = -(-max(column.shape[1] for column in columns) // _PIECES)
    table = np.zeros((len(columns), 4, steps * _PIECES), np.int32)
    for device, column in enumerate(columns):
      table[device, :, : column.shape[1]] = column
    for step in range(steps):
      part = table[:, :, step * _PIECES : (step + 1) * _PIECES]
      yield part[:, 0], part[:, 1], part[:, 2], part[:, 3]


_SEARCHERS: weakref.WeakKeyDictionary[Index, dict[Mesh | None, Searcher]] = (
  weakref.WeakKeyDictionary()
)


def searcher(index: Index, mesh: Mesh | None) -> Searcher:
  """The searcher of an index on a mesh, made once."""
  made = _SEARCHERS.setdefault(index, {})
  if mesh not in made:
    made[mesh] = Searcher(index, mesh)
  return made[mesh]


@functools.partial(jax.jit, static_argnames="mesh", donate_argnums=0)
def _add(
  sums_DxBxN: Array,
  passages_DxP: Array,
  parts_DxP: Array,
  query_DxI: Array,
  begin_DxI: Array,
  count_DxI: Array,
  weight_DxI: Array,
  *,
  mesh: Mesh,
) -> Array:
  """Adds pieces of postings to the sums, on each device its own."""

  def one(sums, passages, parts, query, begin, count, weight):  # type: ignore[no-untyped-def]
    sums_BxN, passages_P, parts_P = sums[0], passages[0], parts[0]
    within_S = jnp.arange(_PIECE, dtype=jnp.int32)
    place_IxS = begin[0][:, None] + within_S
    values_IxS = _product(weight[0][:, None].astype(jnp.uint32), parts_P[place_IxS])
    size = sums_BxN.shape[1]
    target_IxS = jnp.where(within_S < count[0][:, None], passages_P[place_IxS], size)
    query_IxS = jnp.broadcast_to(query[0][:, None], target_IxS.shape)
    return sums_BxN.at[query_IxS, target_IxS].add(values_IxS, mode="drop")[None]

  specs = (P(_AXIS),) * 7
  add = jax.shard_map(one, mesh=mesh, in_specs=specs, out_specs=P(_AXIS))
  return add(sums_DxBxN, passages_DxP, parts_DxP, query_DxI, begin_DxI, count_DxI, weight_DxI)


@functools.partial(jax.jit, static_argnames=("k", "mesh"))
def _select(sums_DxBxN: Array, *, k: int, mesh: Mesh) -> tuple[Array, Array]:
  """The best sums, float32 [B, k], and their passages, int32 [B, k], -1 where there is none."""

  def one(sums):  # type: ignore[no-untyped-def]
    size = sums.shape[2]
    # Of equal scores the lower index comes first, here and below: the earlier passage.
    best_BxK, place_BxK = lax.top_k(sums[0].astype(jnp.float32), min(k, size))
    passages_BxK = place_BxK + lax.axis_index(_AXIS) * size
    return best_BxK[None], passages_BxK[None]

  local = jax.shard_map(one, mesh=mesh, in_specs=P(_AXIS), out_specs=P(_AXIS))
  best_DxBxK, passages_DxBxK = local(sums_DxBxN)
  flat = lambda array: jnp.moveaxis(array, 0, 1).reshape(array.shape[1], -1)
  best_BxK, place_BxK = lax.top_k(flat(best_DxBxK), k)
  passages_BxK = jnp.take_along_axis(flat(passages_DxBxK), place_BxK, 1)
  return best_BxK, jnp.where(best_BxK > 0, passages_BxK, -1)


def _product(weight: Array, part: Array) -> Array:
  """`(weight * part + 2**31) >> 32` of uint32 numbers, as int32: devices have no 64 bits."""
  weight_high, weight_low = weight >> 16, weight & 0xFFFF
  part_high, part_low = part >> 16, part & 0xFFFF
  first, second = weight_high * part_low, weight_low * part_high
  middle = (weight_low * part_low >> 16) + (first & 0xFFFF) + (second & 0xFFFF) + 0x8000
  high = weight_high * part_high + (first >> 16) + (second >> 16) + (middle >> 16)
  return high.astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class _Share:
  """What one device keeps: postings of its passages, by segment, then by term."""

  passages: np.ndarray  # int32 [P], less the share's first
  parts: np.ndarray  # uint32 [P]
  offsets: list[np.ndarray]  # by segment, int64 [terms + 1], into the two


def _share(index: Index, first: int, size: int) -> _Share:
  passages, parts, offsets, so_far = [], [], [], 0
  for number, segment in enumerate(index.segments):
    # The share in the segment's own numbers, and what is to be added to get the share's.
    low, high = first - segment.first, first + size - segment.first
    ends = [np.full(1, so_far, np.int64)]
    for start in range(0, len(segment.terms), _TERMS):
      stop = min(start + _TERMS, len(segment.terms))
      found, part, end = search_cpu.expand(index, number, start, stop, max(low, 0), high)
      passages.append((found + (max(low, 0) - low)).astype(np.int32))
      parts.append(part)
      ends.append(end + so_far)
      so_far += len(found)
    offsets.append(np.concatenate(ends))
  if not passages:
    return _Share(np.zeros(0, np.int32), np.zeros(0, np.uint32), offsets)
  return _Share(np.concatenate(passages), np.concatenate(parts), offsets)


def _cut(
  query: np.ndarray, offsets: np.ndarray, terms: np.ndarray, weights: np.ndarray
) -> np.ndarray:
  """int32 [4, pieces]: query, begin, count, weight of each piece of the terms' postings."""
  known = np.flatnonzero(terms >= 0)
  begin, end = offsets[terms[known]], offsets[terms[known] + 1]
  pieces = -(-(end - begin) // _PIECE)
  term = np.repeat(np.arange(len(known)), pieces)
  within = np.arange(len(term)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
  start = begin[term] + within * _PIECE
  count = np.minimum(end[term] - start, _PIECE)
  return np.stack([query[known][term], start, count, weights[known][term]]).astype(np.int32)


def lower(
  mesh: Mesh, passages: int, postings: int, k: int
) -> Iterator[tuple[str, jax.stages.Lowered]]:
  """The two programs of a search, to be compiled for a mesh that may not be there.

  Args:
    mesh: any; its devices are used as one row.
    passages: of the corpus.
    postings: likewise; dealt out over the devices evenly.
    k: how many passages are found.

  Yields:
    "add", which adds a million postings on each device to the sums of 32 queries, and "select",
    which finds the best sums; each with its name.

  Raises:
    InputError: a device's share is more than 2**31 postings.
  """
  devices = mesh.devices.reshape(-1)
  row = Mesh(devices, (_AXIS,), axis_types=(AxisType.Auto,))

  def shape(dtype: DTypeLike, *sizes: int) -> jax.ShapeDtypeStruct:
    where = NamedSharding(row, P(_AXIS))
    return jax.ShapeDtypeStruct((len(devices), *sizes), dtype, sharding=where)

  share, longest = -(-passages // len(devices)), -(-postings // len(devices))
  _check(longest, f"{passages:,} passages")
  width = longest + _PIECE
  sums = shape(np.int32, _BATCH, share)
  kept = shape(np.int32, width), shape(np.uint32, width)
  pieces = [shape(np.int32, _PIECES)] * 4
  yield "add", _add.lower(sums, *kept, *pieces, mesh=row)
  yield "select", _select.lower(sums, k=min(k, passages), mesh=row)


def _check(longest: int, of: str) -> None:
  """Whether a device can number its postings, the longest piece behind them included."""
  if longest + _PIECE >= 1 << 31:
    raise files.InputError(
      f"{of}: {longest:,} postings on one device are too many; use a mesh of more"
    )


def _padded(array: np.ndarray, width: int) -> np.ndarray:
  return np.pad(array, (0, width - len(array)))
