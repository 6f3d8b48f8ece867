"""T5X as the second loop: the same objectives, batches and meshes, trained by `t5x.train.train`.

T5X owns the loop: its state, its gradients over microbatches, its metrics, its checkpoints. What it
trains is handed to it: an objective as a T5X model, batches by step, a mesh with its rules. When it
has ended, the run's folder has a checkpoint as `core.train` leaves it, which the next stage reads.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu import metric_writers
from clu import metrics as clu_metrics
from clu.data import dataset_iterator
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from t5x import checkpoints, metrics, models, optimizers, partitioning, train_state, utils
from t5x import trainer as t5x_trainer

from kard_jax.core import hosts, monitor
from kard_jax.core import train as loop
from kard_jax.core.files import InputError, PathLike
from kard_jax.core.objective import Batch, Objective, Params
from kard_jax.core.partitioning import Partitioner
from kard_jax.core.state import Beginning, State

CHECKPOINTS = "t5x"  # in the run's folder: T5X's own, from which a killed run goes on
VALIDATION = "validation"


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


class Trainer(t5x_trainer.Trainer):
  """T5X's trainer for losses that are sums: gradients are divided once, by the summed weight."""

  def __init__(self, ours: loop.Trainer, rows: monitor.JsonlWriter | None, **arguments: Any):
    """Takes our trainer, where rows of figures go besides, and what T5X gives its trainers."""
    schedule = getattr(ours.optimizer, "schedule", None)
    rate = schedule(ours.steps) if schedule else lambda step: jnp.asarray(math.nan)
    super().__init__(
      learning_rate_fn=rate, num_microbatches=ours.partitioner.microbatches, **arguments
    )
    self._ours = ours
    if rows is not None:
      managers = {"train": self.train_metrics_manager, **self.eval_metrics_managers}
      for name, manager in managers.items():
        manager._writer = metric_writers.MultiWriter([manager._writer, _Named(rows, name)])

  def _get_step_rng(self, step: Any) -> jax.Array:
    return jax.random.fold_in(jax.random.key(self._ours.seed), step)  # dropout's, as `core.train`'s

  @functools.cached_property
  def _partitioned_train_step(self) -> Any:
    spec = self._partitioner.data_partition_spec

    def step(state: Any, batch: Batch) -> tuple[Any, dict[str, Any]]:
      grads, means, _ = t5x_trainer.accumulate_grads_microbatched(
        self._model, state, batch, self._get_step_rng(state.step), self._num_microbatches, spec
      )
      weight = means["loss"].count
      grads = jax.tree.map(lambda grad: grad / jnp.maximum(weight, 1e-8), grads)
      for name, value in {"grad_norm": optax.tree.norm(grads), "weight": weight}.items():
        means[name] = metrics.AveragePerStep.from_model_output(value)
      rate = self._learning_rate_fn(state.step)
      return t5x_trainer.apply_grads(state, grads, means, rate, self._weight_metrics_computer)

    return self._partitioner.partition(
      step,
      in_axis_resources=(self._train_state_axes, spec),
      out_axis_resources=(self._train_state_axes, None),
      donate_argnums=(0,),
    )


class _Named(metric_writers.MetricWriter):
  """A writer for figures that are named by what they are of."""

  def __init__(self, rows: monitor.JsonlWriter, name: str):
    self._rows = rows
    self._name = name

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    self._rows.write_scalars(step, {f"{self._name}/{key}": v for key, v in scalars.items()})

  def flush(self) -> None:
    self._rows.flush()

  def _pass_over(self, *_: Any, **__: Any) -> None: ...

  close = write_summaries = write_images = write_videos = write_audios = _pass_over
  write_texts = write_histograms = write_pointcloud = write_hparams = _pass_over


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


class _Initializer(utils.TrainStateInitializer):
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


class _Stream(dataset_iterator.DatasetIterator):
  """This host's rows of batches from a step on, made on a thread while devices compute."""

  def __init__(self, batches: loop.Batches, rows: slice, begin: int):
    self._make = functools.partial(_local, batches, rows)
    self._step = begin
    self._pool = concurrent.futures.ThreadPoolExecutor(1, "batches")
    self._next = self._pool.submit(self._make, begin)
    self._spec = _spec(self._make(begin))

  @property
  def element_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
    return self._spec

  def __next__(self) -> dict[str, np.ndarray]:
    batch = self._next.result()
    self._step += 1
    self._next = self._pool.submit(self._make, self._step)
    return batch

  def close(self) -> None:
    self._pool.shutdown(cancel_futures=True)


def _local(batches: loop.Batches, rows: slice, step: int) -> dict[str, np.ndarray]:
  return {name: np.asarray(feature) for name, feature in batches(step, rows).items()}


def _spec(batch: Mapping[str, np.ndarray]) -> dict[str, jax.ShapeDtypeStruct]:
  return {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}


class _Fixed(list[Any]):
  """Evaluation batches, which T5X wants to know the shapes of."""

  @property
  def element_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
    return _spec(self[0])


@dataclasses.dataclass(frozen=True)
class Loop:
  """`core.train.train`, done by T5X.

  Attributes:
    train: T5X's `train` as its gin files configure it; what is ours is given to it at the call.
  """

  train: Callable[..., Any]

  def check(self, trainer: loop.Trainer, evaluates: bool) -> None:
    """Says what T5X cannot do, before anything is begun.

    Raises:
      InputError: the trainer asks for it.
    """
    without = "; leave out gin_configs/t5x/, or"
    if trainer.trained is not None:
      raise InputError(f"LORA, TRAINED: T5X trains all parameters{without} set both to None")
    if trainer.monitoring != monitor.Monitoring():
      raise InputError(f"PROFILE, WANDB: T5X shows neither{without} set both to None")
    short, long = sorted((trainer.save_every, trainer.evaluate_every))
    if evaluates and long % short:
      raise InputError(
        f"SAVE_EVERY = {trainer.save_every}, EVALUATE_EVERY = {trainer.evaluate_every}: T5X wants "
        "one to be a multiple of the other"
      )

  def __call__(
    self,
    objective: Objective,
    batches: loop.Batches,
    folder: PathLike,
    *,
    trainer: loop.Trainer,
    validation: Iterable[Mapping[str, np.ndarray]] = (),
    initial: Callable[[], Params] | None = None,
  ) -> loop.Run:
    """Trains as `core.train.train` does, from T5X's last checkpoint in `folder` where there is one.

    Raises:
      NotFinite: the loss at the end is not a number; T5X's checkpoints stay.
      InputError: the batch does not fit the mesh.
    """
    place = epath.Path(folder)
    partitioner = trainer.partitioner
    rows = partitioner.rows(batches.batch_size)
    tx = trainer.optimizer(trainer.steps)
    beginning = Beginning(
      objective, tx, batches(0), trainer.seed, partitioner, trainer.trained, initial
    )
    held_out = list(validation)
    own = place / CHECKPOINTS
    own.mkdir(parents=True, exist_ok=True)
    begin = max(checkpoints.all_steps(str(own)), default=0)  # where T5X goes on
    with contextlib.ExitStack() as stack:
      stream = stack.enter_context(contextlib.closing(_Stream(batches, rows, begin)))
      lines = _lines(place, begin, stack)
      _, last = self.train(
        model=Model(objective, optimizers.OptaxWrapper(tx)),
        model_dir=str(own),
        partitioner=OnMesh(partitioner, beginning.shardings),
        trainer_cls=functools.partial(Trainer, trainer, lines),
        train_state_initializer_cls=functools.partial(_Initializer, beginning),
        get_dataset_fn=lambda *_: stream,
        train_eval_get_dataset_fn=lambda *_: {VALIDATION: _Fixed(held_out)},
        **({} if held_out else {"train_eval_dataset_cfg": None}),
      )
    state = State(last.step, last.params, last.param_states)
    figures = loop.Evaluation(objective, partitioner, held_out)(state.params, {})
    if not math.isfinite(figures.get("loss", 0.0)):
      raise loop.NotFinite(f"{folder}: the loss at the end is {figures['loss']}")
    step = int(state.step)
    with trainer.kept.open(place) as saved:
      if saved.latest != step:
        saved.save(step, state, figures or None)
    return loop.Run(state, figures)


def _lines(
  folder: epath.Path, begin: int, stack: contextlib.ExitStack
) -> monitor.JsonlWriter | None:
  """`metrics.jsonl`, which the first process writes."""
  if not hosts.is_lead():
    return None
  return stack.enter_context(contextlib.closing(monitor.JsonlWriter(folder / monitor.METRICS, begin)))
