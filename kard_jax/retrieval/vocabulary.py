"""Many texts to numbered words: each distinct word gets a number when it is first seen."""

from __future__ import annotations

import ctypes
import functools
import itertools
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from kard_jax.retrieval import native, word_break

_OUT_OF_MEMORY = -2


class Words:
  """A growing table of distinct words, exactly as they stand in the texts.

  A compiled kernel does the work where there is one (other Python threads run meanwhile, but one
  table is for one thread at a time); else Python does, with the same numbers.
  """

  def __init__(self, *, white_space: bool = False, lines: bool = False):
    """An empty table of Unicode words, of what stands between white space, or of lines."""
    self._library = _library()
    self._python: dict[str, int] = {}
    if self._library is None:
      self._split = str.split if white_space else _lines if lines else word_break.words
      return
    # The kernel reads the classes for as long as it lives.
    if white_space or lines:
      self._classes = _separators(None if white_space else "\n")
    else:
      self._classes = word_break.class_table()
    self._handle = self._library.kj_words_new(self._classes.ctypes.data, int(white_space or lines))
    if not self._handle:
      raise MemoryError
    weakref.finalize(self, self._library.kj_words_free, self._handle)

  def __len__(self) -> int:
    if self._library is None:
      return len(self._python)
    return self._library.kj_words_count(self._handle)

  def cut(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Cuts texts into words.

    Returns:
      The numbers of all words one after another (int32 [words]), and how many there are up to the
      end of each text (int64 [texts]).
    """
    if self._library is None:
      return self._cut_in_python(texts)
    # A lone surrogate, which UTF-8 has no bytes for, passes: it lies between words.
    data = [text.encode("utf-8", "surrogatepass") for text in texts]
    offsets = np.fromiter(itertools.accumulate(map(len, data), initial=0), np.int64, len(data) + 1)
    joined = b"".join(data)
    ends = np.empty(len(data), np.int64)
    capacity = len(joined) // 4 + 64  # English has six bytes a word; no text more words than bytes
    while True:
      ids = np.empty(capacity, np.int32)
      count = self._library.kj_words_cut(
        self._handle,
        joined,
        offsets.ctypes.data,
        len(data),
        ids.ctypes.data,
        capacity,
        ends.ctypes.data,
      )
      if count == _OUT_OF_MEMORY:
        raise MemoryError
      if count >= 0:
        return ids[:count], ends
      capacity = len(joined)

  def new_words(self, first: int) -> list[str]:
    """The words from number `first` on."""
    if not 0 <= first <= len(self):
      raise IndexError(f"there is no word {first} in a table of {len(self)}")
    if self._library is None:
      return list(itertools.islice(self._python, first, None))
    offsets = np.empty(len(self) - first + 1, np.int64)
    data = np.empty(self._library.kj_words_bytes(self._handle), np.uint8)
    self._library.kj_words_get(self._handle, first, data.ctypes.data, offsets.ctypes.data)
    joined = data[: offsets[-1]].tobytes()
    # Only words cut at white space can hold a lone surrogate.
    spans = itertools.pairwise(offsets.tolist())
    return [joined[start:end].decode("utf-8", "surrogatepass") for start, end in spans]

  def sorted(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Some words in the order of their UTF-8 bytes.

    Args:
      numbers: of distinct words.

    Returns:
      int32, the numbers in order; uint8, the bytes of these words one after another; int64, where
      each begins, and the end.
    """
    order = np.array(numbers, np.int32)
    if self._library is None:
      words = list(self._python)
      encoded = sorted((words[number].encode("utf-8", "replace"), number) for number in numbers)
      offsets = np.cumsum([0, *(len(word) for word, _ in encoded)], dtype=np.int64)
      data = np.frombuffer(b"".join(word for word, _ in encoded), np.uint8)
      return np.array([number for _, number in encoded], np.int32), data, offsets
    if self._library.kj_words_sort(self._handle, order.ctypes.data, len(order)) == _OUT_OF_MEMORY:
      raise MemoryError
    offsets = np.empty(len(order) + 1, np.int64)
    self._library.kj_words_offsets(self._handle, order.ctypes.data, len(order), offsets.ctypes.data)
    data = np.empty(offsets[-1], np.uint8)
    self._library.kj_words_copy(self._handle, order.ctypes.data, len(order), data.ctypes.data)
    return order, data, offsets

  def _cut_in_python(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    numbers: list[int] = []
    ends = np.empty(len(texts), np.int64)
    for text, words in enumerate(map(self._split, texts)):
      numbers.extend(self._python.setdefault(word, len(self._python)) for word in words)
      ends[text] = len(numbers)
    return np.array(numbers, np.int32), ends


@functools.cache
def _separators(one: str | None) -> np.ndarray:
  """uint8 [0x110000]: 1 for a character, or for all at which `str.split` splits."""
  table = np.zeros(0x110000, np.uint8)
  # White space is all in the first plane.
  points = [ord(one)] if one else [point for point in range(0x10000) if chr(point).isspace()]
  table[points] = 1
  table.flags.writeable = False
  return table


def _lines(text: str) -> list[str]:
  return [line for line in text.split("\n") if line]


@functools.cache
def _library() -> ctypes.CDLL | None:
  """The kernels with the types of those used here."""
  pointer, number = ctypes.c_void_p, ctypes.c_int64
  functions: list[tuple[str, Any, list[Any]]] = [
    ("new", pointer, [pointer, ctypes.c_int32]),
    ("free", None, [pointer]),
    ("count", number, [pointer]),
    ("bytes", number, [pointer]),
    ("get", None, [pointer, number, pointer, pointer]),
    ("cut", number, [pointer, ctypes.c_char_p, pointer, number, pointer, number, pointer]),
    ("sort", number, [pointer, pointer, number]),
    ("offsets", None, [pointer, pointer, number, pointer]),
    ("copy", None, [pointer, pointer, number, pointer]),
  ]
  return native.declare("kj_words_", functions)
