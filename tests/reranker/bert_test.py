"""BERT's encoder beside its parity (tests/convert/bert_test.py): padding, shortcuts, limits."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kard_jax.core import scanning
from kard_jax.core.files import InputError
from kard_jax.reranker import bert

SIZES = {"vocab_size": 40, "embed_dim": 16, "num_layers": 2, "num_heads": 2, "mlp_dim": 24}
NET = bert.Bert(**SIZES, max_positions=12)
TOKENS = jnp.array([[3, 9, 4, 0, 0], [5, 6, 7, 8, 9]], jnp.int32)


@pytest.fixture(scope="module")
def params():
  drawn = nn.unbox(jax.jit(NET.init)(jax.random.key(0), TOKENS))["params"]
  keys = iter(jax.random.split(jax.random.key(1), 1000))
  return jax.tree.map(lambda x: x + 0.3 * jax.random.normal(next(keys), x.shape), drawn)


def run(net, params, *inputs, **options):
  return np.asarray(net.apply({"params": params}, *inputs, **options))


def test_padding_has_no_effect_on_the_others(params):
  vectors = run(NET, params, TOKENS)
  wide = jnp.pad(TOKENS, ((0, 0), (0, 4)))
  real = TOKENS > 0
  np.testing.assert_allclose(run(NET, params, wide)[:, :5][real], vectors[real], atol=1e-5)
  changed = run(NET, params, jnp.where(TOKENS == 0, 1, TOKENS))
  assert np.abs(changed[0, :3] - vectors[0, :3]).max() > 1e-2


def test_the_first_vector_alone_is_the_first_of_all(params):
  first = run(NET, params, TOKENS, first_only=True)
  assert first.shape == (2, 1, 16)
  np.testing.assert_allclose(first[:, 0], run(NET, params, TOKENS)[:, 0], atol=1e-5)


def test_remat_and_bfloat16_give_the_same(params):
  vectors = run(NET, params, TOKENS)
  again = run(bert.Bert(**SIZES, max_positions=12, remat="full"), params, TOKENS)
  np.testing.assert_allclose(again, vectors, atol=1e-6)
  half = run(bert.Bert(**SIZES, max_positions=12, dtype=jnp.bfloat16), params, TOKENS)
  assert half.dtype == jnp.bfloat16
  difference = np.abs(half.astype(np.float32) - vectors)[TOKENS > 0].max()
  assert 0 < difference < 0.15


@pytest.mark.parametrize("remat", [pytest.param("none", marks=pytest.mark.slow), "full"])
def test_scanned_layers_give_the_same(params, remat):
  net = bert.Bert(**SIZES, max_positions=12, scan_layers=True, remat=remat)
  stacked = scanning.stack(params)
  assert "layers_0" not in stacked
  made = nn.unbox(jax.eval_shape(net.init, jax.random.key(0), TOKENS))["params"]
  assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, stacked)
  vectors = run(NET, params, TOKENS)
  np.testing.assert_allclose(run(net, stacked, TOKENS), vectors, atol=1e-6)
  np.testing.assert_allclose(run(net, stacked, TOKENS, first_only=True), vectors[:, :1], atol=1e-6)

  def loss(net, params):
    return jnp.sum(jnp.where(TOKENS[..., None] > 0, net.apply({"params": params}, TOKENS), 0) ** 3)

  mine, whole = jax.grad(loss, 1)(net, stacked), scanning.stack(jax.grad(loss, 1)(NET, params))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), mine, whole)


def test_rows_longer_than_the_table_are_told(params):
  with pytest.raises(InputError, match=r"max_positions = 12: rows have 13 tokens"):
    run(NET, params, jnp.ones((1, 13), jnp.int32))


def test_heads_that_do_not_divide_the_width_are_told():
  with pytest.raises(InputError, match=r"num_heads = 3 does not divide embed_dim = 16"):
    bert.Bert(**SIZES | {"num_heads": 3}).init(jax.random.key(0), TOKENS)
