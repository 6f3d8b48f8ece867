import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from kard_jax.core import decode, partitioning, scanning, streaming
from kard_jax.core.files import InputError
from kard_jax.student import t5
from tests import meshes

NETWORK = t5.T5(
  vocab_size=32,
  embed_dim=12,
  num_heads=4,
  head_dim=5,
  mlp_dim=16,
  num_encoder_layers=1,
  num_decoder_layers=1,
  dropout_rate=0.2,
)
RULES = [("batch", "data"), ("heads", "tensor"), ("mlp", "tensor"), ("vocab", "tensor")]


@functools.cache
def _case():
  rng = np.random.default_rng(0)
  inputs_BxL = rng.integers(2, 32, (4, 9)).astype(np.int32)
  for row, length in enumerate([9, 6, 3, 8]):
    inputs_BxL[row, length:] = 0
  targets_BxT = rng.integers(2, 32, (4, 7)).astype(np.int32)
  targets_BxT[:, 0] = 0
  inputs_BxL, targets_BxT = jnp.asarray(inputs_BxL), jnp.asarray(targets_BxT)
  shapes = jax.eval_shape(NETWORK.init, jax.random.key(0), inputs_BxL, targets_BxT)["params"]
  boxed = jax.tree.map(  # quicker than to compile `init`
    lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape) * 0.4, leaf.dtype), shapes
  )
  return boxed, inputs_BxL, targets_BxT


@functools.cache
def _apply(network):
  return jax.jit(lambda params, *tokens: network.apply({"params": params}, *tokens))


def _logits(inputs_BxL, targets_BxT, network=NETWORK):
  return _apply(network)(nn.meta.unbox(_case()[0]), inputs_BxL, targets_BxT)


def test_every_parameter_names_its_axes():
  boxed = _case()[0]
  names = {"vocab", "embed", "heads", "kv", "mlp", "relpos_buckets"}
  for leaf in jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)):
    assert isinstance(leaf, nn.LogicallyPartitioned)
    assert len(leaf.names) == leaf.value.ndim
    assert set(leaf.names) <= names
    assert leaf.value.dtype == jnp.float32


def test_padding_of_the_input_does_not_matter():
  _, inputs_BxL, targets_BxT = _case()
  want = _logits(inputs_BxL, targets_BxT)
  longer = jnp.pad(inputs_BxL, ((0, 0), (0, 5)))
  np.testing.assert_allclose(_logits(longer, targets_BxT), want, rtol=1e-5, atol=1e-5)
  alone = _logits(inputs_BxL[2:3, :3], targets_BxT[2:3])
  np.testing.assert_allclose(alone, want[2:3], rtol=1e-5, atol=1e-5)
  other = jnp.where(longer == 0, 7, longer)
  assert not np.allclose(_logits(other, targets_BxT), want, atol=1e-2)


def test_a_position_sees_the_tokens_before_it_and_no_others():
  _, inputs_BxL, targets_BxT = _case()
  want = _logits(inputs_BxL, targets_BxT)
  got = _logits(inputs_BxL, targets_BxT.at[:, 4].set(2 + (targets_BxT[:, 4] - 1) % 30))
  np.testing.assert_array_equal(got[:, :4], want[:, :4])
  assert np.abs(got[:, 4:] - want[:, 4:]).max(axis=(0, 2)).min() > 1e-3


def test_dropout_is_there_only_when_asked_for():
  boxed, inputs_BxL, targets_BxT = _case()
  variables = {"params": nn.meta.unbox(boxed)}

  @jax.jit
  def dropped(key):
    return NETWORK.apply(
      variables, inputs_BxL, targets_BxT, deterministic=False, rngs={"dropout": key}
    )

  one, again, other = (
    dropped(jax.random.key(1)),
    dropped(jax.random.key(1)),
    dropped(jax.random.key(2)),
  )
  np.testing.assert_array_equal(one, again)
  assert not np.allclose(one, other, atol=1e-2)
  assert not np.allclose(one, _logits(inputs_BxL, targets_BxT), atol=1e-2)


def test_bfloat16_runs_finite_and_near_float32():
  boxed, inputs_BxL, targets_BxT = _case()
  network = NETWORK.clone(dtype="bfloat16")

  @functools.partial(jax.value_and_grad, has_aux=True)
  def run(params):
    logits = network.apply({"params": params}, inputs_BxL, targets_BxT)
    return jnp.mean(jnp.square(logits)), logits

  (_, logits), gradient = jax.jit(run)(nn.meta.unbox(boxed))
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
  assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype(jnp.float32)}
  assert logits.dtype == jnp.float32
  want = _logits(inputs_BxL, targets_BxT)
  assert 0 < np.abs(logits - want).max() < 0.05 * np.abs(want).max()


def test_sampled_texts_have_the_log_probability_of_the_full_forward():
  _, inputs_BxL, _ = _case()
  params = nn.meta.unbox(_case()[0])
  tokens, log_probs, _ = decode.decode(
    NETWORK,
    params,
    inputs_BxL,
    sampler=decode.Sampler(top_k=20, top_p=0.9),
    max_length=10,
    samples=3,
    rng=jax.random.key(5),
  )
  assert np.any(np.asarray(tokens) == 1)
  assert len(np.unique(np.asarray(tokens).reshape(12, 10), axis=0)) > 8
  for sample in range(3):
    targets = tokens[:, sample]
    logits = _logits(inputs_BxL, jnp.pad(targets[:, :-1], ((0, 0), (1, 0))))
    each = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
    ended = np.cumsum(targets == 1, axis=-1) - (targets == 1) > 0
    np.testing.assert_array_equal(np.asarray(targets)[ended], 0)
    want = np.where(ended, 0.0, each).sum(-1)
    np.testing.assert_allclose(log_probs[:, sample], want, rtol=1e-5, atol=1e-4)


def test_the_encoder_runs_once_for_all_samples():
  _, inputs_BxL, _ = _case()
  variables = {"params": nn.meta.unbox(_case()[0])}
  start = functools.partial(NETWORK.apply, samples=5, max_length=6, method="start")
  tokens_BxS, state = jax.eval_shape(start, variables, inputs_BxL)
  assert tokens_BxS.shape == (4, 5)
  assert state.memory[0].keys_BxHxKxL.shape == (4, 4, 5, 9)  # one row an input, not one a sample
  assert state.cache[0].keys_BxHxKxL.shape == (20, 4, 5, 6)


def test_sharded_equals_unsharded_in_training_and_decoding():
  boxed, inputs_BxL, targets_BxT = _case()
  params = nn.meta.unbox(boxed)

  def run(params):
    logits = NETWORK.apply({"params": params}, inputs_BxL, targets_BxT)
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1))

  def write(params):
    return decode.decode(
      NETWORK,
      params,
      inputs_BxL,
      sampler=decode.Sampler(top_k=8),
      max_length=6,
      samples=2,
      rng=jax.random.key(0),
    )

  want, texts = jax.jit(jax.value_and_grad(run))(params), write(params)
  mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
  shardings = nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, RULES)
  with mesh, nn.logical_axis_rules(RULES):
    sharded = jax.device_put(params, shardings)
    assert sharded["logits_dense"]["kernel"].addressable_shards[0].data.shape == (12, 16)
    got, sharded_texts = jax.jit(jax.value_and_grad(run))(sharded), write(sharded)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)
  np.testing.assert_array_equal(sharded_texts.tokens_BxSxT, texts.tokens_BxSxT)
  np.testing.assert_allclose(sharded_texts.log_probs_BxS, texts.log_probs_BxS, rtol=1e-5)


def test_packed_rows_give_the_logits_of_separate_ones():
  _, inputs_BxL, targets_BxT = _case()
  inputs, targets = np.asarray(inputs_BxL), np.asarray(targets_BxT)
  lengths, pad = [9, 6, 3, 8], 2
  pack = lambda rows: np.pad(np.concatenate(rows), (0, pad))[None]
  ids = lambda sizes: pack([np.full(n, i + 1) for i, n in enumerate(sizes)])
  positions = lambda sizes: pack([np.arange(n) for n in sizes])
  rows = [0, 1, 3]
  sizes = [lengths[i] for i in rows]
  features = {
    "encoder_segment_ids_BxL": ids(sizes),
    "encoder_positions_BxL": positions(sizes),
    "decoder_segment_ids_BxT": ids([7] * 3),
    "decoder_positions_BxT": positions([7] * 3),
  }
  packed_inputs = pack([inputs[i, : lengths[i]] for i in rows])
  packed_targets = pack([targets[i] for i in rows])
  params = {"params": nn.meta.unbox(_case()[0])}
  for network in (NETWORK, NETWORK.clone(scan_layers=True)):
    if network.scan_layers:
      params = {"params": scanning.stack(params["params"])}
    run = jax.jit(lambda params, *tokens, n=network, **kw: n.apply(params, *tokens, **kw))
    got = run(params, packed_inputs, packed_targets, **features)[0]
    want = np.asarray(_logits(inputs_BxL, targets_BxT))[rows].reshape(21, -1)
    np.testing.assert_allclose(got[:21], want, rtol=1e-5, atol=1e-5)
    assert np.isfinite(got).all()
  unaware = run(params, packed_inputs, packed_targets)[0]
  assert not np.allclose(unaware[7:21], want[7:21], atol=1e-2)  # segments matter


def test_packed_rows_need_both_kinds_of_segments():
  boxed, inputs_BxL, targets_BxT = _case()
  with pytest.raises(InputError, match="both encoder_segment_ids and decoder_segment_ids"):
    NETWORK.apply(
      {"params": nn.meta.unbox(boxed)},
      inputs_BxL,
      targets_BxT,
      decoder_segment_ids_BxT=jnp.ones_like(targets_BxT),
    )


def _mixed(lengths, sampler):
  """Inputs of such lengths in another order, and what one batch of one length writes for them."""
  inputs = np.random.default_rng(2).integers(2, 32, (len(lengths), max(lengths))).astype(np.int32)
  inputs[np.arange(inputs.shape[1]) >= np.array(lengths)[:, None]] = 0
  settings = {"sampler": sampler, "max_length": 6, "samples": 3, "rng": jax.random.key(1)}
  order = np.random.default_rng(3).permutation(len(lengths))
  params = nn.meta.unbox(_case()[0])
  want = decode.decode(NETWORK, params, inputs[order], row_ids_B=order.astype(np.int32), **settings)
  settings |= {"row_ids_N": order.astype(np.int32), "batch_size": len(lengths)}
  return params, inputs[order], settings, want


def _assert_same_texts(got, want):
  np.testing.assert_array_equal(got.tokens_BxSxT, want.tokens_BxSxT)
  np.testing.assert_allclose(got.log_probs_BxS, want.log_probs_BxS, rtol=1e-4, atol=1e-5)
  assert len(np.unique(got.tokens_BxSxT.reshape(-1, 6), axis=0)) > 8


@pytest.mark.parametrize(
  "sampler", [decode.Sampler(top_k=8), decode.Sampler(beams=3)], ids=["draws", "beams"]
)
def test_mixed_lengths_write_what_one_length_does(sampler):
  lengths, sizes = [16, 9, 13, 12, 8, 7, 8, 5, 4, 4, 3, 2, 2, 1, 2, 1], [2, 4, 8, 16]
  (batch,) = streaming.batches(np.array(lengths), size=16, buckets=sizes, mixed=True)
  assert batch.lengths == (16, 8, 4, 2)
  params, inputs, settings, want = _mixed(lengths, sampler)
  got = streaming.write(NETWORK, params, inputs, lengths=sizes, **settings)
  _assert_same_texts(got, want)


@pytest.mark.parametrize(
  "sampler",
  [pytest.param(decode.Sampler(top_k=8), marks=pytest.mark.slow), decode.Sampler(beams=3)],
  ids=["draws", "beams"],
)
def test_mixed_lengths_write_the_same_on_a_mesh(sampler):
  lengths, sizes = [16, 9, 13, 12, 8, 7, 8, 5, 4, 4, 3, 2, 2, 1, 2, 1], [2, 4, 8, 16]
  (batch,) = streaming.batches(np.array(lengths), size=16, buckets=sizes, mixed=True, shards=4)
  assert batch.lengths == (16, 8, 4, 2)
  params, inputs, settings, want = _mixed(lengths, sampler)
  mesh = partitioning.Partitioner(meshes.AXES, meshes.RULES)
  boxed = jax.eval_shape(NETWORK.init, jax.random.key(0), inputs, inputs)["params"]
  params = jax.device_put(params, mesh.shardings(boxed))
  got = streaming.write(NETWORK, params, inputs, lengths=sizes, partitioner=mesh, **settings)
  _assert_same_texts(got, want)
