import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from kard_jax.core import layers, norms, position_bias, t5_encoder

ENCODER = t5_encoder.Encoder(num_layers=1, num_heads=4, head_dim=6, mlp_dim=16)


def _random(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def _encoder_case():
  x_BxLxD = _random(4, 9, 10)
  mask_BxL = jnp.arange(9) < jnp.array([9, 5, 7, 1])[:, None]
  return _params(ENCODER, x_BxLxD, mask_BxL), x_BxLxD, mask_BxL


def _params(module, *inputs):
  """Random parameters of the right shapes: quicker than to compile `init`."""
  shapes = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), *inputs))
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape) * 0.5, x.dtype), shapes)


def test_rms_norm_is_x_over_its_root_mean_square():
  x = _random(3, 5) * 7 + 2
  norm = norms.RMSNorm()
  scale = _random(5, seed=1)
  got = norm.apply({"params": {"scale": scale}}, x)
  x = np.asarray(x, np.float64)
  want = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * np.asarray(scale)
  np.testing.assert_allclose(got, want, rtol=1e-6)


def test_rms_norm_takes_its_mean_in_float32():
  x = _random(3, 50).astype(jnp.bfloat16)
  variables = {"params": {"scale": jnp.ones(50)}}
  wide = np.asarray(x, np.float64)
  want = wide / np.sqrt(np.mean(wide**2, axis=-1, keepdims=True) + 1e-6)
  np.testing.assert_allclose(norms.RMSNorm().apply(variables, x), want, rtol=1e-5)
  assert norms.RMSNorm(dtype="bfloat16").apply(variables, x).dtype == jnp.bfloat16


def test_embedding_looks_up_attends_and_shows_a_token_outside_its_table():
  table = _random(6, 4)
  embedding = layers.Embedding(6, 4)
  variables = {"params": {"embedding": table}}
  tokens = jnp.array([[0, 5], [3, 3]])
  np.testing.assert_array_equal(embedding.apply(variables, tokens), table[tokens])
  x = _random(2, 3, 4, seed=1)
  got = embedding.apply(variables, x, method="attend")
  np.testing.assert_allclose(got, np.einsum("bld,vd->blv", x, table), rtol=1e-5)
  assert np.isnan(embedding.apply(variables, jnp.array([6]))).all()


@pytest.mark.parametrize(
  ("shape", "features", "axes", "formula"),
  [
    ((2, 3, 4), (5, 6), ("embed", "heads", "kv"), "bld,dhk->blhk"),
    ((2, 3, 5, 6), (4,), ("heads", "kv", "embed"), "blhk,hkd->bld"),
    ((3, 4), (5,), ("embed", "mlp"), "ld,df->lf"),
  ],
)
def test_dense_sums_over_the_axes_it_names(shape, features, axes, formula):
  x = _random(*shape)
  dense = layers.Dense(features, axes)
  boxed = dense.init(jax.random.key(0), x)["params"]["kernel"]
  assert boxed.names == axes
  kernel = _random(*boxed.value.shape, seed=1)
  got = dense.apply({"params": {"kernel": kernel}}, x)
  np.testing.assert_allclose(got, np.einsum(formula, x, kernel), rtol=1e-5, atol=1e-5)


def test_dense_starts_with_the_variance_it_is_told():
  x = jnp.zeros((1, 64))
  kernel = layers.Dense((32, 16), ("embed", "heads", "kv"), scale=0.25).init(jax.random.key(0), x)
  assert np.var(kernel["params"]["kernel"].value) == pytest.approx(0.25 / 64, rel=0.05)


def test_bfloat16_keeps_float32_parameters_and_can_give_float32():
  x = _random(2, 3, 64)
  dense = layers.Dense((8,), ("embed", "vocab"), dtype="bfloat16", output_dtype=jnp.float32)
  y, params = dense.init_with_output(jax.random.key(0), x)
  kernel = params["params"]["kernel"].value
  assert (y.dtype, kernel.dtype) == (jnp.float32, jnp.float32)
  assert not np.array_equal(y, y.astype(jnp.bfloat16))  # the sums are not rounded to bfloat16
  assert (
    layers.Dense((8,), ("embed", "vocab"), dtype="bfloat16")
    .init_with_output(jax.random.key(0), x)[0]
    .dtype
    == jnp.bfloat16
  )


def _bucket(distance, bidirectional, num_buckets, max_distance):
  """T5's rule for one distance, written from the paper: half exact, half logarithmic."""
  base = 0
  if bidirectional:
    num_buckets //= 2
    base = num_buckets if distance > 0 else 0
    distance = abs(distance)
  else:
    distance = max(-distance, 0)
  exact = num_buckets // 2
  if distance < exact:
    return base + distance
  share = np.log(np.float32(distance) / exact) / math.log(max_distance / exact)
  return base + min(exact + int(np.float32(share * (num_buckets - exact))), num_buckets - 1)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_follow_the_rule(bidirectional):
  distances = np.arange(-400, 401)
  got = position_bias.relative_buckets(
    jnp.asarray(distances), bidirectional=bidirectional, num_buckets=32, max_distance=128
  )
  want = [_bucket(int(distance), bidirectional, 32, 128) for distance in distances]
  np.testing.assert_array_equal(got, want)
  assert set(want) == set(range(32)) - ({16} if bidirectional else set())  # 16: 0 to the right


def test_position_bias_depends_on_the_distance_alone():
  bias = position_bias.RelativePositionBias(num_heads=2, bidirectional=False)
  variables = bias.init(jax.random.key(0), jnp.arange(6), jnp.arange(6))
  full = bias.apply(variables, jnp.arange(6), jnp.arange(6))
  assert full.shape == (1, 2, 6, 6)
  assert full[0, 0, 3, 1] == full[0, 0, 5, 3] != full[0, 0, 5, 2]
  one = bias.apply(variables, jnp.array([4]), jnp.arange(6))  # a step of decoding
  np.testing.assert_array_equal(one[:, :, 0], full[:, :, 4])


def test_attention_is_the_formula():
  attention = layers.Attention(num_heads=3, head_dim=4)
  x, memory = _random(2, 5, 6), _random(2, 7, 8, seed=1)
  bias = _random(1, 3, 5, 7, seed=2)
  mask = jnp.asarray(np.random.default_rng(3).random((2, 1, 5, 7)) < 0.6).at[..., 0].set(True)
  variables = _params(attention, x, memory)
  got = jax.jit(attention.apply)(variables, x, memory, bias=bias, mask=mask)
  w = {name: np.asarray(p["kernel"], np.float64) for name, p in variables["params"].items()}
  scores = np.einsum("bqd,dhk,ble,ehk->bhql", x, w["query"], memory, w["key"]) + bias
  scores = np.where(mask, scores, -np.inf)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  want = np.einsum("bhql,ble,ehk,hkd->bqd", weights, memory, w["value"], w["out"])
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_attention_to_nothing_is_finite_and_so_is_its_gradient():
  attention = layers.Attention(num_heads=2, head_dim=4)
  x = _random(2, 3, 6)
  nothing = jnp.zeros((2, 1, 1, 3), bool)
  variables = _params(attention, x, x)
  gradient = jax.jit(jax.grad(lambda v: attention.apply(v, x, x, mask=nothing).sum()))(variables)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
  ("activations", "names"),
  [(("gelu", "linear"), {"wi_0", "wi_1", "wo"}), (("relu",), {"wi", "wo"})],
)
def test_mlp_multiplies_its_activations(activations, names):
  x = _random(2, 3, 4)
  mlp = layers.Mlp(5, activations)
  variables = _params(mlp, x)
  w = {name: np.asarray(p["kernel"], np.float64) for name, p in variables["params"].items()}
  assert set(w) == names
  if len(activations) == 2:
    h = x @ w["wi_0"]
    h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3))) * (x @ w["wi_1"])
  else:
    h = np.maximum(x @ w["wi"], 0)
  np.testing.assert_allclose(jax.jit(mlp.apply)(variables, x), h @ w["wo"], rtol=1e-4, atol=1e-5)


def test_dropout_drops_a_feature_at_all_positions_of_a_row():
  x = jnp.ones((3, 8, 50))
  dropout = layers.Dropout(0.4)
  np.testing.assert_array_equal(dropout.apply({}, x, True), x)
  y = dropout.apply({}, x, False, rngs={"dropout": jax.random.key(0)})
  np.testing.assert_array_equal(y, np.broadcast_to(y[:, :1], y.shape))
  assert not np.array_equal(y[0], y[1])  # another row, another mask
  assert np.mean(y == 0) == pytest.approx(0.4, abs=0.12)
  np.testing.assert_allclose(y[y > 0], 1 / 0.6, rtol=1e-6)


def test_encoder_does_not_see_padding():
  params, x_BxLxD, mask_BxL = _encoder_case()
  encode = jax.jit(lambda x, mask: ENCODER.apply(params, x, mask))
  want = encode(x_BxLxD, mask_BxL)
  got = encode(jnp.where(mask_BxL[..., None], x_BxLxD, 100.0), mask_BxL)
  np.testing.assert_allclose(got[mask_BxL], want[mask_BxL], rtol=1e-5, atol=1e-6)
  longer = jnp.pad(x_BxLxD, ((0, 0), (0, 4), (0, 0)), constant_values=3.0)
  got = encode(longer, jnp.pad(mask_BxL, ((0, 0), (0, 4))))[:, :9]
  np.testing.assert_allclose(got[mask_BxL], want[mask_BxL], rtol=1e-5, atol=1e-6)
  ones = encode(x_BxLxD, jnp.ones_like(mask_BxL))
  assert not np.allclose(ones[1, :5], want[1, :5], atol=1e-2)  # the mask matters


def test_remat_changes_neither_values_nor_gradients():
  params, x_BxLxD, mask_BxL = _encoder_case()

  def loss(params, encoder):
    return jnp.sum(encoder.apply(params, x_BxLxD, mask_BxL) ** 2)

  run = jax.jit(jax.value_and_grad(loss), static_argnums=1)
  plain, remat = run(params, ENCODER), run(params, ENCODER.clone(remat="full"))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), plain, remat)
  assert "remat" in str(jax.make_jaxpr(lambda p: loss(p, ENCODER.clone(remat="full")))(params))


def test_sharded_encoder_equals_unsharded():
  params, x_BxLxD, mask_BxL = _encoder_case()

  def run(params):
    return jnp.sum(ENCODER.apply(params, x_BxLxD, mask_BxL) ** 2)

  want = jax.jit(jax.value_and_grad(run))(params)
  boxed = jax.eval_shape(lambda: ENCODER.init(jax.random.key(0), x_BxLxD, mask_BxL))
  mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
  rules = [("batch", "data"), ("heads", "tensor"), ("mlp", "tensor"), ("vocab", "tensor")]
  shardings = nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, rules)
  with mesh, nn.logical_axis_rules(rules):
    sharded = jax.device_put(params, shardings)
    query = sharded["params"]["layers_0"]["attention"]["query"]["kernel"]
    assert query.addressable_shards[0].data.shape == (10, 2, 6)
    got = jax.jit(jax.value_and_grad(run))(sharded)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), got, want)
