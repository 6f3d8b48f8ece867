"""One training loop for any objective (paper sections 3.1 to 3.3 train through it alike).

The step is a pure function of state and batch; a batch is a pure function of the step. So a run
that was killed and resumed ends with the same bits as one that was not.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike

from kard_jax.core import (
  checkpoints,
  exits,
  flops,
  hosts,
  monitor,
  prefetch,
  selection,
  stopping,
)
from kard_jax.core.files import InputError, PathLike
from kard_jax.core.objective import Batch, Loss, Mean, Objective, Params
from kard_jax.core.partitioning import Partitioner
from kard_jax.core.state import Beginning, State


@runtime_checkable
class Batches(Protocol):
  """Training examples by step: a pure function of the step (and of a seed it was made with)."""

  @property
  def batch_size(self) -> int:
    """Examples a step, over all processes."""
    ...

  def __call__(self, step: int, rows: slice | None = None) -> Mapping[str, np.ndarray]:
    """Some rows of the batch of a step; all of them by default."""
    ...

  def names(self, step: int) -> Sequence[str]:
    """The ids of the examples in the batch of a step."""
    ...


class NotFinite(InputError):
  """The loss or a gradient is no longer a number; says at which step, on which examples."""


@dataclasses.dataclass(frozen=True)
class Trainer:
  """How a run goes.

  Attributes:
    steps: updates in all.
    optimizer: a function from `steps` to an Optax transformation.
    partitioner: mesh, axis rules, microbatches.
    seed: of initial parameters and dropout.
    evaluate_every: steps between evaluations on the validation batches.
    save_every: steps between checkpoints; one is saved at the end in any case.
    log_every: steps between lines of metrics.
    kept: which checkpoints stay.
    trained: names of the parameters that are trained (see `core.selection`), such as "lora_a" or
      "decoder"; None trains all. The others are in no checkpoint: a run goes on, and is read
      again, from the same initial parameters.
    frozen_dtype: element type in which the others are kept; "bfloat16" halves their memory.
    monitoring: a profile, and where else the figures go.
  """

  steps: int
  optimizer: Callable[[int], optax.GradientTransformation]
  partitioner: Partitioner
  seed: int = 0
  evaluate_every: int = 500
  save_every: int = 500
  log_every: int = 10
  kept: checkpoints.Checkpoints = checkpoints.Checkpoints()
  trained: Sequence[str] | None = None
  frozen_dtype: DTypeLike = jnp.float32
  monitoring: monitor.Monitoring = monitor.Monitoring()

  def __post_init__(self) -> None:
    for name in ("steps", "evaluate_every", "save_every", "log_every"):
      if getattr(self, name) < 1:
        raise InputError(f"train.Trainer.{name} = {getattr(self, name)}: must be at least 1")


class Run(NamedTuple):
  """What `train` gives back."""

  state: State
  metrics: dict[str, float]  # of the last evaluation, or of the last step where there was none


def train(
  objective: Objective,
  batches: Batches,
  folder: PathLike,
  *,
  trainer: Trainer,
  validation: Iterable[Mapping[str, np.ndarray]] = (),
  initial: Callable[[], Params] | None = None,
) -> Run:
  """Trains an objective from its last checkpoint in `folder`, or from given or fresh parameters.

  Args:
    objective: the network and its loss.
    batches: training batches by step.
    folder: takes checkpoints, `metrics.jsonl` and TensorBoard's files.
    trainer: how the run goes.
    validation: batches to evaluate on; the same each time.
    initial: gives the parameters to begin with, unboxed and in the mesh's shardings, which are then
      the run's own: all that are frozen, and any others (the rest begins fresh). A run that goes
      on calls it for the frozen ones alone.

  Raises:
    NotFinite: the loss or gradient norm is not a number; the checkpoints before it stay.
    InputError: the batch does not fit the mesh.
    exits.Stopped: SIGTERM came; the state is saved.
  """
  partitioner = trainer.partitioner
  rows = partitioner.rows(batches.batch_size)
  share = batches.batch_size / (rows.stop - rows.start)  # other processes have as many tokens a row
  tx = trainer.optimizer(trainer.steps)
  beginning = Beginning(
    objective,
    tx,
    batches(0),
    trainer.seed,
    partitioner,
    trainer.trained,
    initial,
    trainer.frozen_dtype,
  )
  count, total = beginning.counts()
  if count < total:
    print(f"{count:>7,} of {total:,} parameters are trained ({count / total:.2%})", flush=True)
  step_fn = partitioner.jit(
    make_step(objective, tx, trainer),
    donate_argnums=0,
    out_shardings=(beginning.shardings, partitioner.replicated),
  )
  evaluate = Evaluation(objective, partitioner, list(validation))
  with (
    trainer.kept.open(folder) as saved,
    monitor.Monitor(folder, trainer.steps, trainer.log_every, trainer.monitoring) as seen,
    stopping.Stop(partitioner) as stop,
    hosts.in_step("the start of training"),
  ):
    state, frozen = beginning.begin(saved)
    begin = int(state.step)
    seen.begin(begin, lambda: _work(objective, beginning, state.params, frozen))
    late: tuple[int, dict[str, jax.Array]] | None = None
    metrics: dict[str, float] = {}
    ahead = prefetch.ahead(batches, rows, partitioner, begin, trainer.steps)
    for step, (batch, tokens) in seen.batches(ahead):
      hosts.goes_on(f"step {step} of {trainer.steps}")
      state, now = step_fn(state, frozen, batch)
      if late is not None:  # the step before is done by now: reading it stalls nothing
        metrics = _read(*late, batches, seen)
      late = (step, now)
      seen.stepped(step, round(tokens * share), now["loss"])
      done, last = step + 1, step + 1 == trainer.steps
      evaluated = None
      if evaluate.batches and (last or done % trainer.evaluate_every == 0):
        metrics = _read(*late, batches, seen)
        late = None
        evaluated = metrics = evaluate(state.params, frozen)
        seen.evaluated(done, evaluated)
      stops = stop.now() and not last
      if last or stops or done % trainer.save_every == 0:
        if late is not None:  # nothing that is not finite may be saved
          metrics, late = _read(*late, batches, seen), None
        hosts.goes_on(f"the save behind step {step}")
        saved.save(done, state, evaluated)
      if stops:
        saved.finish()
        raise exits.Stopped(f"stopped by SIGTERM; saved at step {done}, where the next run goes on")
    return Run(state, metrics or evaluate(state.params, frozen))


def make_step(
  objective: Objective, tx: optax.GradientTransformation, trainer: Trainer
) -> Callable[[State, Params, Batch], tuple[State, dict[str, jax.Array]]]:
  """The update of a run: gradients of the summed loss, divided once by the summed weight.

  The function takes the state, which is given back changed, the frozen parameters and a batch.
  """
  key = jax.random.key(trainer.seed)

  def step(state: State, frozen: Params, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
    rng = jax.random.fold_in(key, state.step)

    def loss_of(params: Params, part: Batch, rng: jax.Array) -> Loss:
      return objective.loss(selection.join(params, frozen), part, rng)

    grads, loss = _gradients(loss_of, state.params, batch, rng, trainer.partitioner.microbatches)
    weight = jnp.maximum(loss.weight, 1e-8)
    grads = jax.tree.map(lambda grad: grad / weight, grads)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = _means(loss) | {"grad_norm": optax.tree.norm(grads), "weight": loss.weight}
    return State(state.step + 1, params, opt_state), metrics

  return step


def _gradients(
  loss_of: Callable[[Params, Batch, jax.Array], Loss],
  params: Params,
  batch: Batch,
  rng: jax.Array,
  microbatches: int,
) -> tuple[Params, Loss]:
  """Gradients of `Loss.total`, summed over microbatches one after another."""

  def total(params: Params, part: Batch, rng: jax.Array) -> tuple[jax.Array, Loss]:
    loss = loss_of(params, part, rng)
    return loss.total, loss

  gradient = jax.grad(total, has_aux=True)
  if microbatches == 1:
    return gradient(params, batch, rng)
  # Row b goes to part b mod M: each part has rows of every device, so nothing moves between them.
  parts = jax.tree.map(
    lambda x: jnp.swapaxes(x.reshape(-1, microbatches, *x.shape[1:]), 0, 1), dict(batch)
  )
  rngs = jax.random.split(rng, microbatches)
  first = gradient(params, jax.tree.map(lambda x: x[0], parts), rngs[0])

  def add(carry: tuple[Params, Loss], item: tuple[Batch, jax.Array]) -> tuple[Any, None]:
    return jax.tree.map(jnp.add, carry, gradient(params, *item)), None

  rest = (jax.tree.map(lambda x: x[1:], parts), rngs[1:])
  return jax.lax.scan(add, first, rest)[0]


def _means(loss: Loss) -> dict[str, jax.Array]:
  means = {name: _divide(mean) for name, mean in loss.metrics.items()}
  return means | {"loss": _divide(Mean(loss.total, loss.weight))}


def _divide(mean: Mean) -> jax.Array:
  return mean.total / jnp.maximum(mean.weight, 1e-8)


def _work(objective: Objective, beginning: Beginning, params: Params, frozen: Params) -> float:
  """FLOPs of a step and device."""

  def total(params: Params, frozen: Params, batch: Batch) -> jax.Array:
    return objective.loss(selection.join(params, frozen), batch, jax.random.key(0)).total

  trained, parameters = beginning.counts()
  with beginning.partitioner.active():
    step = flops.training_step(
      total, params, frozen, dict(beginning.batch), trained=trained / parameters
    )
  return step / beginning.partitioner.mesh.size


class Evaluation:
  """The mean loss and metrics of parameters over fixed batches, without dropout."""

  def __init__(
    self,
    objective: Objective,
    partitioner: Partitioner,
    batches: Sequence[Mapping[str, np.ndarray]],
  ):
    self.batches = batches
    self._partitioner = partitioner
    self._loss = partitioner.jit(
      lambda params, frozen, batch: objective.loss(selection.join(params, frozen), batch, None),
      out_shardings=partitioner.replicated,
    )

  def __call__(self, params: Params, frozen: Params) -> dict[str, float]:
    """Metric name -> mean over all real examples of the batches, with both parts of parameters."""
    if not self.batches:
      return {}
    losses = []
    for number, batch in enumerate(self.batches):
      hosts.goes_on(f"batch {number} of {len(self.batches)} of an evaluation")
      size = len(next(iter(batch.values())))
      rows = self._partitioner.rows(size)
      local = {name: feature[rows] for name, feature in batch.items()}
      losses.append(self._loss(params, frozen, self._partitioner.put(local, size)))
    total = jax.tree.map(lambda *leaves: np.sum([np.asarray(leaf) for leaf in leaves]), *losses)
    return {name: float(value) for name, value in _means(total).items()}


def _read(
  step: int, metrics: Mapping[str, jax.Array], batches: Batches, seen: monitor.Monitor
) -> dict[str, float]:
  """Fetches a step's metrics; a step is reported once, however often it is read.

  Raises:
    NotFinite: the loss or the gradient norm is not a number.
  """
  values = {name: float(value) for name, value in metrics.items()}
  for name in ("loss", "grad_norm"):
    if not math.isfinite(values[name]):
      examples = ", ".join(list(batches.names(step))[:8])
      raise NotFinite(
        f"step {step}: {name} is {values[name]}, on the batch of examples {examples}, ...; earlier "
        "checkpoints are kept. Lower the learning rate, or look at these examples"
      )
  seen.metrics(step, values)
  return values
