"""An index in memory, made ready for the kernels: large pages, and lists whose bytes are codes.

With pages of 4 KB a third of a search's time goes into finding out where they are. And what a
passage gets of a term follows from the term frequency and the passage's length class, so a
posting's byte may name that pair (`native/code.c`): no length is looked up when lists are added.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from collections.abc import Callable

import numpy as np

CODES = 255  # pairs that have a code; the byte 255 stands for all others
_SAMPLED = 8  # blocks, about, whose pairs are counted
_COVERED = 0.9  # of the postings, at least
_LARGE_PAGE = 1 << 21


def in_large_pages(array: np.ndarray) -> np.ndarray:
  """A copy in memory for which the system is asked for pages of megabytes."""
  memory = mmap.mmap(-1, array.nbytes + _LARGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
  if hasattr(mmap, "MADV_HUGEPAGE"):
    with contextlib.suppress(OSError):  # a system without them
      memory.madvise(mmap.MADV_HUGEPAGE)
  copy = np.ndarray(array.shape, array.dtype, buffer=memory)
  copy[...] = array
  return copy


def code(
  library: ctypes.CDLL,
  struct: ctypes.Structure,
  parts: np.ndarray,
  data: np.ndarray,
  chunks: np.ndarray,
  check: Callable[[int], None],
) -> np.ndarray | None:
  """Puts codes into the lists of a segment, those of the most frequent pairs.

  Nothing is changed where too many postings would be left without: they are slower than all others.

  Args:
    library: the kernels.
    struct: the segment as they see it, not coded yet.
    parts: uint32 [rows, W], `Scoring.parts`.
    data: the segment's data, a copy; changed.
    chunks: its directory, a copy; lists with the byte 255 are marked.
    check: raises for a result of the kernels.

  Returns:
    uint32 [256], what each code's passages get of a term, 0 for the byte 255; or None.
  """
  counts = np.zeros(parts.shape, np.int64)
  reference = ctypes.byref(struct)
  step = max(1, struct.blocks // _SAMPLED)
  check(library.kj_count_pairs(reference, step, counts.ctypes.data))
  frequent = np.argsort(-counts, axis=None, kind="stable")[:CODES]
  if counts.ravel()[frequent].sum() < _COVERED * counts.sum():
    return None
  codes = np.full(parts.size, CODES, np.uint8)
  codes[frequent] = np.arange(len(frequent))
  of_code = np.zeros(CODES + 1, np.uint32)
  of_code[: len(frequent)] = parts.ravel()[frequent]
  check(library.kj_code(reference, codes.ctypes.data, data.ctypes.data, chunks.ctypes.data))
  return of_code
