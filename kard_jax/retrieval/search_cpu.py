"""Search on the processor's cores by the compiled kernels (`native/search.c`, `native/rescore.c`).

Queries are dealt to threads in strips; each strip walks the index once, block after block, so that
postings are read from memory once for many queries.
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import functools
import os
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from kard_jax.core import files
from kard_jax.retrieval import native, resident
from kard_jax.retrieval.index import REMEDY, Index
from kard_jax.retrieval.queries import Encoded
from kard_jax.retrieval.scoring import Scoring
from kard_jax.retrieval.segment import Segment

# An index up to this size is copied into memory, made ready there. A larger one is read block by
# block into large pages, once for a strip of many queries; for a few queries it is mapped.
_RESIDENT = 1 << 30
_FEW = 64  # queries
_STRIP, _STRIP_READ = 256, 1024  # queries at most that walk the index together
_STRIPS = 6  # for each thread, so that all end at about the same time
_NO_MEMORY, _DAMAGED = -2, -3


_TABLES = ("classes", "ones", "parts", "held_back", "class_of_length")


class _Segment(ctypes.Structure):
  """`kj_segment` of `native/score.h`."""

  _fields_ = (
    *[(name, ctypes.c_void_p) for name in ("data", "block_data", "block_passages")],
    ("blocks", ctypes.c_int64),
    *[(name, ctypes.c_void_p) for name in ("term_chunks", "chunks")],
    ("directory", ctypes.c_int64),
    *[(name, ctypes.c_void_p) for name in _TABLES],
    *[
      (name, ctypes.c_int64) for name in ("rows", "width", "longest", "first", "file", "file_data")
    ],
    ("coded", ctypes.c_void_p),
    ("plain", ctypes.c_void_p),
  )


def available() -> bool:
  """Whether the kernels could be compiled."""
  return _library() is not None


Weighted = tuple[Encoded, np.ndarray, np.ndarray]
"""Queries' terms, their weights, and what a unit of each query is worth."""


class Searcher:
  """The kernels, bound to an index; for any number of threads."""

  def __init__(self, index: Index):
    library = _library()
    assert library is not None
    self._library, self._where = library, index.directory
    in_memory = sum(part.data.nbytes + part.chunks.nbytes for part in index.segments) <= _RESIDENT
    # The kernels hold only addresses.
    self._keep = [_arrays(part, in_memory) for part in index.segments]
    self._segments = [
      _struct(part, arrays, index.scoring, number)
      for number, (part, arrays) in enumerate(zip(index.segments, self._keep, strict=True))
    ]
    self._coded: list[tuple[np.ndarray, np.ndarray]] = []
    for number in range(len(self._keep)) if in_memory else ():
      self._code(index, number)
    self._read = None if in_memory else [self._from_file(index, i) for i in range(len(self._keep))]

  def top_k(
    self, encode: Callable[[int, int], Weighted], queries: int, k: int, threads: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """ids int32 [B, k] and scores float32 [B, k]; see `bm25.top_k`.

    Args:
      encode: terms, weights and units of queries [low, high); called by the threads, so that one
        encodes while others search.
      queries: B.
      k: passages of each.
      threads: at most.
    """
    ids, scores = np.empty((queries, k), np.int32), np.empty((queries, k), np.float32)

    read = self._read is not None and queries >= _FEW
    segments = self._read if read and self._read else self._segments

    def search(low: int, high: int) -> None:
      encoded, weights, units = encode(low, high)
      heaps, held = np.zeros((high - low, k), np.uint64), np.zeros(high - low, np.int64)
      for number, struct in enumerate(segments):
        terms, weight, ends = _strip(encoded, weights, number, 0, high - low)
        self._check(
          self._library.kj_search(
            ctypes.byref(struct),
            _p(terms),
            _p(weight),
            _p(ends),
            high - low,
            k,
            _p(heaps),
            _p(held),
          )
        )
      self._library.kj_results(
        _p(heaps), _p(held), high - low, k, _p(units), _p(ids[low:high]),
        _p(scores[low:high]),
      )  # fmt: skip

    _deal(search, queries, threads, _STRIP_READ if read else _STRIP, 1 if read else _STRIPS)
    return ids, scores

  def rescore(
    self,
    encoded: Encoded,
    weights: np.ndarray,
    units: np.ndarray,
    passages: np.ndarray,
    threads: int,
  ) -> np.ndarray:
    """float32 [B, C]; see `bm25.rescore`."""
    wanted = np.ascontiguousarray(passages, np.int32)
    sums = np.zeros(wanted.shape, np.int32)

    def score(low: int, high: int) -> None:
      for number, struct in enumerate(self._segments):
        terms, weight, ends = _strip(encoded, weights, number, low, high)
        self._check(
          self._library.kj_rescore(
            ctypes.byref(struct), _p(terms), _p(weight), _p(ends), high - low,
            _p(wanted[low:high]), wanted.shape[1], _p(sums[low:high]),
          )
        )  # fmt: skip

    _deal(score, len(wanted), threads)
    # As the search does: to float32 first, then the scale, which is exact.
    return (sums.astype(np.float32) * units[:, None]).astype(np.float32)

  def _code(self, index: Index, number: int) -> None:
    """Has the lists of a segment's copy say codes instead of term frequencies."""
    struct, (data, *_, chunks) = self._segments[number], self._keep[number]
    plain, parts = index.segments[number].data, index.scoring.parts
    coded = resident.code(self._library, struct, parts, data, chunks, self._check)
    if coded is not None:
      self._coded.append((coded, plain))
      struct.coded, struct.plain = _p(coded), _p(plain)

  def _from_file(self, index: Index, number: int) -> _Segment:
    """The kernel's view of a segment whose blocks are to be read from its file."""
    path = index.segments[number].folder / "data.npy"
    file = os.open(path, os.O_RDONLY)
    weakref.finalize(self, os.close, file)
    struct = _Segment.from_buffer_copy(self._segments[number])
    struct.file = file
    struct.file_data = os.fstat(file).st_size - index.segments[number].data.nbytes
    return struct

  def _check(self, result: int) -> None:
    if result == _NO_MEMORY:
      raise MemoryError
    if result == _DAMAGED:
      raise files.InputError(f"{self._where}: the index is damaged; {REMEDY}")


def expand(
  index: Index, segment: int, low: int, high: int, first: int, last: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Postings of the terms [low, high) of a segment in its passages [first, last), term by term.

  Returns:
    int32 [P] passages, less `first`; uint32 [P] parts of the term's weight, in units of 2**-32;
    int64 [high - low], how many up to and with each term.
  """
  if not available():
    return _expand_numpy(index, segment, low, high, first, last)
  bound = searcher(index)
  library, struct = bound._library, ctypes.byref(bound._segments[segment])
  ends = np.zeros(high - low, np.int64)
  count = library.kj_expand(struct, low, high, first, last, None, None, _p(ends))
  bound._check(count)
  passages, parts = np.empty(count, np.int32), np.empty(count, np.uint32)
  library.kj_expand(struct, low, high, first, last, _p(passages), _p(parts), None)
  return passages, parts, ends


def _expand_numpy(
  index: Index, segment: int, low: int, high: int, first: int, last: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The same without a compiler."""
  passages, parts = [np.zeros(0, np.int32)], [np.zeros(0, np.uint32)]
  ends = np.zeros(high - low, np.int64)
  for term in range(low, high):
    found, tfs = index.segments[segment].postings(term)
    here = (found >= first) & (found < last)
    found, tfs = found[here], tfs[here]
    passages.append((found - first).astype(np.int32))
    parts.append(index.scoring.part(tfs, index.scoring.classes[segment][found]))
    ends[term - low] = len(found)
  return np.concatenate(passages), np.concatenate(parts), np.cumsum(ends)


def rescore_numpy(
  index: Index, encoded: Encoded, weights: np.ndarray, units: np.ndarray, wanted: np.ndarray
) -> np.ndarray:
  """What `Searcher.rescore` does, without a compiler."""
  sums = np.zeros(wanted.shape, np.int64)
  begins = np.concatenate([[0], encoded.ends[:-1]])
  for query, (begin, end) in enumerate(zip(begins, encoded.ends, strict=True)):
    for number, part in enumerate(index.segments):
      local = wanted[query].astype(np.int64) - part.first
      inside = (local >= 0) & (local < len(part))
      for at in range(begin, end):
        if (term := int(encoded.ids[number, at])) < 0:
          continue
        found, tfs = part.postings(term)
        place = np.minimum(np.searchsorted(found, local), len(found) - 1)
        hit = inside & (found[place] == local)
        classes = index.scoring.classes[number][local[hit]]
        parts = index.scoring.part(tfs[place[hit]], classes).astype(np.uint64)
        product = parts * np.uint64(weights[at]) + np.uint64(1 << 31) >> np.uint64(32)
        sums[query, hit] += product.astype(np.int64)
  return (sums.astype(np.float32) * units[:, None]).astype(np.float32)


_SEARCHERS: weakref.WeakKeyDictionary[Index, Searcher] = weakref.WeakKeyDictionary()


def searcher(index: Index) -> Searcher:
  """The searcher of an index, made once."""
  found = _SEARCHERS.get(index)
  if found is None:
    found = _SEARCHERS[index] = Searcher(index)
  return found


def cores(threads: int | None) -> int:
  """How many threads to use: all cores that this process may run on, unless told."""
  if threads is not None and threads < 1:
    raise ValueError(f"threads has to be at least 1, not {threads}")
  return threads or len(os.sched_getaffinity(0))


def _deal(
  work: Callable[[int, int], None],
  queries: int,
  threads: int,
  most: int = _STRIP,
  each: int = _STRIPS,
) -> None:
  """Calls `work` on strips of at most so many queries, side by side, some for each thread."""
  size = max(1, min(most, -(-queries // (threads * each))))
  strips = [(low, min(low + size, queries)) for low in range(0, queries, size)]
  if threads == 1 or len(strips) == 1:
    for strip in strips:
      work(*strip)
    return
  with concurrent.futures.ThreadPoolExecutor(min(threads, len(strips))) as pool:
    for done in [pool.submit(work, *strip) for strip in strips]:
      done.result()


def _strip(
  encoded: Encoded, weights: np.ndarray, segment: int, low: int, high: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """terms, weights and ends of some queries, without terms that the segment does not have."""
  begin = int(encoded.ends[low - 1]) if low else 0
  span = slice(begin, int(encoded.ends[high - 1]))
  terms = encoded.ids[segment, span]
  known = terms >= 0
  ends = np.concatenate([[0], np.cumsum(known)])[encoded.ends[low:high] - begin]
  return terms[known], weights[span][known], np.ascontiguousarray(ends, np.int64)


def _arrays(part: Segment, in_memory: bool) -> tuple[np.ndarray, ...]:
  place = resident.in_large_pages if in_memory else np.ascontiguousarray
  return (
    place(part.data),
    np.ascontiguousarray(part.block_data),
    np.ascontiguousarray(part.block_passages),
    np.ascontiguousarray(part.term_chunks),
    place(part.chunks),
  )


def _struct(
  part: Segment, arrays: tuple[np.ndarray, ...], scoring: Scoring, number: int
) -> _Segment:
  data, block_data, block_passages, term_chunks, chunks = map(_p, arrays)
  rows, width = scoring.parts.shape
  return _Segment(
    data, block_data, block_passages, len(part.block_data) - 1, term_chunks, chunks,
    len(part.chunks), _p(scoring.classes[number]), _p(scoring.ones[number]), _p(scoring.parts),
    _p(scoring.held_back), _p(scoring.class_of_length), rows, width, scoring.longest, part.first,
    -1, 0,
  )  # fmt: skip


def _p(array: np.ndarray) -> int:
  return array.ctypes.data


@functools.cache
def _library() -> ctypes.CDLL | None:
  """The kernels with the types of those used here."""
  pointer, number = ctypes.c_void_p, ctypes.c_int64
  functions: list[tuple[str, Any, list[Any]]] = [
    ("search", number, [pointer] * 4 + [number] * 2 + [pointer] * 2),
    ("count_pairs", number, [pointer, number, pointer]),
    ("code", number, [pointer] * 4),
    ("results", None, [pointer] * 2 + [number] * 2 + [pointer] * 3),
    ("rescore", number, [pointer] * 4 + [number, pointer, number, pointer]),
    ("expand", number, [pointer] + [number] * 4 + [pointer] * 3),
  ]
  return native.declare("kj_", functions)
