import functools

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from kard_jax.core import decode, partitioning, streaming
from kard_jax.core.files import InputError
from tests.core import decode_test
from tests.core.decode_test import Chain

SETTINGS = {
  "sampler": decode.Sampler(top_k=8, top_p=0.95),
  "max_length": 12,
  "samples": 3,
  "rng": jax.random.key(3),
}


def _inputs(seed, count, longest):
  rng = np.random.default_rng(seed)
  tokens = rng.integers(1, decode_test.V, (count, longest)).astype(np.int32)
  lengths = rng.integers(1, longest + 1, count)
  return np.where(np.arange(longest) < lengths[:, None], tokens, 0), lengths


def test_batches_hold_every_input_once_among_its_like():
  lengths = np.random.default_rng(0).integers(1, 513, 1000)
  sizes = streaming.buckets(512)
  found = streaming.batches(lengths, size=64, buckets=sizes)
  assert sorted(np.concatenate([batch.places for batch in found])) == list(range(1000))
  for batch in found:
    assert lengths[batch.places].max() <= batch.lengths[0]
    assert len(batch.places) <= batch.rows
  shapes = {(batch.rows, batch.lengths) for batch in found}
  assert len(shapes) <= len(sizes) + 1
  padded = sum(batch.rows * batch.lengths[0] for batch in found)
  assert padded < 1.4 * lengths.sum()
  assert lengths.sum() < 0.6 * 1000 * 512  # what padding all to one length would cost
  assert found[-1].rows == 64
  few = streaming.batches(lengths[:9], size=64, buckets=sizes)
  assert [batch.rows for batch in few] == [16]
  assert [b.rows for b in streaming.batches(lengths[:9], size=64, buckets=sizes, shards=8)] == [16]
  assert [b.rows for b in streaming.batches(lengths[:1], size=6, buckets=sizes)] == [6]


@pytest.mark.parametrize("longest", [1, 48, 64, 100, 512, 2048])
def test_buckets_end_with_the_longest(longest):
  found = streaming.buckets(longest)
  assert found[-1] == longest
  assert list(found) == sorted(set(found))
  assert len(found) < 12


def test_batches_and_buckets_do_not_change_what_is_written():
  inputs, _ = _inputs(1, 37, 20)
  params = decode_test._params(end=0.5)
  write = functools.partial(streaming.write, Chain(), params, inputs, **SETTINGS)
  reports = []
  want = write(batch_size=37, lengths=(20,))
  got = write(batch_size=8, lengths=(5, 10), progress=lambda *counts: reports.append(counts))
  for one, other in zip(got, want, strict=True):
    np.testing.assert_array_equal(one, other)
  assert len(np.unique(want.lengths_BxS)) > 3
  done, tokens = np.sum(reports, axis=0)
  assert (done, tokens) == (37, want.lengths_BxS.sum())
  # Draws belong to ids, not to places.
  order = np.random.default_rng(2).permutation(37)
  again = streaming.write(
    Chain(), params, inputs[order], row_ids_N=order.astype(np.int32), batch_size=16, **SETTINGS
  )
  np.testing.assert_array_equal(again.tokens_BxSxT, want.tokens_BxSxT[order])


def test_inputs_that_have_ended_leave_the_batch():
  rows = []

  class Counting(Chain):
    def step(self, tokens_BxS, position, state):
      rows.append(tokens_BxS.shape[0])  # while it is traced: once a shape
      return super().step(tokens_BxS, position, state)

  params = decode_test._params(seed=4, end=-1.0)
  inputs, _ = _inputs(5, 32, 3)
  settings = SETTINGS | {"max_length": 150, "samples": 1}
  write = functools.partial(decode.decode, params=params, **settings)
  got = write(Counting(), input_tokens_BxL=inputs)
  assert set(rows) >= {32, 8}
  assert np.median(got.lengths_BxS) < 32 < 128 < got.lengths_BxS.max()
  for row in (0, 7, 31):
    alone = write(Chain(), input_tokens_BxL=inputs[row : row + 1], row_ids_B=np.array([row]))
    np.testing.assert_array_equal(got.tokens_BxSxT[row], alone.tokens_BxSxT[0])
    np.testing.assert_allclose(got.log_probs_BxS[row], alone.log_probs_BxS[0], rtol=1e-5)


def test_a_batch_is_split_over_the_mesh():
  inputs, _ = _inputs(6, 21, 9)
  params = decode_test._params(end=0.5)
  partitioner = partitioning.Partitioner(
    axes={"data": 4, "tensor": 2}, rules=[("batch", "data"), ("vocab", "tensor")]
  )
  write = functools.partial(streaming.write, Chain(), params, inputs, **SETTINGS)
  want, got = write(), write(batch_size=16, partitioner=partitioner)
  np.testing.assert_array_equal(got.tokens_BxSxT, want.tokens_BxSxT)
  with pytest.raises(InputError, match="BATCH_SIZE = 6"):
    write(batch_size=6, partitioner=partitioner)


def test_nothing_is_written_for_nothing():
  found = streaming.write(Chain(), decode_test._params(), np.zeros((0, 4), np.int32), **SETTINGS)
  assert found.tokens_BxSxT.shape == (0, 3, 12)


def test_quarters_of_a_batch_have_lengths_of_their_own_where_that_saves():
  lengths = np.array([500, 40, 30, 9, 110, 100, 250, 230])
  sizes = streaming.buckets(512)
  one = streaming.batches(lengths, size=8, buckets=sizes, mixed=True)
  assert [(batch.rows, batch.lengths) for batch in one] == [(8, (512, 256, 128, 64))]
  for changed, want in ((300, (512, 384, 256, 128)), (511, (512, 512, 256, 256))):
    lengths[6:] = changed
    (batch,) = streaming.batches(lengths, size=8, buckets=sizes, mixed=True)
    assert batch.lengths == want
  full = streaming.batches(np.full(8, 512), size=8, buckets=sizes, mixed=True)
  assert full[0].lengths == (512,)
  assert streaming.batches(lengths, size=8, buckets=sizes)[0].lengths == (512,)
  (split,) = streaming.batches(lengths, size=8, buckets=sizes, mixed=True, shards=4)
  assert split.lengths == (512,)  # two rows a quarter cannot be split in four


def test_eighths_of_a_large_batch_have_lengths_of_their_own():
  lengths, sizes = np.geomspace(512, 16, 64).astype(int), streaming.buckets(512)
  (batch,) = streaming.batches(lengths, size=64, buckets=sizes, mixed=True)
  assert batch.lengths == (512, 384, 256, 192, 128, 64, 64, 64)
  (split,) = streaming.batches(lengths, size=64, buckets=sizes, mixed=True, shards=4)
  assert split.lengths == (512, 256, 128, 64)  # eighths would have two rows a shard


@hypothesis.given(
  st.lists(st.integers(0, 512), min_size=1, max_size=200), st.sampled_from([8, 32, 64])
)
def test_every_input_fits_where_lengths_are_mixed(lengths, size):
  sizes = streaming.buckets(512)
  lengths = np.array(lengths)
  found = streaming.batches(lengths, size=size, buckets=sizes, mixed=True)
  plain = streaming.batches(lengths, size=size, buckets=sizes)
  assert sorted(np.concatenate([batch.places for batch in found])) == list(range(len(lengths)))
  for batch, whole in zip(found, plain, strict=True):
    assert batch.rows == whole.rows
    rows = np.repeat(batch.lengths, batch.rows // len(batch.lengths))
    assert len(rows) == batch.rows
    assert (lengths[batch.places] <= rows[: len(batch.places)]).all()
    assert rows.sum() <= whole.lengths[0] * batch.rows
    assert set(batch.lengths) <= set(sizes)
