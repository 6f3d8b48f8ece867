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
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from clu import metric_writers
from clu.data import dataset_iterator
from etils import epath
from t5x import checkpoints, metrics, optimizers
from t5x import trainer as t5x_trainer

from kard_jax.core import exits, hosts, monitor, stopping, t5x_model
from kard_jax.core import train as loop
from kard_jax.core.files import InputError, PathLike
from kard_jax.core.objective import Batch, Objective, Params
from kard_jax.core.state import Beginning, State

CHECKPOINTS = "t5x"  # in the run's folder: T5X's own, from which a killed run goes on
VALIDATION = "validation"
# T5X, told to stop at a step that it has just saved, saves it again.
_SAVED_BEFORE = ocp.checkpoint_manager.StepAlreadyExistsError


class Trainer(t5x_trainer.Trainer):
  """T5X's trainer for losses that are sums: gradients are divided once, by the summed weight.

  Before the steps between two rows of figures it looks whether SIGTERM came; then T5X saves.
  """

  def __init__(
    self, ours: loop.Trainer, lines: _Lines | None, stop: stopping.Stop, **arguments: Any
  ):
    """Takes our trainer, where figures go besides TensorBoard, and what T5X gives its trainers."""
    schedule = getattr(ours.optimizer, "schedule", None)
    rate = schedule(ours.steps) if schedule else lambda step: jnp.asarray(math.nan)
    super().__init__(
      learning_rate_fn=rate, num_microbatches=ours.partitioner.microbatches, **arguments
    )
    self._ours = ours
    self._stop = stop
    if lines is not None:
      managers = {"train": self.train_metrics_manager, **self.eval_metrics_managers}
      for name, manager in managers.items():
        manager._writer = metric_writers.MultiWriter([manager._writer, _Figures(lines, name)])

  def train(self, batch_iter: Any, num_steps: int, start_step: int | None = None) -> Any:
    """T5X's steps up to the next row of figures."""
    if self._stop.now():
      raise t5x_trainer.PreemptionError("SIGTERM")
    return super().train(batch_iter, num_steps, start_step)

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


class _Lines:
  """`metrics.jsonl` and what is printed of it."""

  def __init__(self, folder: epath.Path, begin: int, steps: int):
    self.rows = monitor.JsonlWriter(folder / monitor.METRICS, begin)
    self._name = folder.name
    self._steps = steps
    self._spoke = time.monotonic()
    if begin:
      print(f"{folder.name}: T5X goes on at step {begin} of {steps}", flush=True)

  def tell(self, name: str, step: int, values: Mapping[str, Any]) -> None:
    """Prints an evaluation, and the training loss now and then."""
    if name == VALIDATION:
      shown = "  ".join(f"{key} {value:.4f}" for key, value in sorted(values.items()))
      print(f"{self._name}: step {step}/{self._steps} validation {shown}", flush=True)
    elif "loss" in values and time.monotonic() - self._spoke > 20:
      self._spoke = time.monotonic()
      print(f"{self._name}: step {step}/{self._steps} loss {values['loss']:.4f}", flush=True)

  def close(self) -> None:
    self.rows.close()


class _Figures(metric_writers.MetricWriter):
  """T5X's figures of one kind as rows and lines; `train/timing/...` goes to TensorBoard alone."""

  def __init__(self, lines: _Lines, name: str):
    self._lines = lines
    self._name = name

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    values = {key: float(value) for key, value in scalars.items() if "/" not in key}
    if values:
      named = {f"{self._name}/{key}": value for key, value in values.items()}
      self._lines.rows.write_scalars(step, named)
      self._lines.tell(self._name, step, values)

  def flush(self) -> None:
    self._lines.rows.flush()

  def _pass_over(self, *_: Any, **__: Any) -> None: ...

  close = write_summaries = write_images = write_videos = write_audios = _pass_over
  write_texts = write_histograms = write_pointcloud = write_hparams = _pass_over


class _Stream(dataset_iterator.DatasetIterator):
  """This host's rows of batches from a step on, made on a thread while devices compute."""

  def __init__(self, batches: loop.Batches, rows: slice, begin: int):
    self._make = lambda step: _local(batches(step, rows))
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


def _local(batch: Mapping[str, Any], rows: slice = slice(None)) -> dict[str, np.ndarray]:
  return {name: np.asarray(feature)[rows] for name, feature in batch.items()}


def _size(batch: Mapping[str, Any]) -> int:
  return len(next(iter(batch.values())))


def _spec(batch: Mapping[str, np.ndarray]) -> dict[str, jax.ShapeDtypeStruct]:
  return {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()}


class _Fixed(list[Any]):
  """This host's rows of the evaluation batches, which T5X wants to know the shapes of."""

  @property
  def element_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
    return _spec(self[0])


def _is_preemption(error: BaseException | None) -> bool:
  """Whether this, or what it was raised while handling (gin's own among them), is a preemption."""
  return error is not None and (
    isinstance(error, t5x_trainer.PreemptionError) or _is_preemption(error.__context__)
  )


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
      NotFinite: parameters at the end are no numbers; T5X's checkpoints stay.
      InputError: the batch does not fit the mesh.
      exits.Stopped: SIGTERM came; T5X has saved.
    """
    place = epath.Path(folder)
    partitioner = trainer.partitioner
    rows = partitioner.rows(batches.batch_size)
    tx = trainer.optimizer(trainer.steps)
    beginning = Beginning(
      objective, tx, batches(0), trainer.seed, partitioner, trainer.trained, initial
    )
    held_out = list(validation)
    fixed = _Fixed(_local(batch, partitioner.rows(_size(batch))) for batch in held_out)
    own = place / CHECKPOINTS
    own.mkdir(parents=True, exist_ok=True)
    begin = max(checkpoints.all_steps(str(own)), default=0)  # where T5X goes on
    with contextlib.ExitStack() as stack:
      stop = stack.enter_context(stopping.Stop(partitioner))
      stream = stack.enter_context(contextlib.closing(_Stream(batches, rows, begin)))
      lines = None
      if hosts.is_lead():
        lines = stack.enter_context(contextlib.closing(_Lines(place, begin, trainer.steps)))
      try:
        _, last = self.train(
          model=t5x_model.Model(objective, optimizers.OptaxWrapper(tx)),
          model_dir=str(own),
          partitioner=t5x_model.OnMesh(partitioner, beginning.shardings),
          trainer_cls=functools.partial(Trainer, trainer, lines, stop),
          train_state_initializer_cls=functools.partial(t5x_model.Initializer, beginning),
          get_dataset_fn=lambda *_: stream,
          train_eval_get_dataset_fn=lambda *_: {VALIDATION: fixed},
          **({} if fixed else {"train_eval_dataset_cfg": None}),
        )
      except (t5x_trainer.PreemptionError, _SAVED_BEFORE) as error:
        if not _is_preemption(error):
          raise
        raise exits.Stopped("stopped by SIGTERM; T5X saved, and the next run goes on") from None
    state = State(last.step, last.params, last.param_states)
    figures = loop.Evaluation(objective, partitioner, held_out)(state.params, {})
    self._save(state, figures, place, trainer)
    return loop.Run(state, figures)

  def _save(
    self, state: State, figures: Mapping[str, float], folder: epath.Path, trainer: loop.Trainer
  ) -> None:
    """A checkpoint of the end, as `core.train` writes it."""
    if not math.isfinite(optax.tree.norm(state.params)):
      raise loop.NotFinite(f"{folder}: parameters at the end are not finite; lower LEARNING_RATE")
    with trainer.kept.open(folder) as saved:
      if saved.latest != int(state.step):
        saved.save(int(state.step), state, figures or None)
