"""Weights & Biases as a further place for a run's figures; nothing needs it to be installed."""

from __future__ import annotations

import types
import uuid
from collections.abc import Mapping
from typing import Any

from clu import metric_writers
from etils import epath

from kard_jax.core.files import InputError

_ID = "wandb_id"  # in the run's folder: a run that goes on goes on there too


def load() -> types.ModuleType:
  """The `wandb` module.

  Raises:
    InputError: it is not installed.
  """
  try:
    import wandb
  except ImportError as error:
    raise InputError(
      f"WANDB: the package is not here ({error}); pip install wandb, or leave WANDB at None"
    ) from None
  return wandb


class WandbWriter(metric_writers.MetricWriter):
  """Scalars to a run of a Weights & Biases project; the other kinds of summary are passed over.

  Where and as whom is for the package's own variables: WANDB_API_KEY, WANDB_MODE=offline, ...
  """

  def __init__(self, project: str, folder: epath.Path, first_step: int):
    """Begins a run, or goes on with that of `folder` where `first_step` is not 0."""
    wandb = load()
    path = folder / _ID
    if not first_step or not path.exists():
      path.write_text(uuid.uuid4().hex)
    self._run = wandb.init(
      project=project,
      name="/".join(folder.parts[-3:]),
      id=path.read_text(),
      resume="allow",
      dir=None if "://" in str(folder) else str(folder),
    )
    # Steps that a killed run makes again are behind the last one: an axis of our own may go back.
    self._run.define_metric("*", step_metric="step")

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Hands on one row."""
    self._run.log({"step": step} | {name: float(value) for name, value in scalars.items()})

  def flush(self) -> None:
    """Nothing: the package sends by itself."""

  def close(self) -> None:
    """Ends the run there."""
    self._run.finish()

  def _pass_over(self, *_: Any, **__: Any) -> None: ...

  write_summaries = write_images = write_videos = write_audios = _pass_over
  write_texts = write_histograms = write_pointcloud = write_hparams = _pass_over
