"""A reranker's encoder from a Hugging Face model: BERT's, or the encoder half of a T5.

What a scorer has besides (a projection, a head) is in no such model, and begins fresh.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn

from kard_jax.core.files import InputError, PathLike
from kard_jax.core.objective import Params
from kard_jax.core.partitioning import Partitioner
from kard_jax.reranker.network import CrossEncoder, LateInteraction, T5Encoder
from kard_jax.student.t5 import T5

# Attributes of `T5Encoder` and of `T5` that must agree.
_SAME = {
  "vocab_size": "vocab_size",
  "embed_dim": "embed_dim",
  "num_layers": "num_encoder_layers",
  "num_heads": "num_heads",
  "head_dim": "head_dim",
  "mlp_dim": "mlp_dim",
  "activations": "mlp_activations",
}
Load = Callable[[PathLike, nn.Module, Partitioner | None], Params]


def is_reranker(network: nn.Module) -> bool:
  """Whether a network is a scorer of passages."""
  return isinstance(network, LateInteraction | CrossEncoder)


def load(
  source: PathLike,
  network: nn.Module,
  partitioner: Partitioner | None,
  whole: Callable[[PathLike], nn.Module],
  read: Load,
) -> Params:
  """The parameters of a scorer that a model's folder holds: those of its encoder.

  Args:
    source: a folder, or a name on the Hub.
    network: the scorer.
    partitioner: mesh and rules.
    whole: the network that a folder describes (`huggingface.network`).
    read: its parameters (`huggingface.load`).

  Raises:
    InputError: as `huggingface.load`, or the encoder is not that of the model.
  """
  assert isinstance(network, LateInteraction | CrossEncoder)
  encoder: Any = network.encoder
  if not isinstance(encoder, T5Encoder):
    return {"encoder": read(source, encoder, partitioner)}
  found = whole(source)
  if not isinstance(found, T5):
    raise InputError(f"{source}: not a T5, and the reranker's encoder is network.T5Encoder")
  for mine, theirs in _SAME.items():
    have, want = getattr(encoder, mine), getattr(found, theirs)
    if tuple(have) != tuple(want) if isinstance(want, tuple) else have != want:
      raise InputError(
        f"{source}: asks for network.T5Encoder.{mine} = {want!r}, the reranker has {have!r}"
      )
  params = read(source, found.clone(scan_layers=encoder.scan_layers), partitioner)
  return {"encoder": {name: params[name] for name in ("token_embedder", "encoder")}}
