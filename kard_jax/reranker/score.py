"""Scores ragged lists of candidates with few compilations (paper section 3.3, at answering time).

Rows are sorted into buckets by their own length and run in calls of a fixed shape, so that XLA
compiles once for each length, and a score does not depend on what it was computed with. On a mesh
the rows of a call are dealt out over the devices.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kard_jax.core.objective import Params
from kard_jax.core.partitioning import Partitioner
from kard_jax.reranker.network import TokenVectors

Tokens = Sequence[int] | np.ndarray
Progress = Callable[[int], None]

_SHORTEST = 16  # tokens; rows shorter than this are padded to it
_TOKENS = 1 << 13  # a call has by default
_CPU_TOKENS = 1 << 11  # likewise: activations of more leave the caches, and a call is slower
_TOGETHER = 8  # candidates of one question that a call compares: lists are padded to a multiple


def rerank_scores(
  network: nn.Module,
  params: Params,
  query_tokens: Sequence[Tokens],
  passage_tokens: Sequence[Sequence[Tokens]],
  *,
  tokens_per_call: int | None = None,
  tokens_in_memory: int = 1 << 20,
  partitioner: Partitioner | None = None,
  progress: Progress | None = None,
) -> list[np.ndarray]:
  """Scores the candidates of each question; higher is better.

  With a network that encodes the sides apart (`LateInteraction`), each distinct passage is encoded
  once, however many questions it is a candidate of: give many questions at a time.

  Args:
    network: called as `network(query_tokens_BxL, passage_tokens_BxCxM)`.
    params: its parameters, unboxed.
    query_tokens: token ids of each question, without padding, cut to the length that is wanted.
    passage_tokens: for each question, token ids of its candidates; lists may differ in length and
      may be empty.
    tokens_per_call: how many tokens (passages times padded length) a device is given at once; a
      larger number serves larger devices. None: 8,192, and 2,048 where a
      CPU encodes.
    tokens_in_memory: how many tokens of encoded passages are kept on the device, about.
    partitioner: mesh and rules; None: the first device alone.
    progress: called with how many candidates have got their score since the last call.

  Returns:
    For each question a float32 array, one score for each of its candidates, in their order.

  Raises:
    ValueError: as many lists of passages as questions are needed.
  """
  if len(query_tokens) != len(passage_tokens):
    raise ValueError(f"{len(query_tokens)} questions, but {len(passage_tokens)} lists of passages")
  queries = [np.asarray(tokens, np.int32) for tokens in query_tokens]
  lists = [[np.asarray(tokens, np.int32) for tokens in row] for row in passage_tokens]
  scores = [np.zeros(len(row), np.float32) for row in lists]
  run = Runner(network, params, tokens_per_call, partitioner, progress or (lambda count: None))
  with run.active():
    if not hasattr(network, "encode_passages"):
      _score_jointly(run, queries, lists, scores)
      return scores
    for group in _groups(lists, tokens_in_memory):
      _score_apart(run, queries[group], lists[group], scores[group])
  return scores


class Runner(NamedTuple):
  """A network where it runs. Attributes: as the arguments of `rerank_scores`."""

  network: Any
  params: Params
  tokens_per_call: int | None = None
  partitioner: Partitioner | None = None
  progress: Progress = lambda count: None

  def active(self) -> contextlib.AbstractContextManager[None]:
    """Logical axis names mean the mesh in here."""
    return self.partitioner.active() if self.partitioner else contextlib.nullcontext()

  def rows(self, tokens: int, *, encodes: bool = True) -> int:
    """How many rows of so many tokens a call has, over all devices; comparing takes more."""
    ways = 1 if self.partitioner is None else devices(self.partitioner)
    small = encodes and jax.default_backend() == "cpu"
    budget = self.tokens_per_call or (_CPU_TOKENS if small else _TOKENS)
    rows = max(1, budget // tokens)
    # whole vectors of the processor, so that each row is computed alike
    return ways * (rows - rows % 8 if rows > 8 else rows)

  def put(self, array: np.ndarray) -> Any:
    """Rows dealt out over the devices."""
    if self.partitioner is None:
      return array
    return jax.device_put(array, self.partitioner.batch_sharding)

  def encode(self, tokens_NxM: np.ndarray, method: str) -> TokenVectors:
    """Vectors and mask of rows; under `active`."""
    return _encode_rows(self.network, self.params, self.put(tokens_NxM), method)


def devices(partitioner: Partitioner) -> int:
  """Over how many devices the rows of a batch are dealt out."""
  axis = dict(partitioner.rules).get("batch")
  names = (axis,) if isinstance(axis, str) else axis or ()
  return math.prod(partitioner.mesh.shape[name] for name in names)


class _Unit(NamedTuple):
  """Some candidates of one question, at most `_TOGETHER`, all of the same padded length."""

  question: int
  candidates: list[int]


def _score_jointly(
  run: Runner,
  queries: list[np.ndarray],
  lists: list[list[np.ndarray]],
  scores: list[np.ndarray],
) -> None:
  """Fills in the scores of a network that must see question and passage together."""
  start = run.network.passage_start
  places: dict[int, list[tuple[int, int]]] = collections.defaultdict(list)
  for question, listed in enumerate(lists):
    for candidate, tokens in enumerate(listed):
      length = len(queries[question]) + max(0, len(tokens) - start)
      places[padded(length)].append((question, candidate))
  results = []
  for length_S in sorted(places):
    rows = run.rows(length_S)
    for some in _chunks(places[length_S], rows):
      tokens_NxS = np.full((rows, length_S), run.network.encoder.pad_id, np.int32)
      segments_NxS = np.zeros((rows, length_S), np.int32)
      for row, (question, candidate) in enumerate(some):
        query, passage = queries[question], lists[question][candidate][start:]
        end = len(query) + len(passage)
        tokens_NxS[row, : len(query)] = query
        tokens_NxS[row, len(query) : end] = passage
        segments_NxS[row, len(query) : end] = 1
      pair = run.put(tokens_NxS), run.put(segments_NxS)
      results.append((some, _score_pairs(run.network, run.params, *pair)))
      if len(results) > 2:  # the device has the next ones while the host waits here
        _deliver_pairs(results.pop(0), scores, run.progress)
  for result in results:
    _deliver_pairs(result, scores, run.progress)


def _deliver_pairs(
  result: tuple[list[tuple[int, int]], Any], scores: list[np.ndarray], progress: Progress
) -> None:
  places, scores_N = result
  for (question, candidate), score in zip(places, np.asarray(scores_N), strict=False):
    scores[question][candidate] = score
  progress(len(places))


def _score_apart(
  run: Runner,
  queries: list[np.ndarray],
  lists: list[list[np.ndarray]],
  scores: list[np.ndarray],
) -> None:
  """Fills in the scores of a network that compares encoded questions with encoded passages."""
  passage_tables, passage_rows = _encode(
    run, {tokens.tobytes(): tokens for row in lists for tokens in row}, "encode_passages"
  )
  query_tables, query_rows = _encode(
    run,
    {tokens.tobytes(): tokens for tokens, row in zip(queries, lists, strict=True) if row},
    "encode_query",
  )
  results = []
  for (length_L, length_M), units in _units(queries, lists).items():
    rows = run.rows(_TOGETHER * length_M, encodes=False)
    for some in _chunks(units, rows):
      query_B = np.zeros((rows,), np.int32)
      passage_BxC = np.zeros((rows, _TOGETHER), np.int32)
      for b, (question, candidates) in enumerate(some):
        query_B[b] = query_rows[queries[question].tobytes()]
        found = [passage_rows[lists[question][c].tobytes()] for c in candidates]
        passage_BxC[b, : len(found)] = found
      pair = query_tables[length_L], passage_tables[length_M]
      chosen = run.put(query_B), run.put(passage_BxC)
      results.append((some, _compare(run.network, run.params, *pair, *chosen)))
  _deliver(results, scores)
  run.progress(sum(map(len, lists)))


def _encode(
  run: Runner, tokens_of: dict[bytes, np.ndarray], method: str
) -> tuple[dict[int, TokenVectors], dict[bytes, int]]:
  """Encodes each row once: a table [N, M, P] for each padded length M, and each key's row in it."""
  keys_by_length: dict[int, list[bytes]] = collections.defaultdict(list)
  for key, tokens in tokens_of.items():
    keys_by_length[padded(len(tokens))].append(key)
  tables, rows_of = {}, {}
  for length_M, keys in keys_by_length.items():
    rows = run.rows(length_M)
    parts = []
    for some in _chunks(keys, rows):
      tokens_NxM = np.full((rows, length_M), run.network.encoder.pad_id, np.int32)
      for row, key in enumerate(some):
        _fill(tokens_NxM[row], tokens_of[key])
      parts.append(run.encode(tokens_NxM, method))
    # a power of two of parts, so that tables come in few sizes and `_compare` is seldom compiled
    parts += parts[:1] * ((1 << (len(parts) - 1).bit_length()) - len(parts))
    tables[length_M] = jax.tree.map(lambda *xs: jnp.concatenate(xs), *parts)
    rows_of.update({key: row for row, key in enumerate(keys)})
  return tables, rows_of


@functools.partial(jax.jit, static_argnames="network")
def _score_pairs(network: nn.Module, params: Params, tokens_NxS: Any, segments_NxS: Any) -> Any:
  return network.apply({"params": params}, tokens_NxS, segments_NxS, method="score_pairs")


@functools.partial(jax.jit, static_argnames=("network", "method"))
def _encode_rows(network: nn.Module, params: Params, tokens_NxM: Any, method: str) -> Any:
  return network.apply({"params": params}, tokens_NxM, method=method)


@functools.partial(jax.jit, static_argnames="network")
def _compare(
  network: nn.Module,
  params: Params,
  queries: TokenVectors,
  passages: TokenVectors,
  query_B: Any,
  passage_BxC: Any,
) -> Any:
  chosen = (
    jax.tree.map(lambda x: x[query_B], queries),
    jax.tree.map(lambda x: x[passage_BxC], passages),
  )
  return network.apply({"params": params}, *chosen, method="compare")


def _units(
  queries: list[np.ndarray], lists: list[list[np.ndarray]]
) -> dict[tuple[int, int], list[_Unit]]:
  """All pairs of question and candidate, by the padded lengths (L, M) of the two."""
  units: dict[tuple[int, int], list[_Unit]] = collections.defaultdict(list)
  for question, row in enumerate(lists):
    by_length: dict[int, list[int]] = collections.defaultdict(list)
    for candidate, tokens in enumerate(row):
      by_length[padded(len(tokens))].append(candidate)
    for length_M, candidates in by_length.items():
      key = (padded(len(queries[question])), length_M)
      units[key].extend(_Unit(question, some) for some in _chunks(candidates, _TOGETHER))
  return units


def _deliver(results: list[tuple[list[_Unit], Any]], scores: list[np.ndarray]) -> None:
  """Fetches scores when all calls are under way, so that the device never waits for the host."""
  for units, scores_BxC in results:
    for (question, candidates), scores_C in zip(units, np.asarray(scores_BxC), strict=False):
      scores[question][candidates] = scores_C[: len(candidates)]


def _groups(lists: list[list[np.ndarray]], tokens_in_memory: int) -> Iterator[slice]:
  """Runs of questions, at least one each, whose distinct passages fit in memory together."""
  start, seen, held = 0, set[bytes](), 0
  for i, row in enumerate(lists):
    new = {tokens.tobytes(): padded(len(tokens)) for tokens in row}
    if held and held + sum(n for key, n in new.items() if key not in seen) > tokens_in_memory:
      yield slice(start, i)
      start, seen, held = i, set(), 0
    held += sum(n for key, n in new.items() if key not in seen)
    seen.update(new)
  if start < len(lists):
    yield slice(start, len(lists))


def _chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
  for start in range(0, len(items), size):
    yield items[start : start + size]


def padded(length: int) -> int:
  """The length that a row is filled up to: steps of an eighth to a quarter, 16 tokens at least."""
  if length <= _SHORTEST:
    return _SHORTEST
  step = max(_SHORTEST, 1 << ((length - 1).bit_length() - 3))
  return -(-length // step) * step


def _fill(row: np.ndarray, tokens: np.ndarray) -> None:
  row[: len(tokens)] = tokens
