"""Queries in blocks: the same numbers, and less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kard_jax.core import attention, layers, query_blocks

KEY = jax.random.key(0)


def inputs(length):
  rng = np.random.default_rng(length)
  x_BxLxD = jnp.asarray(rng.normal(size=(2, length, 12)), jnp.float32)
  bias = jnp.asarray(rng.normal(size=(1, 3, length, length)), jnp.float32)
  mask_BxL = jnp.asarray(rng.random((2, length)) < 0.7).at[:, 0].set(True)
  return x_BxLxD, bias, mask_BxL


@pytest.mark.parametrize("length", [12, 14])  # three blocks; three and a rest
@pytest.mark.parametrize("masks", ["of keys", "of pairs"])
def test_t5s_attention(length, masks, monkeypatch):
  x, bias, mask_BxL = inputs(length)
  mask = mask_BxL[:, None, None]
  if masks == "of pairs":
    mask = jnp.tril(jnp.ones((length, length), bool)) & mask
  net = layers.Attention(num_heads=3, head_dim=4)
  params = net.init(jax.random.key(0), x, x, bias=bias, mask=mask)
  compare(net, params, monkeypatch, x, x, bias=bias, mask=mask)


@pytest.mark.parametrize("length", [12, 14])
def test_grouped_attention(length, monkeypatch):
  x, _, mask_BxL = inputs(length)
  mask = jnp.tril(jnp.ones((length, length), bool)) & mask_BxL[:, None]
  net = attention.GroupedAttention(num_heads=4, num_kv_heads=2, head_dim=3, scale=0.5)
  params = net.init(jax.random.key(0), x, mask)
  compare(net, params, monkeypatch, x, mask)


def compare(net, params, monkeypatch, *inputs, **options):
  loops = []
  monkeypatch.setattr(jax.lax, "map", lambda *args, map=jax.lax.map: loops.append(1) or map(*args))
  whole = net.apply(params, *inputs, **options)
  assert not loops
  monkeypatch.setattr(query_blocks, "BLOCK", 4)
  blocks = net.apply(params, *inputs, **options)
  assert loops  # it was in blocks
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), blocks, whole)


def test_scores_of_one_block_alone_are_kept(monkeypatch):
  length = 4 * query_blocks.BLOCK
  x = jax.ShapeDtypeStruct((1, length, 8), jnp.float32)
  net = layers.Attention(num_heads=2, head_dim=4)
  params = jax.eval_shape(net.init, KEY, x, x)

  def program():
    return str(jax.make_jaxpr(lambda params, x: net.apply(params, x, x))(params, x))

  whole, block = (f"f32[1,2,{rows},{length}]" for rows in (length, query_blocks.BLOCK))
  assert block in program()
  assert whole not in program()
  monkeypatch.setattr(query_blocks, "BLOCK", length)
  assert whole in program()
