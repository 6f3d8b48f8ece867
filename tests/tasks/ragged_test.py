"""Ragged arrays against plain lists."""

import hypothesis
import numpy as np
from hypothesis import strategies as st

from tasks.ragged import Ragged

_SEQUENCES = st.lists(st.lists(st.integers(1, 1000), max_size=9), min_size=1, max_size=8)


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(_SEQUENCES, st.integers(1, 10), st.sampled_from([None, 7]), st.data())
def test_padded_cuts_and_fills_as_lists_do(sequences, length, end, data):
  ragged = Ragged.of(sequences)
  rows = data.draw(st.lists(st.integers(-1, len(sequences) - 1), min_size=1, max_size=6))
  expected = []
  for row in rows:
    whole = sequences[row] if row >= 0 else []
    cut = whole[:length]
    if end is not None and len(whole) > length:
      cut = [*cut[:-1], end]
    expected.append(cut + [0] * (length - len(cut)))
  result = ragged.padded(np.array(rows), length, end=end)
  assert result.dtype == np.int32
  assert result.tolist() == expected


def test_rows_may_have_any_shape():
  ragged = Ragged.of([[1, 2, 3], [4]])
  assert ragged.padded(np.array([[0, 1], [1, -1]]), 2).tolist() == [
    [[1, 2], [4, 0]],
    [[4, 0], [0, 0]],
  ]


@hypothesis.settings(max_examples=20, deadline=None)
@hypothesis.given(_SEQUENCES, _SEQUENCES)
def test_join_keeps_sequences(first, second):
  joined = Ragged.join([Ragged.of(first), Ragged.of([]), Ragged.of(second)])
  assert [joined[i].tolist() for i in range(len(joined))] == first + second
  assert joined.lengths.tolist() == [len(sequence) for sequence in first + second]


def test_nothing_at_all():
  empty = Ragged.of([])
  assert len(empty) == 0
  assert Ragged.of([[]]).padded(np.array([0, -1]), 2).tolist() == [[0, 0], [0, 0]]
  assert empty.padded(np.array([-1]), 2).tolist() == [[0, 0]]
