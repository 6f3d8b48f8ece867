"""Postings of a block as they lie on disk; in NumPy what `native/postings.h` says in C.

A block is at most 65,536 passages. Each of its terms has one *chunk* of postings: a list of passage
numbers (two bytes each) and term frequencies, or, where many passages have the term, a bitmap of
two bits for each passage (it has the term; it has it more than once) and the frequencies of those
that have it more than once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

BLOCK = 1 << 16
BITMAP, WIDE = 1, 2  # bits of a chunk's kind

CHUNK = np.dtype(
  [
    ("offset", "<u4"),  # bytes from where the block's data begins
    ("block", "<u2"),
    ("last", "<u2"),  # passages that have the term, less one
    ("min_length", "<u2"),  # of these passages, in terms; at most 65,535
    ("max_tf", "u1"),  # 255: that or more
    ("kind", "u1"),
  ]
)

_BITMAP_FROM = 2048  # postings
_WORDS = BLOCK // 64
_RANKED = 4  # words of a bitmap for each rank
_RANKS_AT, _BITMAP_TFS_AT = _WORDS * 16, _WORDS * 16 + _WORDS // _RANKED * 2
_ALIGN = {0: 2, WIDE: 4, BITMAP: 8, BITMAP | WIDE: 8}


class Counts(NamedTuple):
  """What one block's passages hold: postings ordered by passage.

  Attributes:
    terms: int32, the place of each posting's term among the block's sorted terms.
    passages: int32, ascending.
    tfs: int64, at least 1.
    lengths: int32 [passages], terms of each passage, repeated ones too.
  """

  terms: np.ndarray
  passages: np.ndarray
  tfs: np.ndarray
  lengths: np.ndarray


def encode(counts: Counts, terms: int) -> tuple[np.ndarray, np.ndarray]:
  """The chunks (CHUNK [terms], `block` left 0) and data (uint8) of a block.

  The slower twin of `kj_block_plan` and `kj_block_write`: the same bytes.
  """
  order = np.argsort(counts.terms, kind="stable")
  term, passage, tf = counts.terms[order], counts.passages[order], counts.tfs[order]
  bounds = np.searchsorted(term, np.arange(terms + 1))
  chunks = np.zeros(terms, CHUNK)
  if terms:
    chunks["last"] = np.diff(bounds) - 1
    lengths = np.minimum(counts.lengths, 65535)[passage]
    chunks["min_length"] = np.minimum.reduceat(lengths, bounds[:-1])
    most = np.maximum.reduceat(tf, bounds[:-1])
    chunks["max_tf"] = np.minimum(most, 255)
    chunks["kind"] = np.where(most > 255, WIDE, 0)
    chunks["kind"] |= np.where(np.diff(bounds) >= _BITMAP_FROM, BITMAP, 0).astype(np.uint8)
  pieces, at = [], 0
  for place in range(terms):
    low, high, kind = bounds[place], bounds[place + 1], int(chunks["kind"][place])
    space = -at % _ALIGN[kind]
    chunks["offset"][place] = at + space
    piece = _chunk(passage[low:high], tf[low:high], kind)
    pieces += [b"\0" * space, piece]
    at += space + len(piece)
  pieces.append(b"\0" * (-at % 8))
  return chunks, np.frombuffer(b"".join(pieces), np.uint8)


def decode(chunk: np.void, data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The passages (int64, ascending, numbers in the block) and term frequencies of a chunk.

  Args:
    chunk: a CHUNK record.
    data: uint8, the block's data and what follows it.
  """
  at, count, kind = int(chunk["offset"]), int(chunk["last"]) + 1, int(chunk["kind"])
  tf_type = np.dtype("<u4" if kind & WIDE else "u1")
  if not kind & BITMAP:
    passages = np.frombuffer(data, "<u2", count, at).astype(np.int64)
    return passages, np.frombuffer(data, tf_type, count, _tfs_at(at + 2 * count, at, kind))
  bits = np.frombuffer(data, "<u8", _WORDS * 2, at).reshape(_WORDS, 2)
  has, repeated = (
    np.unpackbits(np.ascontiguousarray(bits[:, i]).view(np.uint8), bitorder="little") > 0
    for i in range(2)
  )
  tfs = has.astype(np.int64)
  stored = np.frombuffer(data, tf_type, int(repeated.sum()), _tfs_at(at + _BITMAP_TFS_AT, at, kind))
  tfs[repeated] = stored
  passages = np.flatnonzero(has)
  return passages, tfs[passages]


def _tfs_at(at: int, begin: int, kind: int) -> int:
  """Where the term frequencies lie: four-byte ones at a multiple of four from the chunk's begin."""
  return begin + -(-(at - begin) // 4) * 4 if kind & WIDE else at


def _chunk(passages: np.ndarray, tfs: np.ndarray, kind: int) -> bytes:
  if kind & BITMAP:
    bits = np.zeros((BLOCK, 2), np.uint8)
    bits[passages, 0] = 1
    bits[passages[tfs > 1], 1] = 1
    rows = np.ascontiguousarray(np.packbits(bits.T, axis=1, bitorder="little"))
    packed = rows.view("<u8").T  # [words, 2]
    before = np.cumsum(bits[:, 1], dtype=np.int64) - bits[:, 1]
    ranks = before[:: 64 * _RANKED].astype("<u2")
    head = np.ascontiguousarray(packed).tobytes() + ranks.tobytes()
    tfs = tfs[tfs > 1]
  else:
    head = passages.astype("<u2").tobytes()
  if kind & WIDE:
    return head + b"\0" * (-len(head) % 4) + tfs.astype("<u4").tobytes()
  return head + tfs.astype(np.uint8).tobytes()
