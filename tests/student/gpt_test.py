"""The decoder-only student: packed rows, padding, shared prompts, meshes, and what is refused.

That its numbers are Hugging Face's is told by tests/convert/decoders_test.py.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kard_jax.core import decode, partitioning, rope, scanning
from kard_jax.core.files import InputError
from kard_jax.student import gpt, objective
from tests import meshes

SIZES = {"vocab_size": 51, "num_layers": 3, "embed_dim": 16, "num_heads": 4, "mlp_dim": 20}
LEARNED = gpt.GPT(**SIZES, max_positions=24, position_offset=2, dropout_rate=0.0)
ROTARY = gpt.GPT(
  **SIZES,
  num_kv_heads=2,
  head_dim=6,
  mlp_activations=("silu", "linear"),
  norm="rms_norm",
  qk_norm=True,
  scale_by_layer=True,
  rope=rope.Rope(),
  rotary_layers=(True, False, True),
  window=4,
  window_layers=(True, True, False),
  tied_embeddings=False,
  dropout_rate=0.0,
)
NETWORKS = {"learned": LEARNED, "rotary": ROTARY}
networks = pytest.mark.parametrize("name", NETWORKS)
GREEDY = decode.Sampler(greedy=True, eos_id=-1, pad_id=-1)


@functools.cache
def _params(name):
  """Parameters with wide embeddings and biases, so that all matter."""
  fresh = NETWORKS[name].init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
  leaves, tree = jax.tree.flatten(nn.meta.unbox(fresh))
  keys = jax.random.split(jax.random.key(1), len(leaves))
  noise = [0.3 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
  return jax.tree.unflatten(tree, [a + b for a, b in zip(leaves, noise, strict=True)])


@functools.cache
def _apply(name):
  return jax.jit(NETWORKS[name].apply)


def _logits(name, tokens, **packing):
  return np.asarray(_apply(name)({"params": _params(name)}, tokens, **packing))


def _tokens(*shape, seed=0):
  return np.random.default_rng(seed).integers(0, 51, shape).astype(np.int32)


@networks
def test_texts_of_a_packed_row_do_not_see_one_another(name):
  tokens = _tokens(2, 12)
  lengths = [(5, 4, 3), (2, 9, 1)]  # the last of each is padding, a segment of its own
  segments = np.stack([np.repeat((1, 2, 0), row) for row in lengths])
  positions = np.stack([np.concatenate([np.arange(n) for n in row]) for row in lengths])
  packed = _logits(name, tokens, decoder_segment_ids_BxT=segments, decoder_positions_BxT=positions)
  assert not np.allclose(packed, _logits(name, tokens), atol=1e-3)
  alone = np.zeros((4, 12), np.int32)
  places = [(0, 0, 5), (0, 5, 9), (1, 0, 2), (1, 2, 11)]
  for i, (row, start, end) in enumerate(places):
    alone[i, : end - start] = tokens[row, start:end]
  single = _logits(name, alone)
  for i, (row, start, end) in enumerate(places):
    np.testing.assert_allclose(packed[row, start:end], single[i, : end - start], atol=2e-5)


@networks
def test_samples_of_a_prompt_are_what_the_full_forward_says(name):
  """Prompts of several lengths, padded; three samples read one prompt's keys and values."""
  network, L, S, T = NETWORKS[name], 7, 3, 6
  prompts = _tokens(2, L)
  prompts[1, 3:] = -1
  sampler = dataclasses.replace(GREEDY, greedy=False, temperature=2.0)
  decoded = decode.decode(
    network, _params(name), prompts, sampler=sampler, max_length=T, samples=S,
    rng=jax.random.key(3),
  )  # fmt: skip
  rows = np.zeros((2 * S, L + T), np.int32)
  texts = np.asarray(decoded.tokens_BxSxT)
  for i, (prompt, length) in enumerate([(0, L)] * S + [(1, 3)] * S):
    rows[i, :length] = prompts[prompt, :length]
    rows[i, length : length + T] = texts[prompt, i % S]
  log_probs = jax.nn.log_softmax(_logits(name, rows))
  assert len(np.unique(texts)) > 10
  for i in range(2 * S):
    first = (L if i < S else 3) - 1
    want = sum(log_probs[i, first + t, texts[i // S, i % S, t]] for t in range(T))
    np.testing.assert_allclose(decoded.log_probs_BxS[i // S, i % S], want, rtol=1e-4)


@pytest.mark.parametrize("pad_id", [-1, 51])
def test_a_pad_token_outside_the_table_is_read_without_harm(pad_id):
  tokens = _tokens(1, 6)
  padded = np.concatenate([tokens, np.full((1, 4), pad_id, np.int32)], axis=1)
  network = LEARNED.clone(pad_id=pad_id)
  logits = np.asarray(jax.jit(network.apply)({"params": _params("learned")}, padded))
  assert np.all(np.isfinite(logits))
  np.testing.assert_allclose(logits[:, :6], _logits("learned", tokens), atol=1e-5)


def test_scanned_and_recomputed_layers_have_the_same_gradients():
  tokens = _tokens(2, 9)
  batch = {
    "decoder_input_tokens": tokens[:, :-1],
    "decoder_target_tokens": tokens[:, 1:],
    "decoder_loss_weights": (np.arange(8) > 2)[None].repeat(2, 0).astype(np.float32),
  }

  def gradients(network, params):
    loss = lambda params: objective.TokenCrossEntropy(network).loss(params, batch, None)
    return jax.jit(jax.value_and_grad(lambda params: loss(params).total))(params)

  params = _params("rotary")
  want, wanted = gradients(ROTARY, params)
  other = ROTARY.clone(scan_layers=True, remat="minimal")
  got, gotten = gradients(other, scanning.stack(params))
  np.testing.assert_allclose(got, want, rtol=1e-5)
  wanted = scanning.stack(wanted)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * np.max(np.abs(b))), gotten, wanted
  )


def test_the_loss_is_that_of_the_weighted_tokens():
  tokens = _tokens(2, 9)
  weights = np.zeros((2, 8), np.float32)
  weights[0, 3:], weights[1, 5:7] = 1.0, 1.0
  batch = {
    "decoder_input_tokens": tokens[:, :-1],
    "decoder_target_tokens": tokens[:, 1:],
    "decoder_loss_weights": weights,
  }
  ours = objective.TokenCrossEntropy(LEARNED, z_loss=0.0)
  fresh = jax.eval_shape(functools.partial(ours.init, jax.random.key(0)), batch)
  assert jax.tree.map(jnp.shape, nn.meta.unbox(fresh)) == jax.tree.map(
    jnp.shape, _params("learned")
  )
  loss = jax.jit(lambda params: ours.loss(params, batch, None))(_params("learned"))
  log_probs = jax.nn.log_softmax(_logits("learned", tokens[:, :-1]))
  each = -np.take_along_axis(np.asarray(log_probs), tokens[:, 1:, None], axis=-1)[..., 0]
  assert loss.weight == 7
  np.testing.assert_allclose(loss.total, np.sum(each * weights), rtol=1e-5)


def test_a_mesh_that_divides_neither_vocabulary_nor_heads_gives_the_same():
  """51 tokens and 2 heads of keys over 4 devices: logits, gradients and greedy texts."""
  mesh = partitioning.Partitioner({"data": 1, "fsdp": 2, "tensor": 4}, meshes.RULES)
  tokens, params = jnp.asarray(_tokens(2, 7)), _params("rotary")
  boxed = jax.eval_shape(ROTARY.init, jax.random.key(0), tokens)["params"]
  shardings = mesh.shardings(boxed)
  split = jax.device_put(params, shardings)
  query = split["decoder"]["layers_0"]["attention"]["query"]["kernel"]
  assert query.sharding.spec[1] == "tensor"
  assert query.addressable_shards[0].data.shape == (8, 1, 6)

  def loss(params):
    return jnp.mean(jax.nn.log_softmax(ROTARY.apply({"params": params}, tokens))[..., 0])

  want, wanted = jax.jit(jax.value_and_grad(loss))(params)
  got, gotten = mesh.jit(jax.value_and_grad(loss))(split)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gotten, wanted)
  with mesh.active():
    texts = decode.decode(ROTARY, split, tokens, sampler=GREEDY, max_length=4)
  alone = decode.decode(ROTARY, params, tokens, sampler=GREEDY, max_length=4)
  np.testing.assert_array_equal(texts.tokens_BxSxT, alone.tokens_BxSxT)


def test_a_prompt_and_a_text_longer_than_the_table_of_positions_are_refused():
  """The last token is never fed: 20 and 5 need 24 positions."""
  decode.decode(LEARNED, _params("learned"), _tokens(1, 20), sampler=GREEDY, max_length=5)
  with pytest.raises(InputError, match=r"25 tokens a text .* more than the network's 24"):
    decode.decode(LEARNED, _params("learned"), _tokens(1, 20), sampler=GREEDY, max_length=6)


def test_bfloat16_activations_have_float32_logits_and_parameters():
  network = ROTARY.clone(dtype="bfloat16", attention_dropout_rate=0.1, dropout_rate=0.1)
  tokens = jnp.asarray(_tokens(2, 7))
  fresh = jax.eval_shape(network.init, jax.random.key(0), tokens)["params"]
  assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}
  variables = {"params": _params("rotary")}
  logits = jax.jit(network.apply)(variables, tokens)
  want = _logits("rotary", tokens)
  assert logits.dtype == jnp.float32
  assert 0 < np.max(np.abs(logits - want)) < 0.1 * np.max(np.abs(want))
  dropped = functools.partial(network.apply, variables, tokens, deterministic=False)
  some = jax.jit(lambda key: dropped(rngs={"dropout": key}))(jax.random.key(0))
  assert not np.allclose(some, logits, atol=0.1)


@pytest.mark.parametrize(
  ("changed", "complaint"),
  [
    ({"num_heads": 3}, "embed_dim = 16 is no multiple of num_heads = 3"),
    ({"num_kv_heads": 3}, "num_heads = 4 is no multiple of num_kv_heads = 3"),
    ({"norm": "batch_norm"}, "norm = 'batch_norm': give 'layer_norm' or 'rms_norm'"),
    ({"max_positions": 4}, "6 tokens a text .* more than the network's 4 positions"),
    ({"rope": rope.Rope(), "head_dim": 5}, "head_dim = 5: rotary positions need an even one"),
    ({"rope": rope.Rope(), "rotary_layers": (True,)}, "rotary_layers has 1 entries for 3 layers"),
    ({"mlp_activations": ("swish",)}, "no activation is called 'swish'"),
    ({"remat": "all"}, "remat = 'all': choose from none"),
  ],
)
def test_settings_that_cannot_be(changed, complaint):
  network = LEARNED.clone(**changed)
  with pytest.raises(InputError, match=complaint):
    jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 6), jnp.int32))


@pytest.mark.parametrize(
  ("settings", "complaint"),
  [
    ({"scaling": "longrope"}, "scaling = 'longrope': give one of default, linear"),
    ({"theta": 0.0}, "theta 0.0 and factor 1.0 must be above 0"),
    ({"scaling": "yarn"}, "'yarn' needs original_length"),
  ],
)
def test_rotary_settings_that_cannot_be(settings, complaint):
  with pytest.raises(InputError, match=complaint):
    rope.Rope(**settings)
