"""Whether the engines of `bm25.py` found the same: against each other, and an exhaustive search.

The exhaustive search knows nothing of the index: it counts the terms of every passage anew, scores
every passage in float64 by the formula, and sorts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from kard_jax.retrieval.analyzer import Analyzer

_BATCH = 4096
# Scores that differ by less are ties: float32 has steps of up to 1.2e-7 of a score.
_TIE = 3e-7


def exhaustive(texts: Iterable[str], queries: Sequence[str], *, k1: float, b: float) -> np.ndarray:
  """float64 [queries, passages]: Lucene's BM25 of every passage."""
  analyzer = Analyzer()
  asked = [analyzer(query) for query in queries]
  column = {term: number for number, term in enumerate(sorted({t for row in asked for t in row}))}
  table = analyzer.table()
  is_term, column_of_word = np.zeros(0, bool), np.zeros(0, np.int64)
  lengths: list[np.ndarray] = []
  passages: list[np.ndarray] = []
  columns: list[np.ndarray] = []
  counts: list[np.ndarray] = []
  first = 0
  for batch in _batched(texts):
    words, ends = table.cut(batch)
    new = [analyzer.term(word) for word in table.new_words(len(is_term))]
    is_term = np.concatenate([is_term, np.array([bool(term) for term in new], bool)])
    numbers = np.array([column.get(term, -1) for term in new], np.int64)
    column_of_word = np.concatenate([column_of_word, numbers])
    passage = np.repeat(np.arange(len(batch)), np.diff(ends, prepend=0))
    lengths.append(np.bincount(passage[is_term[words]], minlength=len(batch)))
    found = column_of_word[words]
    keys, count = np.unique((passage * len(column) + found)[found >= 0], return_counts=True)
    passages.append((keys // len(column) + first).astype(np.int32))
    columns.append((keys % len(column)).astype(np.int32))
    counts.append(count.astype(np.int32))
    first += len(batch)
  length = np.concatenate(lengths)
  passage, term, tf = map(np.concatenate, (passages, columns, counts))
  known, mean = np.count_nonzero(length), length.sum() / np.count_nonzero(length)
  df = np.bincount(term, minlength=len(column))
  idf = np.log1p((known - df + 0.5) / (df + 0.5))
  parts = idf[term] * tf / (tf + k1 * (1 - b + b * lucene_length(length)[passage] / mean))
  order = np.argsort(term, kind="stable")
  passage, parts, starts = passage[order], parts[order], np.concatenate([[0], np.cumsum(df)])
  scores = np.zeros((len(queries), first))
  for row, terms in enumerate(asked):
    for at in (column[name] for name in terms):
      span = slice(starts[at], starts[at + 1])
      scores[row, passage[span]] += parts[span]  # a passage stands once in a term's postings
  return scores


def lucene_length(lengths: np.ndarray) -> np.ndarray:
  """Lengths as Lucene's byte keeps them: the excess over 24 to four significant bits."""
  excess = np.maximum(lengths - 24, 0)
  shift = np.maximum(np.frexp(excess.astype(np.float64))[1] - 4, 0)
  return np.minimum(lengths, 24) + (excess >> shift << shift)


def against_exhaustive(
  ids: np.ndarray, scores: np.ndarray, exact: np.ndarray
) -> dict[str, float | int]:
  """Compares results [queries, k] with all scores.

  Returns:
    queries; `wrong`: ranks whose passage is not of that rank, ties aside; `same`: share of ranks
    with the very same passage; `score_error`: the largest relative difference of a score.
  """
  k = min(ids.shape[1], exact.shape[1])
  wrong = same = 0
  error = 0.0
  for row, found, given in zip(exact, ids[:, :k], scores[:, :k], strict=True):
    best = np.lexsort((np.arange(len(row)), -row))[:k]
    best = best[row[best] > 0]
    found, given = found[: len(best)], given[: len(best)]
    real = np.where(found < 0, 0, row[found])
    wrong += int(np.sum(np.abs(real - row[best]) > _TIE * row[best]))
    wrong += int(np.sum(found < 0)) + len(found) - len(set(found.tolist()))
    same += int(np.sum(found == best))
    error = max(error, float(np.max(np.abs(given - real) / row[best], initial=0)))
  return {"queries": len(ids), "wrong": wrong, "same": same / (len(ids) * k), "score_error": error}


def against_peer(
  ids: np.ndarray, scores: np.ndarray, their_ids: np.ndarray, their_scores: np.ndarray
) -> dict[str, float]:
  """Compares results of two engines, both [queries, k].

  Returns:
    `same_rank`: share of equal (query, rank) pairs; `shared`: share of passages that both found;
    `score_difference`: the largest relative one, rank by rank.
  """
  shared = [len({*a} & {*b}) for a, b in zip(ids.tolist(), their_ids.tolist(), strict=True)]
  difference = np.abs(scores - their_scores) / np.maximum(np.abs(scores), 1e-30)
  return {
    "same_rank": float(np.mean(ids == their_ids)),
    "shared": sum(shared) / ids.size,
    "score_difference": float(difference.max(initial=0)),
  }


def _batched(texts: Iterable[str]) -> Iterable[list[str]]:
  iterator = iter(texts)
  while batch := list(itertools.islice(iterator, _BATCH)):
    yield batch
