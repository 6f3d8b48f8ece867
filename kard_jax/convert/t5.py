"""T5 in Hugging Face's words: T5 1.0, 1.1, Flan, ByT5 (model_type t5), mT5 and umT5.

transformers 5 ties every T5's tables unless a checkpoint brings a different `lm_head.weight`; what
config.json says of tying decides only whether the decoder's output is scaled before the head.
"""

from __future__ import annotations

from typing import Any

from kard_jax.convert import activations
from kard_jax.convert.source import Config
from kard_jax.convert.tables import TRANSPOSED, Entry, Layout, Table
from kard_jax.convert.tensors import Tensors
from kard_jax.student import t5

NETWORK = t5.T5
INPUTS = 2  # token arrays that the network is called with

_HEADS = Layout("(h k) d -> d h k")
_OUT = Layout("d (h k) -> h k d")
_SHARED, _HEAD = "shared.weight", "lm_head.weight"
_COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
_SUBLAYERS = {  # sublayer, its name in transformers, the norm before it
  "encoder": (
    ("attention", "SelfAttention", "pre_attention_layer_norm"),
    ("mlp", "DenseReluDense", "pre_mlp_layer_norm"),
  ),
  "decoder": (
    ("self_attention", "SelfAttention", "pre_self_attention_layer_norm"),
    ("encoder_decoder_attention", "EncDecAttention", "pre_cross_attention_layer_norm"),
    ("mlp", "DenseReluDense", "pre_mlp_layer_norm"),
  ),
}
_PROJECTIONS = (
  ("query", "q", _HEADS),
  ("key", "k", _HEADS),
  ("value", "v", _HEADS),
  ("out", "o", _OUT),
)


def settings(config: Config, tensors: Tensors | None) -> dict[str, Any]:
  """The network's attributes that a config.json decides.

  Args:
    config: of a T5, mT5 or umT5.
    tensors: decide whether the head has a table of its own; None: what config.json says does.

  Raises:
    InputError: an option that `student.t5` does not have.
  """
  multilingual = config.model_type in ("mt5", "umt5")  # 1.1's shape unless it says otherwise
  projection = config.get("feed_forward_proj", "gated-gelu" if multilingual else "relu")
  *gate, activation = projection.split("-")
  if gate not in ([], ["gated"]):
    raise config.unsupported("feed_forward_proj", "give ACTIVATION or gated-ACTIVATION")
  if projection == "gated-gelu":
    activation = "gelu_new"  # the exact one's name, but the tanh form was always meant
  activation = config.get("dense_act_fn", activation)
  activation = activations.ours(config, "feed_forward_proj", activation)
  gated = config.get("is_gated_act", bool(gate))
  num_layers = config.size("num_layers", 8 if multilingual else 6)
  said = config.values.get("tie_word_embeddings")  # not said counts as tied
  if config.model_type == "mt5":
    scaled = False
  else:
    scaled = config.get("scale_decoder_outputs", said is not False)
  if not config.get("is_encoder_decoder", True):
    raise config.unsupported("is_encoder_decoder", "encoder and decoder are needed")
  pad_id = config.get("pad_token_id", 0)
  if config.get("decoder_start_token_id", pad_id) != pad_id:
    raise config.unsupported("decoder_start_token_id", "decoders begin with the pad token")
  tied = scaled if tensors is None else _is_tied(tensors, said is not False)
  return {
    "vocab_size": config.size("vocab_size", 250_112 if multilingual else 32_128),
    "embed_dim": config.size("d_model", 512),
    "num_heads": config.size("num_heads", 6 if multilingual else 8),
    "head_dim": config.size("d_kv", 64),
    "mlp_dim": config.size("d_ff", 1024 if multilingual else 2048),
    "num_encoder_layers": num_layers,
    "num_decoder_layers": config.size("num_decoder_layers", num_layers),
    "mlp_activations": (activation, *(("linear",) if gated else ())),
    "tied_embeddings": tied,
    "scale_logits": None if scaled == tied else scaled,
    "num_buckets": config.size("relative_attention_num_buckets", 32),
    "max_distance": config.size("relative_attention_max_distance", 128),
    "norm_epsilon": config.get("layer_norm_epsilon", 1e-6),
    "relpos_per_layer": config.model_type == "umt5",
    "pad_id": pad_id,
  }


def _is_tied(tensors: Tensors, ties: bool) -> bool:
  """Whether transformers would give the head the table of the tokens."""
  tables = [name for name in (_SHARED, *_COPIES) if name in tensors]
  if _HEAD not in tensors or not tables:
    return True
  return ties and any(tensors.same(_HEAD, name) for name in tables)


def table(network: t5.T5) -> Table:
  """Which tensor is which parameter."""
  tied = network.tied_embeddings
  copies = (*_COPIES, _HEAD) if tied else _COPIES
  found = [Entry("token_embedder/embedding", _SHARED, aliases=copies)]
  if not tied:
    found.append(Entry("logits_dense/kernel", _HEAD, TRANSPOSED))
  for stack in ("encoder", "decoder"):
    for i in range(getattr(network, f"num_{stack}_layers") if network.relpos_per_layer else 1):
      path = f"{stack}/layers_{i}" if network.relpos_per_layer else stack
      bias = f"{stack}.block.{i}.layer.0.SelfAttention.relative_attention_bias.weight"
      found.append(Entry(f"{path}/relpos_bias/rel_embedding", bias, TRANSPOSED))
    found.append(Entry(f"{stack}/{stack}_norm/scale", f"{stack}.final_layer_norm.weight"))
    for i in range(getattr(network, f"num_{stack}_layers")):
      found += _layer(network, stack, i)
  return found


def _layer(network: t5.T5, stack: str, i: int) -> Table:
  found = []
  for j, (sublayer, theirs, norm) in enumerate(_SUBLAYERS[stack]):
    ours, prefix = f"{stack}/layers_{i}", f"{stack}.block.{i}.layer.{j}"
    found.append(Entry(f"{ours}/{norm}/scale", f"{prefix}.layer_norm.weight"))
    if sublayer == "mlp":
      wi = ["wi"] if len(network.mlp_activations) == 1 else ["wi_0", "wi_1"]
      parts = [(name, name, TRANSPOSED) for name in (*wi, "wo")]
    else:
      parts = list(_PROJECTIONS)
    for name, short, layout in parts:
      kernel, weight = f"{ours}/{sublayer}/{name}/kernel", f"{prefix}.{theirs}.{short}.weight"
      found.append(Entry(kernel, weight, layout))
  return found


def inert(name: str) -> bool:
  """Whether a tensor has no effect: old files give cross-attention a position bias."""
  return name == "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
