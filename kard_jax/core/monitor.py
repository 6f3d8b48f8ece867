"""What a person sees of a run: a progress line, `metrics.jsonl`, TensorBoard."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
from clu import metric_writers
from etils import epath
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from kard_jax.core.files import PathLike

METRICS = "metrics.jsonl"


class JsonlWriter(metric_writers.MetricWriter):
  """Scalars as JSON lines, one a step and call; the other kinds of summary are passed over."""

  def __init__(self, path: PathLike, first_step: int):
    """Appends to `path`; rows of steps that a resumed run makes again are dropped first."""
    self._path = epath.Path(path)
    kept = []
    if self._path.exists():
      rows = (line for line in self._path.read_text().splitlines() if line.endswith("}"))
      kept = [line for line in rows if json.loads(line)["step"] <= first_step]
    self._path.write_text("".join(line + "\n" for line in kept))
    self._file = self._path.open("a")

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Adds one row."""
    row = {"step": step} | {name: float(value) for name, value in scalars.items()}
    self._file.write(json.dumps(row) + "\n")
    self._file.flush()  # a kill loses no row

  def flush(self) -> None:
    """Hands what is written to the file system."""
    self._file.flush()

  def close(self) -> None:
    """Closes the file."""
    self._file.close()

  # The other kinds of summary go to TensorBoard alone.
  def _pass_over(self, *_: Any, **__: Any) -> None: ...

  write_summaries = write_images = write_videos = write_audios = _pass_over
  write_texts = write_histograms = write_pointcloud = write_hparams = _pass_over


class Monitor:
  """Shows and writes the figures of a run; only the first process does."""

  def __init__(self, folder: PathLike, steps: int, log_every: int):
    self._folder = epath.Path(folder)
    self._steps = steps
    self._log_every = log_every
    self._lead = jax.process_index() == 0
    self._writer: metric_writers.MetricWriter = metric_writers.MultiWriter([])
    self._console = Console(file=sys.stdout)
    # On a terminal one line is redrawn; in a log file a line is printed now and then.
    self._bar = Progress(
      TextColumn("{task.description}"),
      BarColumn(bar_width=20),
      TextColumn(
        "{task.completed}/{task.total} steps · loss {task.fields[loss]} · "
        "{task.fields[rate]} tokens/s"
      ),
      TimeElapsedColumn(),
      TextColumn("left"),
      TimeRemainingColumn(),
      console=self._console,
      disable=not (self._lead and self._console.is_terminal),
    )
    self._task = self._bar.add_task(self._folder.name, total=steps, loss="-", rate="-")
    self._tokens = 0
    self._rate = 0.0
    self._since = self._spoke = time.monotonic()

  def begin(self, step: int) -> None:
    """Starts at a step: 0, or where a resumed run goes on."""
    if self._lead:
      self._folder.mkdir(parents=True, exist_ok=True)
      self._writer = metric_writers.MultiWriter(
        [
          JsonlWriter(self._folder / METRICS, step),
          metric_writers.SummaryWriter(str(self._folder / "tensorboard")),
        ]
      )
      if step:
        self._console.print(f"{self._folder.name}: goes on at step {step} of {self._steps}")
    self._bar.update(self._task, completed=step)
    self._since = time.monotonic()

  def stepped(self, step: int, tokens: int) -> None:
    """A step was handed to the device."""
    self._tokens += tokens
    self._bar.update(self._task, completed=step + 1)

  def metrics(self, step: int, values: Mapping[str, float]) -> None:
    """The figures of a step have arrived."""
    if (step + 1) % self._log_every or not self._lead:
      return
    now = time.monotonic()
    self._rate = self._tokens / max(now - self._since, 1e-9)
    self._tokens, self._since = 0, now
    self._writer.write_scalars(
      step + 1,
      {f"train/{name}": v for name, v in values.items()} | {"train/tokens_per_s": self._rate},
    )
    self._bar.update(self._task, loss=f"{values['loss']:.4f}", rate=f"{self._rate:,.0f}")
    if not self._console.is_terminal and now - self._spoke > 20:
      self._spoke = now
      print(
        f"{self._folder.name}: step {step + 1}/{self._steps} loss {values['loss']:.4f} "
        f"{self._rate:,.0f} tokens/s",
        flush=True,
      )

  def evaluated(self, step: int, values: Mapping[str, float]) -> None:
    """An evaluation is done."""
    if not self._lead:
      return
    self._writer.write_scalars(step, {f"validation/{name}": v for name, v in values.items()})
    self._writer.flush()
    shown = "  ".join(f"{name} {value:.4f}" for name, value in sorted(values.items()))
    self._console.print(
      f"{self._folder.name}: step {step}/{self._steps} validation {shown}", soft_wrap=True
    )
    self._since, self._tokens = time.monotonic(), 0

  def __enter__(self) -> Monitor:
    self._bar.start()
    return self

  def __exit__(self, *_: object) -> None:
    self._bar.stop()
    self._writer.flush()
    self._writer.close()
