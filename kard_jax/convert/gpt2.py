"""GPT-2 in Hugging Face's words (model_type gpt2).

Its products are stored input first, and queries, keys and values as one tensor.
"""

from __future__ import annotations

import re
from typing import Any

from kard_jax.convert import activations, decoders
from kard_jax.convert.source import Config
from kard_jax.convert.tables import SAME, Entry, Layout, Table
from kard_jax.convert.tensors import Tensors
from kard_jax.core.files import InputError
from kard_jax.student import gpt

NETWORK = gpt.GPT
INPUTS = 1  # token arrays that the network is called with

_PREFIX, _TOKENS = "transformer.", "wte.weight"
_OUT = Layout("(h k) d -> h k d")


def settings(config: Config, tensors: Tensors | None) -> dict[str, Any]:
  """The network's attributes that a config.json decides.

  Args:
    config: of a GPT-2.
    tensors: a head of its own is told by them; None: by what config.json says.

  Raises:
    InputError: an option that `student.gpt` does not have.
  """
  if config.get("add_cross_attention", False):
    raise config.unsupported("add_cross_attention", "only decoders without an encoder")
  width, heads = config.size("n_embd", 768), config.size("n_head", 12)
  if width % heads:
    raise InputError(f"{config.file}: n_embd = {width} is no multiple of n_head = {heads}")
  activation = config.get("activation_function", "gelu_new")
  said = config.get("tie_word_embeddings", True)
  scaled = config.get("scale_attn_weights", True)
  return {
    **decoders.common(config),
    "vocab_size": config.size("vocab_size", 50_257),
    "max_positions": config.size("n_positions", 1024),
    "position_offset": 0,
    "num_layers": config.size("n_layer", 12),
    "embed_dim": width,
    "token_dim": None,
    "num_heads": heads,
    "num_kv_heads": None,
    "head_dim": None,
    "mlp_dim": config.size("n_inner", 4 * width),
    "mlp_activations": (activations.ours(config, "activation_function", activation),),
    "norm": "layer_norm",
    "norm_epsilon": config.get("layer_norm_epsilon", 1e-5),
    "norm_affine": True,
    "norm_first": True,
    "final_norm": True,
    "attention_bias": True,
    "attention_out_bias": True,
    "mlp_bias": True,
    "qk_norm": False,
    "attention_scale": None if scaled else 1.0,
    "scale_by_layer": config.get("scale_attn_by_inverse_layer_idx", False),
    "rope": None,
    "window": 0,
    "tied_embeddings": decoders.is_tied(tensors, (_PREFIX + _TOKENS, _TOKENS), said),
  }


def table(network: gpt.GPT) -> Table:
  """Which tensor is which parameter."""
  body = [
    Entry("token_embedder/embedding", _TOKENS),
    Entry("position_embedder/embedding", "wpe.weight"),
    *decoders.affine("decoder/decoder_norm", "ln_f"),
  ]
  for i in range(network.num_layers):
    ours, theirs = f"decoder/layers_{i}", f"h.{i}"
    body += decoders.affine(f"{ours}/pre_attention_layer_norm", f"{theirs}.ln_1")
    for part, name in enumerate(("query", "key", "value")):
      weight = Layout("d (parts h k) -> d h k", (part, 3))
      bias = Layout("(parts h k) -> h k", (part, 3))
      body += decoders.linear(f"{ours}/attention/{name}", f"{theirs}.attn.c_attn", weight, bias)
    body += decoders.linear(f"{ours}/attention/out", f"{theirs}.attn.c_proj", _OUT, SAME)
    body += decoders.affine(f"{ours}/pre_mlp_layer_norm", f"{theirs}.ln_2")
    body += decoders.linear(f"{ours}/mlp/wi", f"{theirs}.mlp.c_fc", SAME, SAME)
    body += decoders.linear(f"{ours}/mlp/wo", f"{theirs}.mlp.c_proj", SAME, SAME)
  return decoders.with_head(network, decoders.prefixed(body, _PREFIX))


def inert(name: str) -> bool:
  """Whether a tensor has no effect: old files hold the causal mask."""
  return re.fullmatch(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias", name) is not None
