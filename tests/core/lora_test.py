"""Adapters: made where asked, used with gradients that are right, merged to the same network."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kard_jax.core import lora as lora_lib
from kard_jax.core import selection
from kard_jax.core.files import InputError
from kard_jax.core.lora import Adapted, Lora
from kard_jax.student.objective import TokenCrossEntropy
from kard_jax.student.t5 import T5

NETWORK = T5(
  vocab_size=32,
  embed_dim=12,
  num_heads=2,
  head_dim=4,
  mlp_dim=16,
  num_encoder_layers=2,
  num_decoder_layers=1,
  dropout_rate=0.0,
)
EVERYWHERE = ("query", "value", "out", "mlp", "logits_dense")


def batch(seed=0):
  tokens = np.random.default_rng(seed).integers(2, 32, (3, 9)).astype(np.int32)
  target = tokens[:, 5:]
  return {
    "encoder_input_tokens": tokens[:, :5],
    "decoder_input_tokens": np.pad(target[:, :-1], ((0, 0), (1, 0))),
    "decoder_target_tokens": target,
    "decoder_loss_weights": np.ones((3, 4), np.int32),
  }


def adapted(network=NETWORK, **settings):
  settings = {"rank": 3, "alpha": 6.0, "dropout": 0.0} | settings
  objective = Adapted(TokenCrossEntropy(network), Lora(**settings))
  boxed = jax.jit(lambda: objective.init(jax.random.key(1), batch()))()
  return objective, boxed, nn_unbox(boxed)


def nn_unbox(tree):
  return jax.tree.map(lambda b: b.value, tree, is_leaf=lambda leaf: hasattr(leaf, "names"))


def disturbed(params):
  """B is no longer zero, so that adapters do something."""
  leaves = selection.flatten(params)
  for i, path in enumerate(sorted(leaves)):
    if path.endswith("lora_b"):
      leaves[path] = jax.random.normal(jax.random.key(i), leaves[path].shape)
  return selection.unflatten(leaves)


def names(params):
  return [path for path in selection.flatten(params) if lora_lib.is_adapter(path)]


def test_adapters_stand_beside_the_kernels_of_their_targets_with_their_axes():
  _, boxed, params = adapted(targets=("query", "encoder_decoder_attention/out"))
  adapters = [path for path in names(params) if path.endswith("lora_a")]
  assert len(adapters) == 2 + 2 + 1  # two encoder layers, two attentions and one out
  dense = boxed["decoder"]["layers_0"]["encoder_decoder_attention"]["out"]
  assert dense["lora_a"].names == ("heads", "kv", "lora_rank")
  assert dense["lora_b"].names == ("lora_rank", "embed")
  assert dense["lora_a"].value.shape == (2, 4, 3)
  bound = 8**-0.5  # of U(-1/sqrt(fan_in), 1/sqrt(fan_in)), fan_in = 2 x 4
  assert 0.7 * bound < np.abs(dense["lora_a"].value).max() <= bound


@functools.cache
def everywhere():
  """Adapters in all places, and parameters in which they do something."""
  objective, _, params = adapted(targets=EVERYWHERE)
  return objective, disturbed(params)


def base_of(params):
  return selection.split(params, lambda path: not lora_lib.is_adapter(path))


def total(objective, params):
  return jax.jit(lambda params: objective.loss(params, batch(), None).total)(params)


def test_it_begins_as_the_plain_network():
  objective, _, params = adapted(targets=EVERYWHERE)
  plain = nn_unbox(jax.jit(lambda: objective.objective.init(jax.random.key(1), batch()))())
  jax.tree.map(np.testing.assert_array_equal, base_of(params)[0], plain)
  loss = total(objective, params)
  np.testing.assert_allclose(loss, total(objective.objective, plain), rtol=1e-6)
  assert not np.allclose(total(objective, disturbed(params)), loss)


def test_merged_equals_adapters():
  objective, params = everywhere()
  tokens = [jnp.asarray(batch()[f"{side}_input_tokens"]) for side in ("encoder", "decoder")]
  apply = jax.jit(lambda params: NETWORK.apply({"params": params}, *tokens))
  merged = objective.lora.merge(params)
  plain, without = apply(merged), apply(base_of(params)[0])
  with objective.lora.active():
    adapters = jax.jit(lambda params: NETWORK.apply({"params": params}, *tokens))(params)
  assert not names(merged)
  scale = np.abs(plain).max()
  assert np.abs(adapters - plain).max() < 1e-5 * scale
  assert np.abs(without - plain).max() > 0.01 * scale


def test_scanned_layers_have_the_adapters_of_unrolled_ones():
  whole, unrolled = everywhere()
  network = NETWORK.clone(scan_layers=True)
  objective, boxed, params = adapted(network, targets=EVERYWHERE)
  a = boxed["encoder"]["layers"]["attention"]["query"]["lora_a"]
  assert a.names == ("layers", "embed", "lora_rank")
  leaves = selection.flatten(params)
  for path, leaf in selection.flatten(unrolled).items():  # the same numbers, stacked
    parts = path.split("/")
    if parts[1].startswith("layers_"):
      path = "/".join([parts[0], "layers", *parts[2:]])
      leaves[path] = leaves[path].at[int(parts[1].removeprefix("layers_"))].set(leaf)
    else:
      leaves[path] = leaf
  stacked = selection.unflatten(leaves)
  loss = total(whole, unrolled)
  np.testing.assert_allclose(total(objective, stacked), loss, rtol=1e-5)
  merged = objective.lora.merge(stacked)
  np.testing.assert_allclose(total(objective.objective, merged), loss, rtol=1e-5)


def test_gradients_are_those_through_the_merged_kernel():
  objective, params = everywhere()
  base, adapters = base_of(params)

  def by_adapters(adapters):
    return objective.loss(selection.join(base, adapters), batch(), None).total

  def by_merging(adapters):
    merged = objective.lora.merge(selection.join(base, adapters))
    return objective.objective.loss(merged, batch(), None).total

  got, wanted = jax.jit(lambda x: (jax.grad(by_adapters)(x), jax.grad(by_merging)(x)))(adapters)
  for path, leaf in selection.flatten(wanted).items():
    assert np.abs(leaf).max() > 0, path
    error = np.abs(selection.flatten(got)[path] - leaf).max()
    assert error < 1e-4 * np.abs(leaf).max(), path


def test_dropout_is_the_adapters_own_and_only_in_training():
  whole, params = everywhere()
  objective = Adapted(whole.objective, dataclasses.replace(whole.lora, dropout=0.5))
  loss = jax.jit(lambda params, key: objective.loss(params, batch(), key).total)
  one, same, other = (loss(params, jax.random.key(key)) for key in (1, 1, 2))
  assert one == same != other
  np.testing.assert_array_equal(total(objective, params), total(whole, params))


def test_bfloat16_base_and_activations():
  network = NETWORK.clone(dtype=jnp.bfloat16)
  objective, params = everywhere()
  objective = Adapted(TokenCrossEntropy(network), objective.lora)
  base, adapters = base_of(params)
  half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), base)
  loss, exact = total(objective, selection.join(half, adapters)), total(objective, params)
  np.testing.assert_allclose(loss, exact, rtol=0.02)
  assert loss.dtype == jnp.float32


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"rank": 0}, "rank = 0"),
    ({"dropout": 1.0}, "dropout = 1.0"),
    ({"targets": "query"}, "give a list of names"),
    ({"targets": ["q_proj"]}, r"no kernel 'q_proj'; its kernels are .*attention/query"),
  ],
)
def test_bad_settings(settings, message):
  with pytest.raises(InputError, match=message):
    adapted(**settings)
