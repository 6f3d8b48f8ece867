"""Logits equal Hugging Face's for the same weights (tests/golden/write_t5.py made them)."""

import functools
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kard_jax.core import decode
from kard_jax.student import t5

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
SIZES = {
  "vocab_size": 40,
  "embed_dim": 20,
  "num_heads": 3,
  "head_dim": 8,
  "mlp_dim": 28,
  "num_encoder_layers": 2,
  "num_decoder_layers": 3,
}
NETWORKS = {
  "t5_1_1": t5.T5(**SIZES),
  "t5_1_0": t5.T5(**SIZES, mlp_activations=("relu",), tied_embeddings=True),
}
_SUBLAYERS = {  # Hugging Face numbers what T5X names
  "encoder": [("attention", "pre_attention_layer_norm"), ("mlp", "pre_mlp_layer_norm")],
  "decoder": [
    ("self_attention", "pre_self_attention_layer_norm"),
    ("encoder_decoder_attention", "pre_cross_attention_layer_norm"),
    ("mlp", "pre_mlp_layer_norm"),
  ],
}


@functools.cache
def _golden(name):
  with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
    arrays = dict(file)
  weights = {k.removeprefix("weights/"): v for k, v in arrays.items() if k.startswith("weights/")}
  return arrays, _params(weights)


def _params(weights):
  """Hugging Face's weights as this project's parameters."""
  heads, head_dim = SIZES["num_heads"], SIZES["head_dim"]
  params = {"token_embedder": {"embedding": weights["shared.weight"]}}
  if "lm_head.weight" in weights:
    params["logits_dense"] = {"kernel": weights["lm_head.weight"].T}
  for stack, layers in (("encoder", 2), ("decoder", 3)):
    bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    tree = {
      "relpos_bias": {"rel_embedding": weights[bias].T},
      f"{stack}_norm": {"scale": weights[f"{stack}.final_layer_norm.weight"]},
    }
    for i in range(layers):
      tree[f"layers_{i}"] = layer = {}
      for j, (sublayer, norm) in enumerate(_SUBLAYERS[stack]):
        prefix = f"{stack}.block.{i}.layer.{j}."
        layer[norm] = {"scale": weights[prefix + "layer_norm.weight"]}
        layer[sublayer] = {}
        for key in weights:
          if not key.startswith(prefix) or key.endswith(("norm.weight", "bias.weight")):
            continue
          short = key.removeprefix(prefix).split(".")[1]
          kernel = weights[key].T
          if short in ("q", "k", "v"):
            kernel = kernel.reshape(-1, heads, head_dim)
          if short == "o":
            kernel = kernel.reshape(heads, head_dim, -1)
          long = {"q": "query", "k": "key", "v": "value", "o": "out"}.get(short, short)
          layer[sublayer][long] = {"kernel": kernel}
    params[stack] = tree
  return jax.tree.map(jnp.asarray, params)


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_those_of_hugging_face(name):
  arrays, params = _golden(name)
  network, inputs = NETWORKS[name], arrays["encoder_input_tokens"]
  fresh = jax.eval_shape(network.init, jax.random.key(0), inputs, inputs)["params"]
  assert jax.tree.map(jnp.shape, params) == jax.tree.map(
    jnp.shape, nn.meta.unbox(fresh)
  )  # every weight has its place
  logits = jax.jit(network.apply)({"params": params}, inputs, arrays["decoder_input_tokens"])
  want = arrays["logits"]
  assert want.std() > 0.5
  assert np.max(np.abs(logits - want)) <= 1e-5 * np.max(np.abs(want))


def test_cached_decoding_is_that_of_the_full_forward():
  """Greedy, without an end token: each step must repeat what teacher forcing says of its prefix."""
  arrays, params = _golden("t5_1_1")
  network, inputs = NETWORKS["t5_1_1"], arrays["encoder_input_tokens"]
  tokens, log_probs, _ = decode.decode(
    network, params, inputs, sampler=decode.Sampler(greedy=True, eos_id=-1), max_length=135
  )
  shifted = jnp.pad(tokens[:, 0, :-1], ((0, 0), (1, 0)))
  logits = jax.jit(network.apply)({"params": params}, inputs, shifted)
  np.testing.assert_array_equal(jnp.argmax(logits, -1), tokens[:, 0])
  assert len(np.unique(tokens)) > 5
  each = np.max(jax.nn.log_softmax(logits), axis=-1)
  np.testing.assert_allclose(log_probs[:, 0], each.sum(-1), rtol=1e-5, atol=1e-4)
