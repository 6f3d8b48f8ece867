"""Scores ragged lists of candidates with few compilations (paper section 3.3, at answering time).

Rows are padded to the next power of two of their own length and run in calls of a fixed shape, so
that XLA compiles once for each length, and a score does not depend on what it was computed with.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kard_jax.core.objective import Params
from kard_jax.reranker.network import TokenVectors

Tokens = Sequence[int] | np.ndarray

_SHORTEST = 16  # tokens; rows shorter than this are padded to it
_TOGETHER = 8  # candidates of one question that a call scores: lists are padded to a multiple


def rerank_scores(
  network: nn.Module,
  params: Params,
  query_tokens: Sequence[Tokens],
  passage_tokens: Sequence[Sequence[Tokens]],
  *,
  tokens_per_call: int = 1 << 13,
  tokens_in_memory: int = 1 << 20,
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
      larger number serves larger devices.
    tokens_in_memory: how many tokens of encoded passages are kept on the device, about.

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
  if not hasattr(network, "encode_passages"):
    _score_jointly(network, params, queries, lists, scores, tokens_per_call)
    return scores
  for group in _groups(lists, tokens_in_memory):
    _score_apart(network, params, queries[group], lists[group], scores[group], tokens_per_call)
  return scores


class _Unit(NamedTuple):
  """Some candidates of one question, at most `_TOGETHER`, all of the same padded length."""

  question: int
  candidates: list[int]


def _score_jointly(
  network: nn.Module,
  params: Params,
  queries: list[np.ndarray],
  lists: list[list[np.ndarray]],
  scores: list[np.ndarray],
  tokens_per_call: int,
) -> None:
  """Fills in the scores of a network that must see question and passage together."""
  results = []
  for (length_L, length_M), units in _units(queries, lists).items():
    rows = max(1, tokens_per_call // (_TOGETHER * (length_L + length_M)))
    for some in _chunks(units, rows):
      query_BxL = np.zeros((rows, length_L), np.int32)
      passage_BxCxM = np.zeros((rows, _TOGETHER, length_M), np.int32)
      for b, (question, candidates) in enumerate(some):
        _fill(query_BxL[b], queries[question])
        for c, candidate in enumerate(candidates):
          _fill(passage_BxCxM[b, c], lists[question][candidate])
      results.append((some, _apply(network, params, query_BxL, passage_BxCxM)))
  _deliver(results, scores)


def _score_apart(
  network: nn.Module,
  params: Params,
  queries: list[np.ndarray],
  lists: list[list[np.ndarray]],
  scores: list[np.ndarray],
  tokens_per_call: int,
) -> None:
  """Fills in the scores of a network that compares encoded questions with encoded passages."""
  encode = functools.partial(_encode, network, params, tokens_per_call=tokens_per_call)
  passage_tables, passage_rows = encode(
    {tokens.tobytes(): tokens for row in lists for tokens in row}, "encode_passages"
  )
  query_tables, query_rows = encode(
    {tokens.tobytes(): tokens for tokens, row in zip(queries, lists, strict=True) if row},
    "encode_query",
  )
  results = []
  for (length_L, length_M), units in _units(queries, lists).items():
    rows = max(1, tokens_per_call // (_TOGETHER * length_M))
    for some in _chunks(units, rows):
      query_B = np.zeros((rows,), np.int32)
      passage_BxC = np.zeros((rows, _TOGETHER), np.int32)
      for b, (question, candidates) in enumerate(some):
        query_B[b] = query_rows[queries[question].tobytes()]
        found = [passage_rows[lists[question][c].tobytes()] for c in candidates]
        passage_BxC[b, : len(found)] = found
      pair = query_tables[length_L], passage_tables[length_M]
      results.append((some, _compare(network, params, *pair, query_B, passage_BxC)))
  _deliver(results, scores)


def _encode(
  network: nn.Module,
  params: Params,
  tokens_of: dict[bytes, np.ndarray],
  method: str,
  *,
  tokens_per_call: int,
) -> tuple[dict[int, TokenVectors], dict[bytes, int]]:
  """Encodes each row once: a table [N, M, P] for each padded length M, and each key's row in it."""
  keys_by_length: dict[int, list[bytes]] = collections.defaultdict(list)
  for key, tokens in tokens_of.items():
    keys_by_length[_padded(len(tokens))].append(key)
  tables, rows_of = {}, {}
  for length_M, keys in keys_by_length.items():
    rows = max(1, tokens_per_call // length_M)
    parts = []
    for some in _chunks(keys, rows):
      tokens_NxM = np.zeros((rows, length_M), np.int32)
      for row, key in enumerate(some):
        _fill(tokens_NxM[row], tokens_of[key])
      parts.append(_encode_rows(network, params, tokens_NxM, method))
    # a power of two of parts, so that tables come in few sizes and `_compare` is seldom compiled
    parts += parts[:1] * ((1 << (len(parts) - 1).bit_length()) - len(parts))
    tables[length_M] = jax.tree.map(lambda *xs: jnp.concatenate(xs), *parts)
    rows_of.update({key: row for row, key in enumerate(keys)})
  return tables, rows_of


@functools.partial(jax.jit, static_argnames="network")
def _apply(network: nn.Module, params: Params, query_BxL: Any, passage_BxCxM: Any) -> Any:
  return network.apply({"params": params}, query_BxL, passage_BxCxM)


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
      by_length[_padded(len(tokens))].append(candidate)
    for length_M, candidates in by_length.items():
      key = (_padded(len(queries[question])), length_M)
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
    new = {tokens.tobytes(): _padded(len(tokens)) for tokens in row}
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


def _padded(length: int) -> int:
  return max(_SHORTEST, 1 << (length - 1).bit_length()) if length else _SHORTEST


def _fill(row: np.ndarray, tokens: np.ndarray) -> None:
  row[: len(tokens)] = tokens
