"""What the student learns: the next token of rationale and answer (paper sections 3.1 and 3.2).

One objective serves all of the student's baselines; they differ in the text of input and target.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kard_jax.core.files import InputError
from kard_jax.core.objective import Batch, Loss, Mean, Params


@dataclasses.dataclass(frozen=True)
class TokenCrossEntropy:
  """Cross-entropy of each target token, summed over tokens by weight, plus z-loss.

  Attributes:
    network: gives logits [B, T, V] from encoder and decoder input tokens, as `student.t5.T5`.
    z_loss: weight of log(Z)^2, which keeps logits from drifting and bfloat16 softmax exact.
    label_smoothing: probability shared out over the other tokens of the vocabulary.
  """

  network: nn.Module
  z_loss: float = 1e-4
  label_smoothing: float = 0.0

  def __post_init__(self) -> None:
    if self.z_loss < 0:
      raise InputError(f"z_loss = {self.z_loss}: give 0 (none) or more")
    if not 0 <= self.label_smoothing < 1:
      raise InputError(f"label_smoothing = {self.label_smoothing}: give 0 (none) or more, below 1")

  def init(self, rng: jax.Array, batch: Batch) -> Params:
    """Fresh parameters, boxed with their logical axis names."""
    tokens, _ = _inputs(batch)
    return self.network.init(rng, *tokens)["params"]

  def loss(self, params: Params, batch: Batch, rng: jax.Array | None) -> Loss:
    """The loss on a batch of T5X features.

    Args:
      params: unboxed.
      batch: `encoder_input_tokens` [B, L], unless the network is a decoder alone;
        `decoder_input_tokens`, `decoder_target_tokens` and `decoder_loss_weights` [B, T]. Of rows
        that hold several examples also `encoder_segment_ids`, `encoder_positions`,
        `decoder_segment_ids`, `decoder_positions`.
      rng: for dropout; None evaluates without it.

    Returns:
      total: cross-entropy and z-loss in nats, summed over weighted tokens; weight: the sum of
      weights. Metrics: `loss` (both), `cross_entropy`, `z_loss` and `accuracy` for each token;
      `sequence_accuracy` for each row with any weight: 1 when all its weighted tokens are right.
    """
    kwargs: dict[str, Any] = {} if rng is None else {"rngs": {"dropout": rng}}
    tokens, packing = _inputs(batch)
    kwargs |= packing
    logits_BxTxV: Any = self.network.apply(
      {"params": params}, *tokens, deterministic=rng is None, **kwargs
    )
    targets_BxT = jnp.asarray(batch["decoder_target_tokens"])
    weights_BxT = jnp.asarray(batch["decoder_loss_weights"], jnp.float32)
    entropy_BxT, z_BxT = token_losses(
      logits_BxTxV, targets_BxT, z_loss=self.z_loss, label_smoothing=self.label_smoothing
    )
    weight = jnp.sum(weights_BxT)
    entropy, z = jnp.sum(entropy_BxT * weights_BxT), jnp.sum(z_BxT * weights_BxT)
    right_BxT = jnp.argmax(logits_BxTxV, axis=-1) == targets_BxT
    counted_BxT = weights_BxT > 0
    rows_B = jnp.any(counted_BxT, axis=-1)
    right_rows_B = jnp.all(right_BxT | ~counted_BxT, axis=-1) & rows_B
    metrics = {
      "loss": Mean(entropy + z, weight),
      "cross_entropy": Mean(entropy, weight),
      "z_loss": Mean(z, weight),
      "accuracy": Mean(jnp.sum(right_BxT * weights_BxT), weight),
      "sequence_accuracy": Mean(
        jnp.sum(right_rows_B, dtype=jnp.float32), jnp.sum(rows_B, dtype=jnp.float32)
      ),
    }
    return Loss(entropy + z, weight, metrics)


_PACKING = {  # T5X's feature -> the network's argument
  "encoder_segment_ids": "encoder_segment_ids_BxL",
  "encoder_positions": "encoder_positions_BxL",
  "decoder_segment_ids": "decoder_segment_ids_BxT",
  "decoder_positions": "decoder_positions_BxT",
}


def _inputs(batch: Batch) -> tuple[list[jax.Array], dict[str, jax.Array]]:
  """What the network reads: tokens, and where each belongs if rows are packed."""
  names = ("encoder_input_tokens", "decoder_input_tokens")
  tokens = [jnp.asarray(batch[name]) for name in names if name in batch]
  return tokens, {
    argument: jnp.asarray(batch[name]) for name, argument in _PACKING.items() if name in batch
  }


def token_losses(
  logits_BxTxV: Float[Array, "B T V"],
  targets_BxT: Int[Array, "B T"],
  *,
  z_loss: float,
  label_smoothing: float,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
  """Cross-entropy and z-loss of each token, in nats.

  With label smoothing e the target has probability 1 - e and each other token e / (V - 1); the
  entropy of that distribution is taken away, so that the least loss stays 0.

  Source: z-loss as in T5X, `z_loss * log(Z) ** 2` with Z the softmax's normaliser.
  """
  logits_BxTxV = logits_BxTxV.astype(jnp.float32)
  vocab_size = logits_BxTxV.shape[-1]
  log_z_BxT = jax.nn.logsumexp(logits_BxTxV, axis=-1)
  # A comparison, not a gather: where `vocab` is sharded each device looks at its own part.
  is_target_BxTxV = jnp.arange(vocab_size) == targets_BxT[..., None]
  target_BxT = jnp.sum(jnp.where(is_target_BxTxV, logits_BxTxV, 0.0), axis=-1)
  entropy_BxT = log_z_BxT - target_BxT
  if label_smoothing:
    high, low = 1.0 - label_smoothing, label_smoothing / (vocab_size - 1)
    others_BxT = jnp.sum(logits_BxTxV, axis=-1) - target_BxT
    others_BxT = (vocab_size - 1) * log_z_BxT - others_BxT
    least = -(high * math.log(high) + label_smoothing * math.log(low))
    entropy_BxT = high * entropy_BxT + low * others_BxT - least
  return entropy_BxT, z_loss * jnp.square(log_z_BxT)
