"""Sequences of unequal length in two flat arrays: what tokenised examples are kept in.

A hundred thousand examples as Python lists of numbers would take thirty times the memory, and
padding them to the longest would waste most of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int, Shaped


@dataclasses.dataclass(frozen=True)
class Ragged:
  """Sequences one after another.

  Attributes:
    values: all sequences, joined.
    offsets: [n + 1] int64; sequence i is `values[offsets[i]:offsets[i + 1]]`.
  """

  values: np.ndarray
  offsets: np.ndarray

  @classmethod
  def of(cls, sequences: Iterable[Sequence[int] | np.ndarray], dtype: type = np.int32) -> Ragged:
    """Joins sequences."""
    arrays: list[np.ndarray] = [np.asarray(sequence, dtype) for sequence in sequences]
    return cls.of_lengths(
      np.concatenate(arrays) if arrays else np.zeros(0, dtype), [len(array) for array in arrays]
    )

  @classmethod
  def of_lengths(cls, values: np.ndarray, lengths: Sequence[int] | np.ndarray) -> Ragged:
    """Cuts joined sequences by their lengths."""
    return cls(values, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))

  @classmethod
  def join(cls, parts: Sequence[Ragged]) -> Ragged:
    """All sequences of one or more parts, in order."""
    return cls.of_lengths(
      np.concatenate([part.values for part in parts]),
      np.concatenate([part.lengths for part in parts]),
    )

  @classmethod
  def beside(cls, parts: Sequence[Ragged]) -> Ragged:
    """Sequence i of every part, joined, for each i; the parts have as many sequences."""
    sizes = np.stack([part.lengths for part in parts])
    rows = np.concatenate([np.repeat(np.arange(len(part)), part.lengths) for part in parts])
    values = np.concatenate([part.values for part in parts])
    return cls.of_lengths(values[np.argsort(rows, kind="stable")], sizes.sum(0))

  @property
  def lengths(self) -> np.ndarray:
    """[n] the length of each sequence."""
    return np.diff(self.offsets)

  def __len__(self) -> int:
    return len(self.offsets) - 1

  def __getitem__(self, index: int) -> np.ndarray:
    """One sequence."""
    return self.values[self.offsets[index] : self.offsets[index + 1]]

  def without_first(self) -> Ragged:
    """The sequences but for the first of each; empty ones stay empty."""
    kept = np.ones(len(self.values), bool)
    kept[self.offsets[:-1][self.lengths > 0]] = False
    return Ragged.of_lengths(self.values[kept], np.maximum(self.lengths - 1, 0))

  def without_last(self) -> Ragged:
    """The sequences but for the last of each; empty ones stay empty."""
    kept = np.ones(len(self.values), bool)
    kept[self.offsets[1:][self.lengths > 0] - 1] = False
    return Ragged.of_lengths(self.values[kept], np.maximum(self.lengths - 1, 0))

  def cut(self, length: int, *, end: int | None = None) -> Ragged:
    """The sequences, none longer than `length`; `end` as in `padded`."""
    kept = np.arange(len(self.values)) - np.repeat(self.offsets[:-1], self.lengths) < length
    result = Ragged.of_lengths(self.values[kept], np.minimum(self.lengths, length))
    if end is not None:
      result.values[result.offsets[1:][self.lengths > length] - 1] = end
    return result

  def padded(
    self, rows: Int[np.ndarray, "*rows"], length: int, *, end: int | None = None, fill: int = 0
  ) -> Shaped[np.ndarray, "*rows length"]:
    """Some sequences at one length: cut at the end, or filled up.

    Args:
      rows: which sequences; -1 stands for an empty one.
      length: of the result's last axis.
      end: what the last place of a sequence that was cut becomes (EOS, where a network expects
        every input to end in it); None leaves the cut as it is.
      fill: what stands behind a sequence.

    Returns:
      an array of `rows`' shape with one more axis.
    """
    real = rows >= 0
    starts = np.where(real, self.offsets[rows], 0)
    sizes = np.where(real, self.offsets[rows + 1] - starts, 0)
    columns = np.arange(length)
    inside = columns < sizes[..., None]
    if not len(self.values):
      return np.full(inside.shape, fill, self.values.dtype)
    places = np.where(inside, starts[..., None] + columns, 0)
    result = np.where(inside, self.values[places], np.full((), fill, self.values.dtype))
    if end is not None:
      result[..., -1] = np.where(sizes > length, end, result[..., -1])
    return result
