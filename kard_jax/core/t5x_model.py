"""What T5X's loop is given in place of its own: a model, a mesh, and a beginning.

T5X knows a model as a loss and initial variables, as `core.objective` does; a mesh as a partitioner
that gives each array of its state a place; a beginning as what makes that state.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from clu import metrics as clu_metrics
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from t5x import models, optimizers, partitioning, train_state, utils

from kard_jax.core.objective import Batch, Objective, Params
from kard_jax.core.partitioning import Partitioner
from kard_jax.core.state import Beginning, State


class Model(models.BaseModel):
  """An objective as T5X's trainer knows a model.

  Its loss is a sum: `Trainer` divides the gradients once, by the weight of the whole batch.

  Attributes:
    objective: the network and its loss.
    optimizer_def: T5X's wrapper of an Optax transformation.
  """

  FEATURE_CONVERTER_CLS = None  # batches come converted

  def __init__(self, objective: Objective, optimizer_def: Any):
    super().__init__(optimizer_def=optimizer_def)
    self.objective = objective

  def loss_fn(
    self, params: Params, batch: Batch, dropout_rng: jax.Array | None
  ) -> tuple[jax.Array, dict[str, Any]]:
    """The summed loss, and the metrics with their weights; `loss` has the loss's own."""
    loss = self.objective.loss(params, batch, dropout_rng)
    means = {name: mean for name, mean in loss.metrics.items() if name != "loss"}
    averages = {name: _average(mean.total, mean.weight) for name, mean in means.items()}
    return loss.total, averages | {"loss": _average(loss.total, loss.weight)}

  def get_initial_variables(
    self,
    rng: jax.Array,
    input_shapes: Mapping[str, Sequence[int]],
    input_types: Mapping[str, Any] | None = None,
  ) -> dict[str, Params]:
    """Fresh parameters for batches of such shapes."""
    types = input_types or {}
    batch = {
      name: jnp.zeros(shape, types.get(name, jnp.float32)) for name, shape in input_shapes.items()
    }
    return {"params": nn.meta.unbox(self.objective.init(rng, batch))}

  def predict_batch_with_aux(self, params: Params, batch: Batch, rng: Any = None) -> Any:
    """Not here: `launch/answer.py` and `launch/rerank.py` use what was trained."""
    raise NotImplementedError("T5X trains here; launch/answer.py and launch/rerank.py predict")

  score_batch = predict_batch_with_aux


def _average(total: jax.Array, weight: jax.Array) -> Any:
  return clu_metrics.Average(total=total, count=jnp.asarray(weight, jnp.float32))


class OnMesh(partitioning.BasePjitPartitioner):
  """Our mesh and axis rules in the place of T5X's: the hardware layers in gin serve both loops."""

  def __init__(self, ours: Partitioner, shardings: State):
    super().__init__(num_partitions=1)
    self._ours = ours
    self._shardings = shardings
    (self._data_axis,) = ours.batch_sharding.spec

  @property
  def mesh(self) -> Mesh:
    """The mesh."""
    return self._ours.mesh

  def get_mesh_axes(self, train_state: Any) -> Any:
    """The state with a `PartitionSpec` for each array."""
    specs = jax.tree.map(lambda sharding: sharding.spec, self._shardings)
    return _t5x_state(train_state._optimizer.optimizer_def, specs)

  def partition(
    self,
    fn: Callable[..., Any],
    in_axis_resources: Any,
    out_axis_resources: Any,
    static_argnums: Any = (),
    donate_argnums: Any = (),
  ) -> Any:
    """`jax.jit` with shardings from specs, traced where logical axis names mean our mesh."""
    jitted = jax.jit(
      fn,
      in_shardings=self._named(in_axis_resources),
      out_shardings=self._named(out_axis_resources),
      static_argnums=static_argnums,
      donate_argnums=donate_argnums,
    )
    return _Partitioned(jitted, self._ours)

  def _named(self, axes: Any) -> Any:
    if axes is None:
      return self._ours.replicated
    if type(axes) is tuple:
      return tuple(map(self._named, axes))
    return jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), axes, is_leaf=_is_spec)


def _is_spec(leaf: Any) -> bool:
  return isinstance(leaf, PartitionSpec)


@dataclasses.dataclass(frozen=True)
class _Partitioned:
  """A jitted function that is traced under our mesh."""

  jitted: Any
  ours: Partitioner

  def __call__(self, *arguments: Any) -> Any:
    with self.ours.active():
      return self.jitted(*arguments)

  def lower(self, *arguments: Any) -> Any:
    with self.ours.active():
      return self.jitted.lower(*arguments)


def _t5x_state(definition: Any, state: State) -> Any:
  inner = optimizers.OptimizerState(step=state.step, param_states=state.opt_state)
  return train_state.FlaxOptimTrainState(optimizers.Optimizer(definition, inner, state.params))


class Initializer(utils.TrainStateInitializer):
  """Begins T5X's state with the parameters that `core.train` would begin with."""

  def __init__(self, beginning: Beginning, *, optimizer_def: Any, partitioner: Any, **_: Any):
    self._beginning = beginning
    self._definition = optimizer_def
    self.global_train_state_shape = _t5x_state(optimizer_def, nn.meta.unbox(beginning.shapes))
    self.train_state_axes = partitioner.get_mesh_axes(self.global_train_state_shape)

  def from_scratch(self, init_rng: Any) -> Any:
    """The state at step 0."""
    del init_rng  # the trainer's seed, as in `core.train`
    return _t5x_state(self._definition, self._beginning.begin_fresh()[0])
