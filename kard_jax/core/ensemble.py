"""Several independent runs of one network as one run: compiled once, a step for all of them.

Where networks are tiny, a step's cost is that of its many small operations; over an axis of members
each is paid once. No number of a member depends on another member: as long as the optimiser works
element by element (`optimizers.AdamW` with `clip = 0`), each is trained as it would be alone.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kard_jax.core.objective import Batch, Loss, Mean, Objective, Params

AXIS = "members"  # the name of the leading axis of parameters and batches


@dataclasses.dataclass(frozen=True)
class Ensemble:
  """An objective whose parameters and batches have an axis of members before all others.

  Attributes:
    objective: what each member is trained for.
  """

  objective: Objective

  @property
  def network(self) -> Any:
    """What each member is a copy of."""
    return getattr(self.objective, "network", None)

  def init(self, rng: jax.Array, batch: Batch) -> Params:
    """Fresh parameters, boxed; each member has its own."""
    members = len(next(iter(batch.values())))
    one = {name: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for name, x in batch.items()}
    names = jax.eval_shape(self.objective.init, rng, one)
    batch = {name: jnp.asarray(feature) for name, feature in batch.items()}
    fresh = lambda rng, batch: nn.meta.unbox(self.objective.init(rng, batch))
    params = jax.vmap(fresh)(jax.random.split(rng, members), batch)
    params = nn.meta.replace_boxed(names, params)
    return nn.meta.add_axis(params, 0, {nn.meta.PARTITION_NAME: AXIS})

  def loss(self, params: Params, batch: Batch, rng: jax.Array | None) -> Loss:
    """The members' losses, summed, and the mean of their weights.

    So a member's gradient is its own where all members have the same weight, as they have where
    rows hold equally many targets. Metrics are means over all members.

    Args:
      params: unboxed.
      batch: features [members, B, ...].
      rng: for dropout, other for each member; None evaluates without it.
    """
    batch = {name: jnp.asarray(feature) for name, feature in batch.items()}
    members = len(next(iter(batch.values())))
    rngs = None if rng is None else jax.random.split(rng, members)
    losses = jax.vmap(self.objective.loss)(params, batch, rngs)
    metrics = {name: Mean(*map(jnp.sum, mean)) for name, mean in losses.metrics.items()}
    return Loss(jnp.sum(losses.total), jnp.mean(losses.weight), metrics)


def member(params: Params, number: int) -> Params:
  """The parameters of one member."""
  return jax.tree.map(lambda leaf: leaf[number], params)
