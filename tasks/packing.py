"""Several examples in one row: which go together, and how they lie there, with T5X's names.

A step costs what its rows are long, padding or not. Which examples share a row is settled once for
a seed; an epoch is an order of the rows. So the batch of a step needs no other step. Examples of a
row never see one another: networks look at the segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int32

from tasks.ragged import Ragged

_OPEN = 1024  # rows that are looked at for room; the fullest is given up for a new one


class Laid(NamedTuple):
  """Sequences in rows.

  Attributes:
    tokens_BxT: the sequences of a row one behind another, then padding.
    segment_ids_BxT: 1, 2, ... by sequence; 0 at padding.
    positions_BxT: of each token in its sequence; 0 at padding.
    members_BxT: which sequence a token is of; -1 at padding.
  """

  tokens_BxT: np.ndarray
  segment_ids_BxT: np.ndarray
  positions_BxT: np.ndarray
  members_BxT: np.ndarray


def first_fit(sizes_NxF: Int[np.ndarray, "N F"], limits_F: Sequence[int]) -> Ragged:
  """Puts each example into the first row that has room for all of its features.

  Args:
    sizes_NxF: tokens of each feature, in the order in which examples are placed; none is larger
      than its limit.
    limits_F: tokens of a row.

  Returns:
    for each row, the positions of its examples in `sizes_NxF`; each example once.
  """
  limits = np.asarray(limits_F)
  if len(sizes_NxF) and (sizes_NxF > limits).any():
    raise ValueError(f"an example is longer than a row: {sizes_NxF.max(0)} > {limits}")
  rows: list[list[int]] = []
  left = np.zeros((_OPEN, len(limits)), np.int64)  # room of the open rows
  open_rows: list[int] = []
  for number, size in enumerate(sizes_NxF):
    fits = (left[: len(open_rows)] >= size).all(-1)
    place = int(fits.argmax()) if fits.any() else -1
    if place < 0:
      place = len(open_rows)
      if place == _OPEN:
        place = int(left.sum(-1).argmin())
        open_rows[place] = len(rows)
      else:
        open_rows.append(len(rows))
      left[place] = limits
      rows.append([])
    left[place] -= size
    rows[open_rows[place]].append(number)
  return Ragged.of(rows)


def lay(
  sequences: Ragged, rows: Sequence[Int[np.ndarray, " _"]], length: int, fill: int = 0
) -> Laid:
  """Lays sequences into rows.

  Args:
    sequences: what `rows` speaks of.
    rows: for each row, which sequences; their lengths together are at most `length`.
    length: of a row.
    fill: stands at padding.
  """
  counts = np.array([len(row) for row in rows])
  members = np.concatenate([np.asarray(row, np.int64) for row in rows] or [np.zeros(0, np.int64)])
  sizes = sequences.lengths[members]
  row_of = np.repeat(np.arange(len(rows)), counts)
  ends = np.cumsum(sizes)
  begins = np.concatenate([[0], ends])[np.cumsum(counts) - counts]  # tokens before each row
  starts = ends - sizes - np.repeat(begins, counts)
  within = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - sizes, sizes)
  places = np.repeat(row_of * length + starts, sizes) + within
  if len(members) and (starts + sizes > length).any():
    raise ValueError("the sequences of a row are longer than it")
  segments = np.concatenate([np.arange(1, count + 1) for count in counts] or [np.zeros(0, int)])

  def rows_of(values: np.ndarray, empty: int) -> Int32[np.ndarray, "B T"]:
    found = np.full(len(rows) * length, empty, np.int32)
    found[places] = values
    return found.reshape(len(rows), length)

  tokens = sequences.values[np.repeat(sequences.offsets[members], sizes) + within]
  return Laid(
    rows_of(tokens, fill),
    rows_of(np.repeat(segments, sizes), 0),
    rows_of(within, 0),
    rows_of(np.repeat(members, sizes), -1),
  )
