"""Orbax checkpoints of a training run: saved in the background, the latest and the best kept."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from kard_jax.core import hosts
from kard_jax.core.files import InputError, PathLike

_KEEP = ocp.checkpoint_managers


@dataclasses.dataclass(frozen=True)
class Checkpoints:
  """Which checkpoints of a run are kept.

  Attributes:
    latest: how many of the newest are kept.
    best: how many of the best by `metric` are kept besides; 0 keeps none for that.
    metric: a validation metric, such as "loss".
    higher_is_better: whether a large value of it is good.
  """

  latest: int = 2  # so that there is one behind a newest that cannot be read
  best: int = 1
  metric: str = "loss"
  higher_is_better: bool = False

  def open(self, folder: PathLike) -> Run:
    """Opens a run's folder for saving and restoring, making it if it is not there."""
    policies: list[Any] = [_KEEP.LatestN(self.latest)]
    if self.best:
      policies.append(
        _KEEP.BestN(
          get_metric_fn=lambda metrics: metrics[self.metric],
          reverse=not self.higher_is_better,
          n=self.best,
          keep_checkpoints_without_metrics=False,
        )
      )
    options = ocp.CheckpointManagerOptions(
      preservation_policy=_KEEP.AnyPreservationPolicy(policies), cleanup_tmp_directories=True
    )
    return Run(ocp.CheckpointManager(epath.Path(folder).resolve(), options=options), self)


class Run:
  """The checkpoints of one training run; a context manager that waits for saves under way."""

  def __init__(self, manager: ocp.CheckpointManager, kept: Checkpoints):
    self._manager = manager
    self._kept = kept

  def __enter__(self) -> Run:
    return self

  def __exit__(self, *_: object) -> None:
    self._manager.wait_until_finished()
    self._manager.close()

  @property
  def latest(self) -> int | None:
    """The step of the newest whole checkpoint; None when there is none."""
    return self._manager.latest_step()

  def finish(self) -> None:
    """Waits until what was begun is saved."""
    self._manager.wait_until_finished()

  def save(self, step: int, state: Any, metrics: Mapping[str, float] | None) -> None:
    """Begins saving; returns as soon as `state` may change."""
    self._manager.save(
      step,
      args=ocp.args.Composite(state=ocp.args.StandardSave(state)),
      metrics=dict(metrics) if metrics else None,
    )

  def restore_newest(self, abstract: Any) -> Any:
    """The state of the newest checkpoint that every process can read.

    A newer one is put aside, with a warning.

    Args:
      abstract: the state's shapes, dtypes and shardings.

    Raises:
      InputError: no checkpoint can be read as such a state.
    """
    broken: list[tuple[int, Exception]] = []
    for step in sorted(self._manager.all_steps(), reverse=True):
      state, error = self._read(step, abstract)
      if hosts.all_true(f"checkpoint {step} can be read", error is None):
        self._put_aside(broken)
        return state
      broken.append((step, error or OSError("another host cannot read it")))
    step, error = broken[0]
    raise _of_another(self._manager.directory / str(step), error) from error

  def _read(self, step: int, abstract: Any) -> tuple[Any, Exception | None]:
    """By the handler itself: the manager would wait for processes that could not read."""
    handler = ocp.StandardCheckpointHandler()
    path = self._manager.directory / str(step) / "state"
    try:
      return handler.restore(path, args=ocp.args.StandardRestore(abstract)), None
    except Exception as error:
      return None, error
    finally:
      handler.close()

  def _put_aside(self, broken: list[tuple[int, Exception]]) -> None:
    for step, error in broken:
      place = self._manager.directory / str(step)
      aside = f"broken-{step}-{time.time():.0f}"
      print(
        f"warning: {place} cannot be read ({' '.join(str(error).split())[:300]}); the run goes on "
        f"at the checkpoint before it, and this one is kept as {aside}",
        file=sys.stderr,
        flush=True,
      )
      if hosts.is_lead():
        place.rename(place.parent / aside)
    if broken:
      hosts.meet("broken checkpoints are put aside")
      self._manager.reload()


def choose(folder: PathLike, which: str | int = "best", metric: str = "loss") -> int:
  """The step of a checkpoint of a run.

  Args:
    folder: where `train` kept its checkpoints.
    which: "best" by `metric` on validation examples (the latest where none was evaluated),
      "latest", or a step.
    metric: the metric that "best" means; lower is better.

  Raises:
    InputError: there is none, or not that one.
  """
  path = epath.Path(folder).resolve()
  if which not in ("best", "latest") and not isinstance(which, int):
    raise InputError(f"CHECKPOINT = {which!r}: choose 'best' or 'latest'")
  if not path.exists():
    raise InputError(f"{folder}: no checkpoints; train first")
  manager = ocp.CheckpointManager(path, options=ocp.CheckpointManagerOptions(read_only=True))
  steps = manager.all_steps()
  if not steps:
    raise InputError(f"{folder}: no whole checkpoint; train first")
  scores = {step: (manager.metrics(step) or {}).get(metric) for step in steps}
  manager.close()
  if isinstance(which, int):
    if which not in steps:
      raise InputError(f"{folder}: no checkpoint of step {which}; there are {sorted(steps)}")
    return which
  scored = {step: score for step, score in scores.items() if score is not None}
  return min(scored, key=lambda s: (scored[s], s)) if which == "best" and scored else max(steps)


def restore_params(
  folder: PathLike, abstract_params: Any, *, which: str | int = "best", metric: str = "loss"
) -> Any:
  """The parameters that a run trained.

  Args:
    folder: where `train` kept its checkpoints.
    abstract_params: `jax.ShapeDtypeStruct` tree with shardings.
    which: see `choose`.
    metric: see `choose`.

  Raises:
    InputError: no checkpoint is there, or it holds other parameters.
  """
  step = choose(folder, which, metric)
  path = epath.Path(folder).resolve()
  try:
    tree = ocp.PyTreeCheckpointer().restore(
      path / str(step) / "state",
      args=ocp.args.PyTreeRestore(
        item={"params": abstract_params},
        restore_args=ocp.checkpoint_utils.construct_restore_args({"params": abstract_params}),
        partial_restore=True,
      ),
    )
  except (ValueError, KeyError, TypeError) as error:
    raise _of_another(path / str(step), error) from error
  for name, leaf in jax.tree_util.tree_flatten_with_path(tree["params"])[0]:
    if isinstance(leaf, jax.ShapeDtypeStruct):  # left as it was asked for: not in the checkpoint
      missing = KeyError(jax.tree_util.keystr(name, simple=True, separator="/"))
      raise _of_another(path / str(step), missing)
  return tree["params"]


def restore_all_params(folder: PathLike, step: int) -> Any:
  """All that a checkpoint has of parameters, whatever their shapes, on the first device."""
  path = epath.Path(folder).resolve() / str(step) / "state"
  checkpointer = ocp.PyTreeCheckpointer()
  stored = checkpointer.metadata(path).item_metadata.tree["params"]
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  wanted = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), stored
  )
  return restore_params(folder, wanted, which=step)


def _of_another(folder: PathLike, error: Exception) -> InputError:
  reason = " ".join(str(error).split())[:300]
  return InputError(f"{folder}: holds other parameters than the model's, or is damaged: {reason}")


def abstract(shapes: Any, shardings: Any) -> Any:
  """`jax.ShapeDtypeStruct`s that carry shardings, as restoring needs them."""
  return jax.tree.map(
    lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
    shapes,
    shardings,
  )
