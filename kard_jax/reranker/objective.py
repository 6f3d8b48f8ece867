"""Listwise KL: by the question alone, give candidates the rationale's shares (paper section 3.3).

The target Q is a softmax over the BM25 scores that a list's candidates have with the rationale as
the query; the model P is a softmax over the scores of a network that sees only the question. The
loss is KL(Q || P), averaged over lists.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from kard_jax.core.objective import Batch, Loss, Mean, Params
from kard_jax.core.train import Batches
from kard_jax.reranker import temperature
from kard_jax.reranker.temperature import Schedule

Tau = float | Float[Array | np.ndarray, " B"]

_LOWEST = -1e30  # of a logarithm; finite, also when a list's worth of them is summed


def listwise_kl(
  scores_BxC: Float[Array | np.ndarray, "B C"],
  rationale_scores_BxC: Float[Array | np.ndarray, "B C"],
  mask_BxC: Bool[Array | np.ndarray, "B C"],
  *,
  tau: Tau,
  rationale_tau: Tau,
) -> Float[Array, " B"]:
  """KL(Q || P) of each list, for softmaxes Q of rationale scores and P of the network's scores.

  Computed in float32, whatever the scores' type. What stands at masked candidates, even NaN, has
  no effect on value or gradient.

  Args:
    scores_BxC: the network's scores.
    rationale_scores_BxC: BM25 scores with the rationale as the query.
    mask_BxC: true for real candidates, false for padding.
    tau: temperature of P (the paper's tau_2); an array has one for each list, and is not checked.
    rationale_tau: temperature of Q (the paper's tau_1); small is a sharp target.

  Returns:
    kl_B in nats, zero for a list with one candidate or none.

  Raises:
    InputError: a temperature is not a positive number.
  """
  _check("ListwiseKL.tau", tau)
  _check("ListwiseKL.rationale_tau", rationale_tau)
  log_q_BxC = _log_softmax(rationale_scores_BxC, mask_BxC, rationale_tau)
  log_p_BxC = _log_softmax(scores_BxC, mask_BxC, tau)
  return _cross(jnp.exp(log_q_BxC), log_q_BxC - log_p_BxC, mask_BxC)


def top_cross_entropy(
  scores_BxC: Float[Array | np.ndarray, "B C"],
  rationale_scores_BxC: Float[Array | np.ndarray, "B C"],
  mask_BxC: Bool[Array | np.ndarray, "B C"],
  *,
  tau: Tau,
) -> Float[Array, " B"]:
  """Cross-entropy of each list to the rationale's top candidate: KL as `rationale_tau` nears zero.

  Candidates that share the top score share the target, so that their order says nothing.

  Args:
    scores_BxC: the network's scores.
    rationale_scores_BxC: BM25 scores with the rationale as the query.
    mask_BxC: true for real candidates, false for padding.
    tau: temperature of P.

  Returns:
    cross_entropy_B in nats, zero for a list with one candidate or none.

  Raises:
    InputError: the temperature is not a positive number.
  """
  _check("TopCrossEntropy.tau", tau)
  top_BxC = _is_top(rationale_scores_BxC, mask_BxC).astype(jnp.float32)
  target_BxC = top_BxC / jnp.maximum(top_BxC.sum(-1, keepdims=True), 1.0)
  return _cross(target_BxC, -_log_softmax(scores_BxC, mask_BxC, tau), mask_BxC)


def hit_at_1(
  scores_BxC: Float[Array | np.ndarray, "B C"],
  rationale_scores_BxC: Float[Array | np.ndarray, "B C"],
  mask_BxC: Bool[Array | np.ndarray, "B C"],
) -> Float[Array, " B"]:
  """Whether a list's best candidate is one that the rationale puts first, between 0 and 1.

  Where scores tie, this is the chance to draw a right one: candidates come sorted by their
  rationale score, so "the first of the best" would make a network that scores all alike perfect.
  """
  top_BxC = _is_top(scores_BxC, mask_BxC)
  right_BxC = top_BxC & _is_top(rationale_scores_BxC, mask_BxC)
  return right_BxC.sum(-1) / jnp.maximum(top_BxC.sum(-1), 1)


@dataclasses.dataclass(frozen=True)
class ListwiseKL:
  """The paper's objective, for a network called as `network(query_tokens, passage_tokens)`.

  Batches hold `query_tokens [B, L]`, `passage_tokens [B, C, M]` (0 is padding), `passage_scores
  [B, C]` (BM25 under the rationale) and `passage_mask [B, C]`. A list counts when it has a real
  candidate.

  Attributes:
    network: scores candidates: `reranker.network.LateInteraction` or `CrossEncoder`.
    tau: temperature of the model's distribution P, or a schedule of it.
    rationale_tau: temperature of the target Q, in units of BM25 scores, or a schedule of it.
  """

  network: nn.Module
  tau: float | Schedule = 1.0
  rationale_tau: float | Schedule = 1.0

  def __post_init__(self) -> None:
    temperature.check("objective.ListwiseKL.tau", self.tau)
    temperature.check("objective.ListwiseKL.rationale_tau", self.rationale_tau)

  @property
  def temperatures(self) -> dict[str, float | Schedule]:
    """By the names under which `Scheduled` puts them into batches."""
    return {"tau": self.tau, "rationale_tau": self.rationale_tau}

  def init(self, rng: jax.Array, batch: Batch) -> Params:
    """Fresh parameters, boxed with their logical axis names."""
    return _init(self.network, rng, batch)

  def loss(self, params: Params, batch: Batch, rng: jax.Array | None) -> Loss:
    """KL summed over lists; metrics `kl`, `hit@1` and `target_entropy` (of Q, KL's yardstick)."""
    scores_BxC, target_BxC, mask_BxC = _score(self.network, params, batch, rng)
    taus = _temperatures(self.temperatures, batch)
    kl_B = listwise_kl(scores_BxC, target_BxC, mask_BxC, **taus)
    log_q_BxC = _log_softmax(target_BxC, mask_BxC, taus["rationale_tau"])
    entropy_B = _cross(jnp.exp(log_q_BxC), -log_q_BxC, mask_BxC)
    hit_B = hit_at_1(scores_BxC, target_BxC, mask_BxC)
    return _loss(kl_B, mask_BxC, {"kl": kl_B, "hit@1": hit_B, "target_entropy": entropy_B})


@dataclasses.dataclass(frozen=True)
class TopCrossEntropy:
  """The ablation: learn only which candidate the rationale puts first. Batches as in `ListwiseKL`.

  Attributes:
    network: scores candidates.
    tau: temperature of the model's distribution P, or a schedule of it.
  """

  network: nn.Module
  tau: float | Schedule = 1.0

  def __post_init__(self) -> None:
    temperature.check("objective.TopCrossEntropy.tau", self.tau)

  @property
  def temperatures(self) -> dict[str, float | Schedule]:
    """By the names under which `Scheduled` puts them into batches."""
    return {"tau": self.tau}

  def init(self, rng: jax.Array, batch: Batch) -> Params:
    """Fresh parameters, boxed with their logical axis names."""
    return _init(self.network, rng, batch)

  def loss(self, params: Params, batch: Batch, rng: jax.Array | None) -> Loss:
    """Cross-entropy summed over lists; metrics `cross_entropy` and `hit@1`."""
    scores_BxC, target_BxC, mask_BxC = _score(self.network, params, batch, rng)
    taus = _temperatures(self.temperatures, batch)
    cross_entropy_B = top_cross_entropy(scores_BxC, target_BxC, mask_BxC, **taus)
    hit_B = hit_at_1(scores_BxC, target_BxC, mask_BxC)
    return _loss(cross_entropy_B, mask_BxC, {"cross_entropy": cross_entropy_B, "hit@1": hit_B})


@dataclasses.dataclass(frozen=True)
class Scheduled:
  """Batches with the temperatures of their step, one for each list: `tau [B]` and the like.

  A batch stays a pure function of its step, so that a run that goes on finds the temperatures that
  it would have had. Batches without them (evaluation's) are taken at the schedules' ends.

  Attributes:
    batches: training batches by step.
    temperatures: of the objective.
  """

  batches: Batches
  temperatures: Mapping[str, float | Schedule]

  @property
  def batch_size(self) -> int:
    """Lists a step, over all processes."""
    return self.batches.batch_size

  def __call__(self, step: int, rows: slice | None = None) -> dict[str, np.ndarray]:
    """Some rows of the batch of a step; all of them by default."""
    batch = dict(self.batches(step, rows))
    shape = len(next(iter(batch.values())))
    for name, value in self.temperatures.items():
      batch[name] = np.full(shape, temperature.at(value, step), np.float32)
    return batch

  def names(self, step: int) -> Sequence[str]:
    """The ids of the lists in the batch of a step."""
    return self.batches.names(step)


def scheduled(objective: Any, batches: Batches) -> Batches:
  """The batches that an objective trains on: with temperatures, where it has a schedule."""
  temperatures = getattr(objective, "temperatures", {})
  if any(isinstance(value, Schedule) for value in temperatures.values()):
    return Scheduled(batches, temperatures)
  return batches


def _temperatures(mine: Mapping[str, float | Schedule], batch: Batch) -> dict[str, Any]:
  return {name: batch.get(name, temperature.at_last(value)) for name, value in mine.items()}


def _init(network: nn.Module, rng: jax.Array, batch: Batch) -> Params:
  # all of the batch, since a mesh that splits it could not split a row; under jit it costs nothing
  tokens = jnp.asarray(batch["query_tokens"]), jnp.asarray(batch["passage_tokens"])
  return network.init(rng, *tokens)["params"]


def _score(
  network: nn.Module, params: Params, batch: Batch, rng: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
  scores_BxC: Any = network.apply(
    {"params": params},
    jnp.asarray(batch["query_tokens"]),
    jnp.asarray(batch["passage_tokens"]),
    deterministic=rng is None,
    rngs=None if rng is None else {"dropout": rng},
  )
  target_BxC = jnp.asarray(batch["passage_scores"], jnp.float32)
  return scores_BxC, target_BxC, jnp.asarray(batch["passage_mask"]) > 0


def _loss(loss_B: jax.Array, mask_BxC: jax.Array, metrics_B: dict[str, jax.Array]) -> Loss:
  weight = mask_BxC.any(-1).sum().astype(jnp.float32)
  return Loss(
    total=loss_B.sum(),
    weight=weight,
    metrics={name: Mean(value_B.sum(), weight) for name, value_B in metrics_B.items()},
  )


def _log_softmax(
  scores_BxC: Array | np.ndarray, mask_BxC: Array | np.ndarray, tau: Any
) -> jax.Array:
  """log softmax(scores / tau) where the mask is true; elsewhere finite and without meaning."""
  # What would be infinite is replaced before it is used: the gradient of `where` multiplies the
  # branch not taken by zero, and zero times infinity is NaN.
  scores_BxC = jnp.asarray(scores_BxC, jnp.float32)
  best_B = jnp.max(scores_BxC, axis=-1, keepdims=True, where=mask_BxC, initial=-jnp.inf)
  any_B = mask_BxC.any(-1, keepdims=True)
  best_B = jax.lax.stop_gradient(jnp.where(any_B, best_B, 0.0))
  tau = tau[:, None] if getattr(tau, "ndim", 0) else tau
  z_BxC = jnp.where(mask_BxC, (scores_BxC - best_B) / tau, 0.0)
  z_BxC = jnp.maximum(z_BxC, _LOWEST)  # a share of zero times it stays zero
  sum_B = jnp.sum(jnp.exp(z_BxC), axis=-1, keepdims=True, where=mask_BxC)
  return z_BxC - jnp.log(jnp.where(any_B, sum_B, 1.0))


def _cross(
  share_BxC: jax.Array, value_BxC: jax.Array, mask_BxC: Array | np.ndarray
) -> Float[Array, " B"]:
  return jnp.sum(share_BxC * value_BxC, axis=-1, where=mask_BxC)


def _is_top(scores_BxC: Array | np.ndarray, mask_BxC: Array | np.ndarray) -> jax.Array:
  scores_BxC = jnp.where(mask_BxC, scores_BxC, -jnp.inf)
  return jnp.logical_and(mask_BxC, scores_BxC == scores_BxC.max(-1, keepdims=True))


def _check(name: str, tau: Any) -> None:
  if not getattr(tau, "ndim", 0):
    temperature.check(f"objective.{name}", tau)
