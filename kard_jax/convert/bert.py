"""BERT in Hugging Face's words (model_type bert): BERT, LinkBERT, BioLinkBERT, MiniLM.

Only the encoder is read: heads (pooler, masked words, next sentence, a classifier) are not
parameters of `reranker.bert.Bert` and have no effect here.
"""

from __future__ import annotations

from typing import Any

from kard_jax.convert import activations
from kard_jax.convert.source import Config
from kard_jax.convert.tables import SAME, TRANSPOSED, Entry, Layout, Table
from kard_jax.convert.tensors import Tensors
from kard_jax.reranker import bert

NETWORK = bert.Bert
INPUTS = 1  # token arrays that the network is called with

_HEADS = Layout("(h k) d -> d h k")
_HEADS_BIAS = Layout("(h k) -> h k")
_OUT = Layout("d (h k) -> h k d")
_LINEAR = (  # ours, theirs, layout of the kernel and of the bias
  ("attention/query", "attention.self.query", _HEADS, _HEADS_BIAS),
  ("attention/key", "attention.self.key", _HEADS, _HEADS_BIAS),
  ("attention/value", "attention.self.value", _HEADS, _HEADS_BIAS),
  ("attention/out", "attention.output.dense", _OUT, SAME),
  ("mlp/wi", "intermediate.dense", TRANSPOSED, SAME),
  ("mlp/wo", "output.dense", TRANSPOSED, SAME),
)
_NORMS = (
  ("attention_layer_norm", "attention.output.LayerNorm"),
  ("mlp_layer_norm", "output.LayerNorm"),
)
_EMBEDDINGS = (
  ("token_embedder", "word_embeddings"),
  ("position_embedder", "position_embeddings"),
  ("segment_embedder", "token_type_embeddings"),
)
_HEADS_OF_TASKS = ("pooler.", "cls.", "classifier.", "dropout.", "qa_outputs.")
_NO_EFFECT = ("embeddings.position_ids", "embeddings.token_type_ids")  # buffers of old files


def settings(config: Config, tensors: Tensors | None) -> dict[str, Any]:
  """The network's attributes that a config.json decides.

  Args:
    config: of a BERT.
    tensors: not needed.

  Raises:
    InputError: an option that `reranker.bert` does not have.
  """
  del tensors
  if (kind := config.get("position_embedding_type", "absolute")) != "absolute":
    raise config.unsupported("position_embedding_type", f"positions are absolute, not {kind}")
  if config.get("is_decoder", False):
    raise config.unsupported("is_decoder", "BERT is an encoder here")
  activation = config.get("hidden_act", "gelu")
  return {
    "vocab_size": config.size("vocab_size", 30_522),
    "embed_dim": config.size("hidden_size", 768),
    "num_layers": config.size("num_hidden_layers", 12),
    "num_heads": config.size("num_attention_heads", 12),
    "mlp_dim": config.size("intermediate_size", 3072),
    "max_positions": config.size("max_position_embeddings", 512),
    "num_segments": config.size("type_vocab_size", 2),
    "activations": (activations.ours(config, "hidden_act", activation),),
    "norm_epsilon": config.get("layer_norm_eps", 1e-12),
    "pad_id": config.get("pad_token_id", 0),
  }


def table(network: bert.Bert) -> Table:
  """Which tensor is which parameter."""
  found: Table = []
  for ours, theirs in _EMBEDDINGS:
    if ours != "segment_embedder" or network.num_segments:
      found.append(_entry(f"{ours}/embedding", f"embeddings.{theirs}.weight"))
  found += _norm("embedding_layer_norm", "embeddings.LayerNorm")
  for i in range(network.num_layers):
    path, prefix = f"layers_{i}", f"encoder.layer.{i}"
    for ours, theirs, kernel, bias in _LINEAR:
      found.append(_entry(f"{path}/{ours}/kernel", f"{prefix}.{theirs}.weight", kernel))
      found.append(_entry(f"{path}/{ours}/bias", f"{prefix}.{theirs}.bias", bias))
    for ours, theirs in _NORMS:
      found += _norm(f"{path}/{ours}", f"{prefix}.{theirs}")
  return found


def inert(name: str) -> bool:
  """Whether a tensor is a head's, or a buffer."""
  short = name.removeprefix("bert.")
  return short.startswith(_HEADS_OF_TASKS) or short in _NO_EFFECT


def _norm(path: str, name: str) -> Table:
  old = {"weight": "gamma", "bias": "beta"}  # as TensorFlow's first checkpoints call them
  return [
    _entry(f"{path}/scale", f"{name}.weight", aliases=(f"{name}.{old['weight']}",)),
    _entry(f"{path}/bias", f"{name}.bias", aliases=(f"{name}.{old['bias']}",)),
  ]


def _entry(path: str, name: str, layout: Layout = SAME, aliases: tuple[str, ...] = ()) -> Entry:
  """With and without the prefix that models with a head on top give the encoder."""
  prefixed = tuple(f"bert.{some}" for some in (name, *aliases))
  return Entry(path, name, layout, aliases=(*aliases, *prefixed))
