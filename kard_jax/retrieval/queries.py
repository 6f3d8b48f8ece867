"""Texts of queries to terms of an index, many at a time."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kard_jax.retrieval.analyzer import Analyzer
from kard_jax.retrieval.segment import Segment

_MOST_WORDS = 1 << 20  # remembered


class Encoded(NamedTuple):
  """The terms of B queries that the index knows, one query after another; T in all, S segments.

  Attributes:
    ends: int64 [B], how many terms up to and with each query.
    counts: int64 [T], how often the term stands in its query.
    frequency: int64 [T], how many passages have it.
    ids: int32 [S, T], its id in each segment; -1 where the segment does not have it.
  """

  ends: np.ndarray
  counts: np.ndarray
  frequency: np.ndarray
  ids: np.ndarray


class Encoder:
  """Remembers the words of earlier queries, so that each is analysed and looked up once.

  Args:
    analyzer: the index's.
    segments: the index's.
  """

  def __init__(self, analyzer: Analyzer, segments: Sequence[Segment]):
    self._analyzer, self._segments = analyzer, segments
    self._lock = threading.Lock()
    self._begin()

  def __call__(self, queries: Sequence[str]) -> Encoded:
    """The known terms of each query; each stands once, with its count."""
    with self._lock:
      if len(self._words) > _MOST_WORDS:
        self._begin()
      words, ends = self._words.cut(queries)
      self._learn()
      terms = self._term_of_word[words].astype(np.int64)
      ids, frequency = self._ids[:, : len(self._terms)], self._frequency
      query = np.repeat(np.arange(len(queries)), np.diff(ends, prepend=0))
      query, terms = query[terms >= 0], terms[terms >= 0]
      width = max(1, len(self._terms))
      key, counts = np.unique(query * width + terms, return_counts=True)
      query, terms = key // width, key % width
      return Encoded(
        ends=np.cumsum(np.bincount(query, minlength=len(queries))).astype(np.int64),
        counts=counts,
        frequency=frequency[terms],
        ids=np.ascontiguousarray(ids[:, terms]),
      )

  def _begin(self) -> None:
    self._words = self._analyzer.table()
    self._terms: dict[str, int] = {}
    self._term_of_word = np.zeros(0, np.int32)
    self._ids = np.zeros((len(self._segments), 0), np.int32)
    self._frequency = np.zeros(0, np.int64)

  def _learn(self) -> None:
    """Looks new words up in the segments."""
    known = len(self._term_of_word)
    numbers, new = [], []
    for word in self._words.new_words(known):
      term = self._analyzer.term(word)
      number = self._terms.get(term, -2) if term else -1
      if number == -2:
        number = -1
        row = [-1 if (at := part.terms.find(term)) is None else at for part in self._segments]
        if max(row) >= 0:
          number = len(self._terms)
          new.append(row)
          self._terms[term] = number
      numbers.append(number)
    if not numbers:
      return
    self._term_of_word = np.concatenate([self._term_of_word, np.array(numbers, np.int32)])
    if new:
      ids = np.array(new, np.int32).T
      pairs = zip(self._segments, ids, strict=True)
      each = [[_frequency(part, int(term)) for term in row] for part, row in pairs]
      frequency = np.array(each, np.int64).sum(0)
      self._ids = np.concatenate([self._ids, ids], 1)
      self._frequency = np.concatenate([self._frequency, frequency])


def _frequency(part: Segment, term: int) -> int:
  if term < 0:
    return 0
  chunks = part.chunks["last"][part.term_chunks[term] : part.term_chunks[term + 1]]
  return int(chunks.sum(dtype=np.int64)) + len(chunks)
