"""OPT in Hugging Face's words (model_type opt), from 125M to 66B.

The 350M model is the odd one: it normalises after each sum, and its token vectors are narrower than
its layers.
"""

from __future__ import annotations

from typing import Any

from kard_jax.convert import activations, decoders
from kard_jax.convert.source import Config
from kard_jax.convert.tables import SAME, TRANSPOSED, Entry, Table
from kard_jax.convert.tensors import Tensors
from kard_jax.core.files import InputError
from kard_jax.student import gpt

NETWORK = gpt.GPT
INPUTS = 1  # token arrays that the network is called with

_PREFIX, _TOKENS = "model.", "decoder.embed_tokens.weight"


def settings(config: Config, tensors: Tensors | None) -> dict[str, Any]:
  """The network's attributes that a config.json decides.

  Args:
    config: of an OPT.
    tensors: a head of its own is told by them; None: by what config.json says.

  Raises:
    InputError: an option that `student.gpt` does not have.
  """
  width, heads = config.size("hidden_size", 768), config.size("num_attention_heads", 12)
  if width % heads:
    raise InputError(
      f"{config.file}: hidden_size = {width} is no multiple of num_attention_heads = {heads}"
    )
  token_dim = config.size("word_embed_proj_dim", width)
  activation = config.get("activation_function", "relu")
  first, bias = config.get("do_layer_norm_before", True), config.get("enable_bias", True)
  said = config.get("tie_word_embeddings", True)
  return {
    **decoders.common(config),
    "vocab_size": config.size("vocab_size", 50_272),
    "max_positions": config.size("max_position_embeddings", 2048),
    "position_offset": 2,
    "num_layers": config.size("num_hidden_layers", 12),
    "embed_dim": width,
    "token_dim": None if token_dim == width else token_dim,
    "num_heads": heads,
    "num_kv_heads": None,
    "head_dim": None,
    "mlp_dim": config.size("ffn_dim", 3072),
    "mlp_activations": (activations.ours(config, "activation_function", activation),),
    "norm": "layer_norm",
    "norm_epsilon": 1e-5,
    "norm_affine": config.get("layer_norm_elementwise_affine", True),
    "norm_first": first,
    "final_norm": first and not config.get("_remove_final_layer_norm", False),
    "attention_bias": bias,
    "attention_out_bias": bias,
    "mlp_bias": bias,
    "qk_norm": False,
    "attention_scale": None,
    "scale_by_layer": False,
    "rope": None,
    "window": 0,
    "tied_embeddings": decoders.is_tied(tensors, (_PREFIX + _TOKENS, _TOKENS), said),
  }


def table(network: gpt.GPT) -> Table:
  """Which tensor is which parameter."""
  body = [
    Entry("token_embedder/embedding", _TOKENS),
    Entry("position_embedder/embedding", "decoder.embed_positions.weight"),
  ]
  if network.token_dim not in (None, network.embed_dim):
    body.append(Entry("embed_in/kernel", "decoder.project_in.weight", TRANSPOSED))
    body.append(Entry("embed_out/kernel", "decoder.project_out.weight", TRANSPOSED))
  if network.final_norm and network.norm_affine:
    body += decoders.affine("decoder/decoder_norm", "decoder.final_layer_norm")
  for i in range(network.num_layers):
    body += _layer(network, f"decoder/layers_{i}", f"decoder.layers.{i}")
  return decoders.with_head(network, decoders.prefixed(body, _PREFIX))


def _layer(network: gpt.GPT, ours: str, theirs: str) -> Table:
  heads_bias = decoders.HEADS_BIAS if network.attention_bias else None
  bias = SAME if network.mlp_bias else None
  found: Table = []
  for name, short in (("query", "q"), ("key", "k"), ("value", "v")):
    path, stored = f"{ours}/attention/{name}", f"{theirs}.self_attn.{short}_proj"
    found += decoders.linear(path, stored, decoders.HEADS, heads_bias)
  found += decoders.linear(
    f"{ours}/attention/out", f"{theirs}.self_attn.out_proj", decoders.OUT, bias
  )
  found += decoders.linear(f"{ours}/mlp/wi", f"{theirs}.fc1", TRANSPOSED, bias)
  found += decoders.linear(f"{ours}/mlp/wo", f"{theirs}.fc2", TRANSPOSED, bias)
  if network.norm_affine:
    found += decoders.affine(f"{ours}/pre_attention_layer_norm", f"{theirs}.self_attn_layer_norm")
    found += decoders.affine(f"{ours}/pre_mlp_layer_norm", f"{theirs}.final_layer_norm")
  return found


def inert(name: str) -> bool:
  """Whether a tensor has no effect: none is known."""
  return False
