"""Texts of at most 65,536 passages to one block of the index: terms, chunks, data, lengths.

What a term is in a block does not depend on other blocks, so blocks are made side by side, in any
order, and lie on disk until all are there. Most words of a block stood in those before, so what a
word comes to is kept from block to block, until that takes too much memory.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kard_jax.retrieval import native, postings
from kard_jax.retrieval.analyzer import Analyzer
from kard_jax.retrieval.vocabulary import Words

CHARACTERS = 1 << 26  # of text in a block at most, and at least one passage: bounds memory
WORD_BYTES = 200  # of memory that a distinct word takes in all tables, about

_TEXTS = 2048  # cut at a time
_NO_MEMORY = -2


class Block(NamedTuple):
  """A block, ready to be stored.

  Attributes:
    terms: uint8, its terms in UTF-8, sorted by their bytes, one after another.
    offsets: int64 [terms + 1], where each begins, and the end.
    chunks: CHUNK [terms]; `block` is 0 until the blocks are put together.
    data: uint8, the postings.
    lengths: int32 [passages], terms of each passage.
  """

  terms: np.ndarray
  offsets: np.ndarray
  chunks: np.ndarray
  data: np.ndarray
  lengths: np.ndarray


class Terms:
  """Texts to numbered terms; what every word came to is remembered, for all threads together.

  Args:
    analyzer: text to terms.
  """

  def __init__(self, analyzer: Analyzer):
    self._analyzer = analyzer
    self._words = analyzer.table()
    self._terms = Words(lines=True)  # not white space: U+202F stands inside words, as Lucene has it
    self._term_of_word = np.zeros(1 << 16, np.int32)
    self._known = 0  # words
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return len(self._words)

  def cut(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Cuts texts into words.

    Returns:
      int32 numbers of all words, one after another; int64 how many there are up to and with each
      text; int32 the term of each word, -1 for none; how many terms there are.
    """
    with self._lock:
      words, ends = self._words.cut(texts)
      self._learn()
      return words, ends, self._term_of_word, len(self._terms)

  def sorted(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Some terms in order, as `Words.sorted`."""
    with self._lock:
      return self._terms.sorted(numbers)

  def _learn(self) -> None:
    """Finds the terms of words that were not seen before."""
    total = len(self._words)
    if total == self._known:
      return
    if total > len(self._term_of_word):  # a new array: other threads still read the old one
      self._term_of_word = np.resize(self._term_of_word, max(total, 2 * len(self._term_of_word)))
    terms = self._analyzer.terms(self._words.new_words(self._known))
    numbers, _ = self._terms.cut(["\n".join(terms)])
    some = np.fromiter(map(bool, terms), bool, len(terms))
    self._term_of_word[self._known : total] = -1
    self._term_of_word[self._known : total][some] = numbers
    self._known = total


class Maker:
  """Makes blocks, one after another; each thread has its own."""

  def __init__(self) -> None:
    self._counter = _NativeCounter() if _library() is not None else _NumpyCounter()

  def __call__(self, texts: Sequence[str], terms: Terms) -> Block:
    """The block of these passages' texts, at most 65,536."""
    self._counter.clear()
    known = 0
    for start in range(0, len(texts), _TEXTS):
      words, ends, term_of_word, known = terms.cut(texts[start : start + _TEXTS])
      self._counter.add(words, ends, term_of_word, known)
    order, data, offsets = terms.sorted(self._counter.used(known))
    place = np.full(max(1, known), -1, np.int32)
    place[order] = np.arange(len(order), dtype=np.int32)
    return Block(data, offsets, *self._counter.encode(place, len(order)))


class _NativeCounter:
  """Counts terms passage by passage with the compiled kernel."""

  def __init__(self) -> None:
    library = _library()
    assert library is not None
    self._library, self._handle = library, library.kj_block_new()
    if not self._handle:
      raise MemoryError

  def __del__(self) -> None:
    if getattr(self, "_handle", None):
      self._library.kj_block_free(self._handle)

  def clear(self) -> None:
    self._library.kj_block_clear(self._handle)

  def add(self, words: np.ndarray, ends: np.ndarray, term_of_word: np.ndarray, terms: int) -> None:
    words, ends = np.ascontiguousarray(words, np.int32), np.ascontiguousarray(ends, np.int64)
    taken = self._library.kj_block_add(
      self._handle, _p(words), _p(ends), len(ends), _p(term_of_word), terms
    )
    if taken == _NO_MEMORY:
      raise MemoryError
    if taken != len(ends):
      raise ValueError(f"a block holds at most {postings.BLOCK} passages")

  def used(self, terms: int) -> np.ndarray:
    flags = np.zeros(max(1, terms), np.uint8)
    self._library.kj_block_used(self._handle, _p(flags), terms)
    return np.flatnonzero(flags)

  def encode(self, place: np.ndarray, terms: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    passages = self._library.kj_block_passages(self._handle)
    chunks, lengths = np.zeros(terms, postings.CHUNK), np.zeros(passages, np.int32)
    size = self._library.kj_block_plan(self._handle, _p(place), terms, _p(chunks), _p(lengths))
    if size == _NO_MEMORY:
      raise MemoryError
    data = np.zeros(size, np.uint8)
    if self._library.kj_block_write(self._handle, _p(place), terms, _p(chunks), _p(data)):
      raise MemoryError
    return chunks, data, lengths


class _NumpyCounter:
  """The same without a compiler."""

  def __init__(self) -> None:
    self.clear()

  def clear(self) -> None:
    self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    self._lengths: list[np.ndarray] = [np.zeros(0, np.int32)]
    self._passages = 0

  def add(self, words: np.ndarray, ends: np.ndarray, term_of_word: np.ndarray, terms: int) -> None:
    if self._passages + len(ends) > postings.BLOCK:
      raise ValueError(f"a block holds at most {postings.BLOCK} passages")
    passage = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
    term = term_of_word[words].astype(np.int64)
    passage, term = passage[term >= 0], term[term >= 0]
    self._lengths.append(np.bincount(passage, minlength=len(ends)).astype(np.int32))
    key, tfs = np.unique(passage * max(1, terms) + term, return_counts=True)
    number = key // max(1, terms) + self._passages
    self._parts.append((key % max(1, terms), number, tfs))
    self._passages += len(ends)

  def used(self, terms: int) -> np.ndarray:
    found = [part[0] for part in self._parts] or [np.zeros(0, np.int64)]
    return np.unique(np.concatenate(found))

  def encode(self, place: np.ndarray, terms: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    parts = self._parts or [(np.zeros(0, np.int64),) * 3]
    term, passages, tfs = (np.concatenate([part[i] for part in parts]) for i in range(3))
    lengths = np.concatenate(self._lengths)
    counts = postings.Counts(place[term], passages.astype(np.int32), tfs, lengths)
    return *postings.encode(counts, terms), lengths


def _p(array: np.ndarray) -> int:
  return array.ctypes.data


@functools.cache
def _library() -> ctypes.CDLL | None:
  """The kernels with the types of those used here."""
  pointer, number = ctypes.c_void_p, ctypes.c_int64
  functions: list[tuple[str, Any, list[Any]]] = [
    ("new", pointer, []),
    ("free", None, [pointer]),
    ("clear", None, [pointer]),
    ("passages", ctypes.c_int32, [pointer]),
    ("add", number, [pointer, pointer, pointer, number, pointer, number]),
    ("used", number, [pointer, pointer, number]),
    ("plan", number, [pointer, pointer, number, pointer, pointer]),
    ("write", number, [pointer, pointer, number, pointer, pointer]),
  ]
  return native.declare("kj_block_", functions)
