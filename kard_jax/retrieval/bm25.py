"""BM25 scoring, jit-compiled: what a query finds, and scores of given passages (section 3.2).

The postings of a query's terms are copied from the memory map into blocks, each block from one
term, and added block after block to one score for each passage. Within a block no passage occurs
twice, and terms come in a fixed order, so the float32 sums are the same on every device and for
every order of words: passages with equal words have equal scores, and ties go to the earlier one.
The number of blocks is rounded up to a few sizes, so a long run compiles only a few programs.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float32, Int, Int32

from kard_jax.retrieval.index import Index

_BLOCK = 512  # S, postings added at once
_BATCH = 32  # B, queries in one call of the program
_BLOCKS = 64  # T, blocks in the smallest program; larger ones have 4, 16, 64 ... times as many
_MOST_BLOCKS = 4096  # in one call (16 MB), unless a single query has more
_CHUNK = 1 << 19  # passages scored at once: bounds memory on a large corpus
_WIDTH = 1 << 10  # the number of passages is rounded up to a multiple of this


class Hits(NamedTuple):
  """The best passages of each query, best first; NumPy arrays.

  Attributes:
    ids_BxK: int32, positions of passages; -1 where fewer than K share a term with the query.
    scores_BxK: float32, positive; 0 where the position is -1.
  """

  ids_BxK: Int32[np.ndarray, "B K"]
  scores_BxK: Float32[np.ndarray, "B K"]


def top_k(index: Index, queries: Sequence[str], k: int) -> Hits:
  """The k best passages of each query by BM25 (exact, over all passages).

  A term that occurs twice in a query counts twice. Ties go to the earlier passage.

  Args:
    index: from `index.open` or `index.build`.
    queries: B texts; an empty one, or one of unknown words, finds nothing.
    k: at least 1; may exceed the number of passages.

  Raises:
    ValueError: k is below 1.
  """
  if k < 1:
    raise ValueError(f"k has to be at least 1, not {k}")
  best = Hits(np.full((len(queries), k), -1, np.int32), np.zeros((len(queries), k), np.float32))
  width = _width(index)
  kernel = functools.partial(_top, k=min(k, width), width=width, together=_together())
  for rows, start, found in _run(index, queries, lambda blocks, rows, start: kernel(blocks)):
    # What is there already stands first and the sort is stable: ties go to the earlier chunk, and
    # passages that score 0 never take the place of -1.
    ids = np.concatenate([best.ids_BxK[rows], found[0] + start], 1)
    scores = np.concatenate([best.scores_BxK[rows], found[1]], 1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best.ids_BxK[rows] = np.take_along_axis(ids, order, 1)
    best.scores_BxK[rows] = np.take_along_axis(scores, order, 1)
  return best


def rescore(
  index: Index, queries: Sequence[str], passage_ids_BxC: Int[Array | np.ndarray, "B C"]
) -> Float32[np.ndarray, "B C"]:
  """BM25 scores of given passages under other queries: the same numbers that `top_k` would give.

  Args:
    index: from `index.open` or `index.build`.
    queries: B texts.
    passage_ids_BxC: positions of passages, C for each query; -1 for none.

  Returns:
    Scores; 0.0 where no term is shared, and where the position is -1.

  Raises:
    ValueError: a position is out of range, or there is not one row for each query.
  """
  wanted = np.asarray(passage_ids_BxC)
  if len(wanted) != len(queries):
    raise ValueError(f"{len(queries)} queries and {len(wanted)} rows of passages")
  if wanted.size and (wanted.min() < -1 or wanted.max() >= len(index)):
    raise ValueError(f"a passage position is outside -1..{len(index) - 1}")
  scores = np.zeros(wanted.shape, np.float32)
  width = _width(index)
  kernel = functools.partial(_at, width=width, together=_together())

  def call(blocks: _Blocks, rows: np.ndarray, start: int) -> Array:
    local = np.full((_BATCH, wanted.shape[1]), -1, np.int32)
    here = wanted[rows] - start
    local[: len(rows)] = np.where((here >= 0) & (here < width), here, -1)
    return kernel(blocks, local)

  for rows, _, found in _run(index, queries, call):
    scores[rows] += found[0]  # every passage lies in one chunk; the others give 0
  return scores


class _Blocks(NamedTuple):
  """The postings of B queries in T blocks of S, one term to a block; the last block is empty."""

  passages_TxS: np.ndarray  # int32; an empty place holds a number past the chunk's width
  scores_TxS: np.ndarray  # float32
  first_B: np.ndarray  # int32, each query's first block
  steps_B: np.ndarray  # int32, how many it has
  longest: Any  # int32, the most that one has


def _run(
  index: Index, queries: Sequence[str], kernel: Callable[[_Blocks, np.ndarray, int], object]
) -> Iterator[tuple[np.ndarray, int, list[np.ndarray]]]:
  """Yields (numbers of queries, first passage of the chunk, kernel outputs for them)."""
  terms = [index.query(query) for query in queries]
  pending = None
  for start in range(0, len(index), _CHUNK):
    spans = [_spans(index, query, start) for query in terms]
    for rows in _batches([_block_count(query) for query in spans]):
      blocks = _copy(index, [spans[row] for row in rows], start)
      # Dispatch is asynchronous: the next blocks are copied while these are being added up.
      done, pending = pending, (rows, start, kernel(blocks, rows, start))
      if done is not None:
        yield _fetch(*done)
  if pending is not None:
    yield _fetch(*pending)


def _fetch(rows: np.ndarray, start: int, out: object) -> tuple[np.ndarray, int, list[np.ndarray]]:
  return rows, start, [np.asarray(value)[: len(rows)] for value in jax.tree.leaves(out)]


def _spans(index: Index, terms: Sequence[int], start: int) -> list[tuple[int, int]]:
  """Where the postings of each term lie that fall into the chunk of passages from `start`."""
  spans = []
  for term in terms:
    low, high = int(index.offsets[term]), int(index.offsets[term + 1])
    if len(index) > _CHUNK:
      inside = np.searchsorted(index.passages[low:high], [start, start + _CHUNK])
      low, high = low + int(inside[0]), low + int(inside[1])
    if low < high:
      spans.append((low, high))
  return spans


def _block_count(spans: Sequence[tuple[int, int]]) -> int:
  return sum(-(-(high - low) // _BLOCK) for low, high in spans)


def _batches(counts: Sequence[int]) -> Iterator[np.ndarray]:
  """Groups queries, by number, so that the blocks of each group fit into one call."""
  rows: list[int] = []
  used = 1  # the empty block
  for row, count in enumerate(counts):
    if count == 0:  # no postings: the answer is there already
      continue
    if rows and (len(rows) == _BATCH or used + count > _MOST_BLOCKS):
      yield np.array(rows)
      rows, used = [], 1
    rows.append(row)
    used += count
  if rows:
    yield np.array(rows)


def _copy(index: Index, queries: Sequence[Sequence[tuple[int, int]]], start: int) -> _Blocks:
  """Copies the postings of at most B queries into blocks."""
  steps = np.zeros(_BATCH, np.int32)
  steps[: len(queries)] = [_block_count(spans) for spans in queries]
  first = (np.cumsum(steps) - steps).astype(np.int32)
  total = _BLOCKS
  while total < steps.sum() + 1:
    total *= 4
  passages = np.empty((total, _BLOCK), np.int32)
  scores = np.empty((total, _BLOCK), np.float32)
  # Empty places point past the last passage, each to another place: dropped, unique in a block.
  empty = np.arange(_BLOCK, dtype=np.int32) + _width(index)
  passages[-1] = empty
  flat_passages, flat_scores, at = passages.reshape(-1), scores.reshape(-1), 0
  for low, high in itertools.chain.from_iterable(queries):
    end = at + high - low
    np.subtract(index.passages[low:high], start, out=flat_passages[at:end])
    flat_scores[at:end] = index.scores[low:high]
    at += -(-(high - low) // _BLOCK) * _BLOCK
    flat_passages[end:at] = empty[: at - end]
  return _Blocks(passages, scores, first, steps, steps.max())


@functools.partial(jax.jit, static_argnames=("k", "width", "together"))
def _top(blocks: _Blocks, *, k: int, width: int, together: int | None) -> tuple[Array, Array]:
  def one(scores_N: Array) -> tuple[Array, Array]:
    scores_K, ids_K = lax.top_k(scores_N, k)  # of equal scores the lower index comes first
    return ids_K, scores_K

  return _each(blocks, lambda scores_N, _: one(scores_N), blocks.first_B, width, together)


@functools.partial(jax.jit, static_argnames=("width", "together"))
def _at(blocks: _Blocks, local_BxC: Array, *, width: int, together: int | None) -> Array:
  def one(scores_N: Array, local_C: Array) -> Array:
    return jnp.where(local_C < 0, 0.0, scores_N[jnp.maximum(local_C, 0)])

  return _each(blocks, one, local_BxC, width, together)


def _each(
  blocks: _Blocks,
  read: Callable[[Array, Array], Any],
  argument_Bx: Any,
  width: int,
  together: int | None,
) -> Any:
  """`read(scores_N, argument)` for each of the B queries."""
  last = len(blocks.passages_TxS) - 1

  def one(query: tuple[Array, Array, Array]) -> Any:
    first, steps, argument = query

    def add(step: Array, scores_N: Array) -> Array:
      block = jnp.where(step < steps, first + step, last)
      places = scores_N.at[blocks.passages_TxS[block]]
      return places.add(blocks.scores_TxS[block], mode="drop", unique_indices=True)

    # Side by side, queries take equal steps, the short ones empty ones; one by one, their own.
    trips = steps if together is None else blocks.longest
    return read(lax.fori_loop(0, trips, add, jnp.zeros(width, jnp.float32)), argument)

  def one_or_none(query: tuple[Array, Array, Array]) -> Any:
    # A batch may be less than full; on a CPU its empty rows then cost nothing.
    nothing = jax.tree.map(lambda out: jnp.zeros(out.shape, out.dtype), jax.eval_shape(one, query))
    return lax.cond(query[1] > 0, one, lambda _: nothing, query)

  queries = (blocks.first_B, blocks.steps_B, argument_Bx)
  return lax.map(one_or_none, queries, batch_size=together)


def _width(index: Index) -> int:
  return min(_CHUNK, -(-len(index) // _WIDTH) * _WIDTH)


def _together() -> int | None:
  """Queries summed side by side: on a CPU one, whose scores stay in its cache; else all."""
  return None if jax.default_backend() == "cpu" else _BATCH
