"""What a term is worth in a passage: BM25 as Lucene computes it, in whole numbers.

A passage of L terms, of which tf are the term, gets from it
`idf * tf / (tf + k1 * (1 - b + b * L / mean))`, with `idf = log(1 + (n - df + 0.5) / (df + 0.5))`
over the n passages that have any term (Robertson and Zaragoza 2009; Lucene's BM25Similarity since
version 8). Lucene keeps lengths in one byte: up to 39 exactly, then four significant bits, rounded
down.

Scores are summed in whole numbers: a query's terms are scaled together, by a power of two, to just
below 2**30, and each is rounded once. So sums do not depend on the order of adding, on threads,
segments or devices, and are within a few parts in 10**8 of exact arithmetic.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from kard_jax.core import files
from kard_jax.retrieval import postings
from kard_jax.retrieval.segment import Segment

LENGTHS = ("lucene", "exact")
SCALE_BITS = 30  # the sum of a query's weights is below 2 ** this

_SUM_BITS = 40  # behind the point, of a sum of weights
_ROWS = 16  # term frequencies whose parts are looked up; higher ones are computed


@dataclasses.dataclass(frozen=True, eq=False)
class Scoring:
  """What a search needs to know of lengths; W length classes.

  Attributes:
    passages: n, how many have a term.
    mean: their mean length.
    longest: the class of the longest passage.
    classes: of each segment, uint16 [N + BLOCK]: each passage's length class.
    ones: of each segment, uint16 [N + BLOCK]: what a term that stands once gets in each passage,
      rounded up, in units of 2**-16.
    held_back: float64 [W], `k1 * (1 - b + b * length / mean)` of each class.
    parts: uint32 [rows, W], `tf / (tf + held_back)` in units of 2**-32.
    class_of_length: uint16 [65536], of each length a class whose passages are no longer.
  """

  passages: int
  mean: float
  longest: int
  classes: tuple[np.ndarray, ...]
  ones: tuple[np.ndarray, ...]
  held_back: np.ndarray
  parts: np.ndarray
  class_of_length: np.ndarray

  def idf(self, frequency: np.ndarray) -> np.ndarray:
    """float64, from document frequencies."""
    return np.log1p((self.passages - frequency + 0.5) / (frequency + 0.5))

  def part(self, tfs: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """uint32: what of a term's weight these passages get, in units of 2**-32."""
    part = np.rint(tfs / (tfs + self.held_back[classes]) * 2.0**32)
    return np.minimum(part, 2.0**32 - 1).astype(np.uint32)

  def weights(
    self, idf: np.ndarray, counts: np.ndarray, ends: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """The terms of queries as whole numbers.

    Args:
      idf: float64 [T], of each distinct term of all queries, one query after another.
      counts: how often it stands in its query.
      ends: int64 [B], how many terms up to and with each query.

    Returns:
      int32 [T] weights, and float64 [B], what one unit of each query is worth, a power of two.
    """
    weights = idf * counts
    # In whole numbers, so that a query's scale depends neither on the order of its terms nor on the
    # queries beside it. Where the sum over all queries overflows, differences are still right.
    whole = np.concatenate([[0], np.rint(weights * 2.0**_SUM_BITS)]).astype(np.int64).cumsum()
    sums = np.maximum(np.diff(whole[np.concatenate([[0], ends])]), 1) * 2.0**-_SUM_BITS
    exponents = SCALE_BITS - np.ceil(np.log2(sums) + 1e-9)
    scaled = np.rint(weights * np.repeat(2.0**exponents, np.diff(ends, prepend=0)))
    # The rarest case of a term in nearly all of millions of passages: a match still has to count.
    least = np.ceil(1 + self.held_back[self.longest]) + 1
    return np.maximum(scaled, least).astype(np.int32), 2.0**-exponents


def make(segments: Sequence[Segment], *, k1: float, b: float, lengths: str) -> Scoring:
  """The scoring of an index.

  Raises:
    InputError: more than 65,536 different lengths with `lengths="exact"`.
  """
  passages = sum(int(segment.header["with_terms"]) for segment in segments)
  total = sum(int(segment.header["total_length"]) for segment in segments)
  mean = float(np.float32(total / passages)) if passages else 1.0
  if lengths == "lucene":
    decoded = lucene_lengths()
    of_length = np.searchsorted(decoded, np.arange(1 << 16), side="right") - 1
    classify = lambda values: np.searchsorted(decoded, values, side="right") - 1
  else:
    decoded = np.unique(np.concatenate([np.unique(segment.lengths) for segment in segments]))
    if len(decoded) > 1 << 16:
      raise files.InputError(
        f"{segments[0].folder.parent}: passages of more than 65,536 different lengths cannot be"
        " scored with exact lengths; cut them, or use lengths='lucene'"
      )
    of_length = np.maximum(np.searchsorted(decoded, np.arange(1 << 16), side="right") - 1, 0)
    classify = lambda values: np.searchsorted(decoded, values)
  held_back = k1 * (1 - b + b * decoded / mean)
  classes_of = tuple(_classes(segment.lengths, classify) for segment in segments)
  one = np.minimum(np.ceil(2.0**16 / (1 + held_back)), 2.0**16 - 1).astype(np.uint16)
  scoring = Scoring(
    passages=passages,
    mean=mean,
    longest=max(int(array.max(initial=0)) for array in classes_of),
    classes=classes_of,
    ones=tuple(one[array] for array in classes_of),
    held_back=held_back,
    parts=np.zeros((0, 0), np.uint32),
    class_of_length=of_length.astype(np.uint16),
  )
  tfs = np.repeat(np.arange(_ROWS)[:, None], len(decoded), 1)
  classes = np.repeat(np.arange(len(decoded))[None], _ROWS, 0)
  with np.errstate(invalid="ignore"):  # 0 / 0 where k1 is 0
    parts = scoring.part(np.maximum(tfs, 1), classes) * (tfs > 0)
  return dataclasses.replace(scoring, parts=np.ascontiguousarray(parts, np.uint32))


def lucene_lengths() -> np.ndarray:
  """The lengths that Lucene's byte can stand for, ascending: int64 [256]."""
  small = list(range(24 + 8))
  # Above 24: a bit that is always 1, three that are kept, and how far they are shifted.
  large = [24 + ((8 | code & 7) << (code // 8 - 1)) for code in range(8, 256 - 24)]
  return np.array(small + large, np.int64)


def _classes(lengths: np.ndarray, classify) -> np.ndarray:  # type: ignore[no-untyped-def]
  classes = np.zeros(len(lengths) + postings.BLOCK, np.uint16)  # readers may look past the last
  for start in range(0, len(lengths), 1 << 20):
    part = lengths[start : start + (1 << 20)]
    classes[start : start + len(part)] = np.maximum(classify(part), 0)
  return classes
