"""What the trainer knows of a model: how to start its parameters, and its loss on a batch.

T5X's `BaseModel` has the same two verbs, so one adapter can serve both loops.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

Params = Any  # a tree of arrays, as Linen's `module.init(...)["params"]`
Batch = Mapping[str, Any]  # feature name -> array, leading axis B


class Mean(NamedTuple):
  """A metric as a sum and a weight, so that means over devices and microbatches are exact."""

  total: jax.Array
  weight: jax.Array


class Loss(NamedTuple):
  """A loss as a sum over real tokens or lists; it is divided once, after all sums.

  Attributes:
    total: [] float32, summed over real tokens or lists.
    weight: [] float32, how many there were.
    metrics: further figures, each a sum and its weight.
  """

  total: jax.Array
  weight: jax.Array
  metrics: dict[str, Mean]


@runtime_checkable
class Objective(Protocol):
  """A network and what it is trained for."""

  def init(self, rng: jax.Array, batch: Batch) -> Params:
    """Fresh parameters, boxed with their logical axis names (`nn.LogicallyPartitioned`)."""
    ...

  def loss(self, params: Params, batch: Batch, rng: jax.Array | None) -> Loss:
    """The loss of unboxed parameters on a batch; `rng` None means evaluation (no dropout)."""
    ...
