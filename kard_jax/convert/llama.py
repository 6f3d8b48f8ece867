"""Llama and its relatives in Hugging Face's words (llama, mistral, qwen2, qwen3, smollm3).

SmolLM and SmolLM2 call themselves llama. What each relative adds is a setting of `student.gpt`.
"""

from __future__ import annotations

import re
from typing import Any

from kard_jax.convert import activations, decoders, rotary
from kard_jax.convert.source import Config
from kard_jax.convert.tables import SAME, TRANSPOSED, Entry, Table
from kard_jax.convert.tensors import Tensors
from kard_jax.core.files import InputError
from kard_jax.student import gpt

NETWORK = gpt.GPT
INPUTS = 1  # token arrays that the network is called with

_PREFIX, _TOKENS = "model.", "embed_tokens.weight"
_LLAMA = {
  "vocab_size": 32_000,
  "hidden_size": 4096,
  "intermediate_size": 11_008,
  "num_hidden_layers": 32,
  "num_attention_heads": 32,
  "max_position_embeddings": 2048,
  "tie_word_embeddings": False,
  "rope_theta": 10_000.0,
}
_QWEN = _LLAMA | {
  "vocab_size": 151_936,
  "intermediate_size": 22_016,
  "num_key_value_heads": 32,
  "max_position_embeddings": 32_768,
}
_DEFAULTS = {  # of transformers 5, for what a config.json leaves out
  "llama": _LLAMA,
  "mistral": _LLAMA
  | {
    "intermediate_size": 14_336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
    "sliding_window": 4096,
  },
  "qwen2": _QWEN,
  "qwen3": _QWEN | {"head_dim": 128},
  "smollm3": _LLAMA
  | {
    "vocab_size": 128_256,
    "hidden_size": 2048,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32_768,
    "tie_word_embeddings": True,
    "rope_theta": 2_000_000.0,
  },
}


def settings(config: Config, tensors: Tensors | None) -> dict[str, Any]:
  """The network's attributes that a config.json decides.

  Args:
    config: of a Llama or a relative.
    tensors: a head of its own is told by them; None: by what config.json says.

  Raises:
    InputError: an option that `student.gpt` does not have.
  """
  family = config.model_type
  config = Config(config.file, {**_DEFAULTS[family], **config.values})
  width, heads = config.size("hidden_size"), config.size("num_attention_heads")
  head_dim = config.size("head_dim", max(1, width // heads))
  if config.values.get("head_dim") is None and width % heads:
    raise InputError(
      f"{config.file}: hidden_size = {width} is no multiple of num_attention_heads = {heads}"
    )
  num_layers = config.size("num_hidden_layers")
  kv_heads = config.size("num_key_value_heads", heads)
  if heads % kv_heads:
    raise InputError(
      f"{config.file}: num_attention_heads = {heads} is no multiple of num_key_value_heads = "
      f"{kv_heads}"
    )
  # Qwen2 always has biases, and none in the last product; Mistral never has any.
  asked = config.get("attention_bias", False) if family in ("llama", "qwen3", "smollm3") else False
  said = config.get("tie_word_embeddings", False)
  activation = activations.ours(config, "hidden_act", config.get("hidden_act", "silu"))
  return {
    **decoders.common(config),
    **_windows(config, num_layers),
    "vocab_size": config.size("vocab_size"),
    "num_layers": num_layers,
    "embed_dim": width,
    "token_dim": None,
    "num_heads": heads,
    "num_kv_heads": kv_heads,
    "head_dim": head_dim,
    "mlp_dim": config.size("intermediate_size"),
    "mlp_activations": (activation, "linear"),
    "norm": "rms_norm",
    "norm_epsilon": config.get("rms_norm_eps", 1e-6),
    "norm_first": True,
    "final_norm": True,
    "attention_bias": asked or family == "qwen2",
    "attention_out_bias": asked,
    "mlp_bias": config.get("mlp_bias", False) if family in ("llama", "smollm3") else False,
    "qk_norm": family == "qwen3",
    "attention_scale": None,
    "scale_by_layer": False,
    "rope": rotary.rope(config, head_dim),
    "rotary_layers": _rotary_layers(config, num_layers),
    "tied_embeddings": decoders.is_tied(tensors, (_PREFIX + _TOKENS, _TOKENS), said),
  }


def _windows(config: Config, num_layers: int) -> dict[str, Any]:
  """Which layers see a window alone, and how wide it is."""
  none = {"window": 0, "window_layers": ()}
  family = config.model_type
  if family == "llama":
    return none
  if family == "mistral":  # null, not absence, means none
    given = config.values["sliding_window"] is not None
    return none | {"window": config.size("sliding_window")} if given else none
  used = config.get("use_sliding_window", False)
  window = config.size("sliding_window", 0 if family == "smollm3" else 4096) if used else 0
  kinds = _list(config, "layer_types", num_layers)
  if kinds is None:
    if family == "smollm3":
      slides = [not rotary for rotary in _rotary_layers(config, num_layers) or [True] * num_layers]
    else:
      slides = [i >= config.get("max_window_layers", 28) for i in range(num_layers)]
    slides = slides if window else [False] * num_layers
  elif unknown := {*kinds} - {"full_attention", "sliding_attention"}:
    raise config.unsupported("layer_types", f"{unknown} is not known here")
  else:
    slides = [kind == "sliding_attention" for kind in kinds]
  if not any(slides):
    return none
  if not window:
    raise config.unsupported("layer_types", "sliding, without use_sliding_window and its width")
  return {"window": window, "window_layers": () if all(slides) else tuple(slides)}


def _rotary_layers(config: Config, num_layers: int) -> tuple[bool, ...]:
  """Which layers are rotary; empty for all."""
  if config.model_type != "smollm3":
    return ()
  flags = _list(config, "no_rope_layers", num_layers)  # named for what it says at 0
  if flags is None:
    interval = config.size("no_rope_layer_interval", 4)
    flags = [(i + 1) % interval != 0 for i in range(num_layers)]
  return () if all(flags) else tuple(bool(flag) for flag in flags)


def _list(config: Config, name: str, num_layers: int) -> list[Any] | None:
  values = config.get(name, None, list)
  if values is not None and len(values) < num_layers:
    raise InputError(f"{config.file}: {name} has {len(values)} entries for {num_layers} layers")
  return values if values is None else values[:num_layers]


def table(network: gpt.GPT) -> Table:
  """Which tensor is which parameter."""
  body = [
    Entry("token_embedder/embedding", _TOKENS),
    *decoders.affine("decoder/decoder_norm", "norm", bias=False),
  ]
  for i in range(network.num_layers):
    body += _layer(network, f"decoder/layers_{i}", f"layers.{i}")
  return decoders.with_head(network, decoders.prefixed(body, _PREFIX))


def _layer(network: gpt.GPT, ours: str, theirs: str) -> Table:
  heads_bias = decoders.HEADS_BIAS if network.attention_bias else None
  out_bias = SAME if network.attention_out_bias else None
  bias = SAME if network.mlp_bias else None
  found: Table = []
  for name, short in (("query", "q"), ("key", "k"), ("value", "v")):
    path, stored = f"{ours}/attention/{name}", f"{theirs}.self_attn.{short}_proj"
    found += decoders.linear(path, stored, decoders.HEADS, heads_bias)
    if network.qk_norm and name != "value":
      norm = f"{theirs}.self_attn.{short}_norm"
      found += decoders.affine(f"{path}_norm", norm, bias=False)
  found += decoders.linear(
    f"{ours}/attention/out", f"{theirs}.self_attn.o_proj", decoders.OUT, out_bias
  )
  for name, stored in (("wi_0", "gate_proj"), ("wi_1", "up_proj"), ("wo", "down_proj")):
    found += decoders.linear(f"{ours}/mlp/{name}", f"{theirs}.mlp.{stored}", TRANSPOSED, bias)
  for name, stored in (
    ("pre_attention_layer_norm", "input_layernorm"),
    ("pre_mlp_layer_norm", "post_attention_layernorm"),
  ):
    found += decoders.affine(f"{ours}/{name}", f"{theirs}.{stored}", bias=False)
  return found


def inert(name: str) -> bool:
  """Whether a tensor has no effect: old files hold the frequencies that theta gives."""
  return re.fullmatch(r"(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq", name) is not None
