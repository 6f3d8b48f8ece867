"""Packing: every token once, examples apart, the same rows whatever the step; SeqIO's values."""

import dataclasses

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import seqio

from kard_jax.core.files import InputError
from tasks import packing
from tasks.batches import Batches
from tasks.ragged import Ragged

_LENGTHS = {"inputs": 240, "targets": 96}


@hypothesis.given(
  st.lists(st.tuples(st.integers(0, 9), st.integers(1, 6)), max_size=40), st.integers(1, 5)
)
def test_each_example_has_one_place_and_rows_hold_it(sizes, open_rows):
  array = np.array(sizes, int).reshape(-1, 2)
  before = packing._OPEN
  packing._OPEN = open_rows
  try:
    rows = packing.first_fit(array, (9, 6))
  finally:
    packing._OPEN = before
  assert sorted(rows.values.tolist()) == list(range(len(sizes)))
  for n in range(len(rows)):
    assert len(rows[n])
    assert (array[rows[n]].sum(0) <= (9, 6)).all()
  if open_rows == 5 and sizes:  # no row was given up that could take what came later
    assert len(rows) <= max(1, 2 * sum(a / 9 + b / 6 for a, b in sizes))


def test_the_first_row_with_room_is_taken():
  rows = packing.first_fit(np.array([[6], [5], [2], [4], [1]]), (9,))
  assert [rows[n].tolist() for n in range(len(rows))] == [[0, 2, 4], [1, 3]]
  with pytest.raises(ValueError, match="longer than a row"):
    packing.first_fit(np.array([[10]]), (9,))


@hypothesis.given(st.data())
def test_every_token_is_laid_once(data):
  sequences = data.draw(st.lists(st.lists(st.integers(1, 99), max_size=5), min_size=1, max_size=12))
  ragged = Ragged.of(sequences)
  rows = packing.first_fit(ragged.lengths[:, None], (7,))
  members = [rows[n] for n in range(len(rows))]
  laid = packing.lay(ragged, members, 7, fill=-1)
  for row, some in enumerate(members):
    for place, member in enumerate(some):
      here = laid.segment_ids_BxT[row] == place + 1
      assert laid.tokens_BxT[row][here].tolist() == sequences[member]
      assert laid.positions_BxT[row][here].tolist() == list(range(len(sequences[member])))
      assert (laid.members_BxT[row][here] == member).all()
    empty = laid.segment_ids_BxT[row] == 0
    assert empty.sum() == 7 - sum(len(sequences[member]) for member in some)
    assert (laid.tokens_BxT[row][empty] == -1).all()
    assert not laid.positions_BxT[row][empty].any()
    assert sorted(empty.tolist()) == empty.tolist()  # padding stands at the end


def test_an_empty_row_is_all_padding():
  laid = packing.lay(Ragged.of([[1]]), [np.array([], int), np.array([0])], 2, fill=-1)
  assert laid.tokens_BxT.tolist() == [[-1, -1], [1, -1]]
  with pytest.raises(ValueError, match="longer than it"):
    packing.lay(Ragged.of([[1, 2, 3]]), [np.array([0])], 2)


def _of(dataset, **arguments):
  settings = {"lengths": _LENGTHS, "batch_size": 4, "seed": 1, "pack": True} | arguments
  return Batches(dataset.task("kard"), "train", **settings)


def test_packed_rows_are_those_of_seqios_converter(tiny_files, register):
  """SeqIO packs neighbours until one does not fit; here all fit one row, in order."""
  dataset = register(tiny_files)
  lengths = {"inputs": 4000, "targets": 1000}
  examples = seqio.get_mixture_or_task(dataset.task("kard")).get_dataset(
    {"inputs": 99, "targets": 48}, "train", shuffle=False, num_epochs=1
  )
  converter = seqio.EncDecFeatureConverter(pack=True)
  (expected,) = list(converter(examples, lengths).as_numpy_iterator())
  found = _of(dataset, lengths=lengths, shuffle=False, batch_size=1)
  short = _of(dataset, lengths={"inputs": 99, "targets": 48}, pack=False, batch_size=24)
  assert found.rows == 1
  assert short.trimmed == 0
  (batch,) = found.epoch()
  assert sorted(batch) == sorted(expected)
  for name, array in expected.items():
    np.testing.assert_array_equal(batch[name][0], array, err_msg=name)


@pytest.mark.parametrize("decoder_only", [False, True])
def test_an_epoch_of_packed_rows_has_every_example_once(decoder_only, tiny_files, register):
  dataset = register(tiny_files)
  found = _of(dataset, decoder_only=decoder_only)
  alone = dataclasses.replace(found, pack=False)
  assert found.examples == alone.examples == 24
  assert found.rows < 24
  assert 0 < found.padding < alone.padding == found.padding_alone
  assert {n: (s.shape, s.dtype) for n, s in found.shapes.items()} == {
    n: (a.shape, a.dtype) for n, a in found(0).items()
  }
  wholes = [list(made.epoch()) for made in (found, alone)]
  weights, tokens = (
    [sum(batch[name].sum() for batch in epoch) for epoch in wholes]
    for name in ("decoder_loss_weights", "decoder_target_tokens")
  )
  assert weights[0] == weights[1]
  pad = 0 if not decoder_only else dataset.vocabulary.pad_id
  assert pad == 0
  assert tokens[0] == tokens[1]
  steps = [found.names(step) for step in range(found.rows)]
  rows = [row for names in steps for row in names]
  for epoch in range(4):  # of `rows` rows each: batches of 4 go over the ends of epochs
    here = rows[epoch * found.rows : (epoch + 1) * found.rows]
    ids = [id for row in here for id in row.split(" + ")]
    assert sorted(ids) == sorted(f"{id}/{sample}" for id, sample in tiny_files.kept("train"))
  assert rows[: found.rows] != rows[found.rows : 2 * found.rows]
  again = _of(dataset, decoder_only=decoder_only)
  np.testing.assert_equal(again(5), found(5))
  np.testing.assert_equal(again(5, slice(1, 3)), {n: a[1:3] for n, a in found(5).items()})
  assert _of(dataset, decoder_only=decoder_only, seed=2).names(0) != found.names(0)


def test_lists_are_not_packed(tiny_files, register):
  with pytest.raises(InputError, match="neither packed nor decoded"):
    Batches(
      register(tiny_files).task("rerank"),
      "train",
      lengths={"query": 9, "passages": 9},
      batch_size=2,
      pack=True,
    )
