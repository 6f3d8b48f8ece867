"""What a person sees of a run: a progress line, `metrics.jsonl`, TensorBoard, a profile."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from time import monotonic
from typing import Any, TypeVar

import jax
from clu import metric_writers
from clu.metric_writers.tf import summary_writer
from etils import epath
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from kard_jax.core import flops, idle, tracking
from kard_jax.core.files import InputError, PathLike

T = TypeVar("T")

METRICS = "metrics.jsonl"


def _tensorboard(folder: epath.Path) -> metric_writers.MetricWriter:
  """What writes TensorBoard's files: by TensorFlow, which must not take the devices' memory."""
  for kind in ("GPU", "TPU"):
    with contextlib.suppress(RuntimeError):  # it runs already
      summary_writer.tf.config.set_visible_devices([], kind)
  return metric_writers.SummaryWriter(str(folder))


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
    """Hands what is written to the disk; a mounted bucket shows it only then."""
    self._file.flush()
    if hasattr(self._file, "fileno"):
      os.fsync(self._file.fileno())

  def close(self) -> None:
    """Closes the file."""
    self._file.close()

  # The other kinds of summary go to TensorBoard alone.
  def _pass_over(self, *_: Any, **__: Any) -> None: ...

  write_summaries = write_images = write_videos = write_audios = _pass_over
  write_texts = write_histograms = write_pointcloud = write_hparams = _pass_over


@dataclasses.dataclass(frozen=True)
class Monitoring:
  """What a run shows beside its figures.

  Attributes:
    profile: first and last step to profile, counted as in the metrics; None profiles nothing. The
      trace lies in the run's folder, for TensorBoard (with xprof) and ui.perfetto.dev.
    wandb: a project of Weights & Biases that gets the figures too; None gives them to none.
  """

  profile: Sequence[int] | None = None
  wandb: str | None = None

  def __post_init__(self) -> None:
    steps = self.profile
    if steps is not None and not (len(steps) == 2 and 1 <= steps[0] <= steps[1]):
      raise InputError(f"PROFILE = {steps}: first and last step are needed, such as (10, 13)")


class Monitor:
  """Shows and writes the figures of a run; only the first process does."""

  def __init__(
    self, folder: PathLike, steps: int, log_every: int, monitoring: Monitoring | None = None
  ):
    self._folder = epath.Path(folder)
    self._steps = steps
    self._log_every = log_every
    self._monitoring = monitoring or Monitoring()
    self._lead = jax.process_index() == 0
    if self._lead and self._monitoring.wandb:
      tracking.load()  # fails now, not after an hour of reading parameters
    self._writer: metric_writers.MetricWriter = metric_writers.MultiWriter([])
    self._console = Console(file=sys.stdout)
    self._bar = _Bar(self._console, self._folder.name, steps, self._lead)
    self._profile = _Profile(self._folder, self._monitoring.profile if self._lead else None)
    self._idle = idle.Idle()
    self._window = _Window()
    self._compiled: float | None = None  # seconds
    self._peak: float | None = None  # FLOP/s a device
    self._work = 0.0  # FLOPs a step and device
    self._spoke = monotonic()

  def begin(self, step: int, work: Callable[[], float] | None = None) -> None:
    """Starts at a step: 0, or where a resumed run goes on.

    Args:
      step: how many are done.
      work: gives the FLOPs of a step and device; asked only where the devices' peak is known.
    """
    self._peak = flops.peak(jax.local_devices()[0].device_kind) if self._lead and work else None
    self._work = work() if work and self._peak else 0.0
    if self._lead:
      self._folder.mkdir(parents=True, exist_ok=True)
      writers: list[metric_writers.MetricWriter] = [
        JsonlWriter(self._folder / METRICS, step),
        _tensorboard(self._folder / "tensorboard"),
      ]
      if self._monitoring.wandb:
        writers.append(tracking.WandbWriter(self._monitoring.wandb, self._folder, step))
      self._writer = metric_writers.MultiWriter(writers)
      if step:
        self._console.print(f"{self._folder.name}: goes on at step {step} of {self._steps}")
    self._bar.show(step)
    self._profile.handed(step)
    self._window = _Window()

  def batches(self, batches: Iterator[T]) -> Iterator[T]:
    """The same batches, one a step: what the devices wait for them is seen."""
    for batch in self._idle.batches(batches):
      if self._compiled is None:
        self._window = _Window()  # what compiling takes begins here
      yield batch

  def stepped(self, step: int, tokens: int, output: Any = None) -> None:
    """A step was handed to the devices.

    Args:
      step: it; from 0.
      tokens: in its batch, over all processes.
      output: any array that is there when the step is done.
    """
    if output is not None:
      self._idle.runs(output)
    if self._compiled is None:  # the first call traces and compiles, then the devices begin
      self._compiled = self._window.seconds()
      self._window = _Window(idle=self._idle.seconds)
    self._window.tokens += tokens
    self._window.steps += 1
    self._bar.show(step + 1)
    self._profile.handed(step + 1)

  def metrics(self, step: int, values: Mapping[str, float]) -> None:
    """The figures of a step have arrived: it is done."""
    self._profile.done(step + 1)
    if (step + 1) % self._log_every or not self._lead:
      return
    seen = self._figures()
    self._writer.write_scalars(
      step + 1, {f"train/{name}": v for name, v in {**values, **seen}.items()}
    )
    shown = _shown(seen)
    self._bar.show(step + 1, values["loss"], shown)
    if not self._console.is_terminal and monotonic() - self._spoke > 20:
      self._spoke = monotonic()
      print(
        f"{self._folder.name}: step {step + 1}/{self._steps} loss {values['loss']:.4f} "
        + " · ".join(shown),
        flush=True,
      )

  def _figures(self) -> dict[str, float]:
    """Those of the steps since the last call, and the memory's high water."""
    window, self._window = self._window, _Window(idle=self._idle.seconds)
    seconds = max(window.seconds(), 1e-9)
    waited = min(1.0, (self._idle.seconds - window.idle) / seconds)
    figures = {"tokens_per_s": window.tokens / seconds}
    if window.steps:
      figures |= {"step_s": seconds / window.steps, "input_wait": waited}
      if self._peak:
        figures["mfu"] = self._work * window.steps / seconds / self._peak
    memory = [device.memory_stats() or {} for device in jax.local_devices()]
    if peaks := [stats["peak_bytes_in_use"] for stats in memory if "peak_bytes_in_use" in stats]:
      figures["hbm_peak_gib"] = max(peaks) / 2**30
    if self._compiled is not None:
      figures["compile_s"] = self._compiled
    return figures

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
    self._window = _Window(idle=self._idle.seconds)

  def __enter__(self) -> Monitor:
    self._bar.start()
    return self

  def __exit__(self, *_: object) -> None:
    self._bar.stop()
    self._profile.stop()
    self._idle.close()
    self._writer.flush()
    self._writer.close()


@dataclasses.dataclass
class _Window:
  """What has happened since the last row: tokens and steps, from when on, after how much idling."""

  tokens: int = 0
  steps: int = 0
  idle: float = 0.0
  since: float = dataclasses.field(default_factory=lambda: monotonic())

  def seconds(self) -> float:
    return monotonic() - self.since


def _shown(figures: Mapping[str, float]) -> list[str]:
  """Figures for people, the most important ones first."""
  shown = [f"{figures['tokens_per_s']:,.0f} tokens/s"]
  if "step_s" in figures:
    shown.append(f"{figures['step_s']:.3g} s/step")
  if "mfu" in figures:
    shown.append(f"MFU {figures['mfu']:.1%}")
  if "input_wait" in figures:
    shown.append(f"input wait {figures['input_wait']:.0%}")
  if "hbm_peak_gib" in figures:
    shown.append(f"HBM {figures['hbm_peak_gib']:.1f} GiB")
  if "compile_s" in figures:
    shown.append(f"compiled in {figures['compile_s']:.0f} s")
  return shown


class _Bar:
  """On a terminal two lines are redrawn: how far the run is, and how it goes. Elsewhere nothing."""

  def __init__(self, console: Console, name: str, steps: int, lead: bool):
    self._console = console
    self._progress = Progress(
      TextColumn("{task.description}"),
      BarColumn(bar_width=None),
      TextColumn("{task.completed}/{task.total}"),
      TextColumn("loss {task.fields[loss]}"),
      TimeElapsedColumn(),
      TextColumn("left"),
      TimeRemainingColumn(),
      console=console,
      expand=True,
    )
    self._task = self._progress.add_task(name, total=steps, loss="-")
    self._figures = Text("compiling", style="dim", no_wrap=True)
    self._live = Live(
      Group(self._progress, self._figures), console=console, refresh_per_second=4, transient=False
    )
    self._drawn = lead and console.is_terminal

  def show(self, done: int, loss: float | None = None, figures: Sequence[str] = ()) -> None:
    """Draws anew: the steps that are done and, where they are given, the figures that fit."""
    self._progress.update(self._task, completed=done)
    if loss is None:
      return
    self._progress.update(self._task, loss=f"{loss:.4f}")
    line = ""
    for figure in figures:
      longer = f"{line} · {figure}" if line else figure
      if len(longer) > self._console.width:
        break
      line = longer
    self._figures.plain = line

  def start(self) -> None:
    if self._drawn:
      self._live.start()

  def stop(self) -> None:
    if self._drawn:
      self._live.stop()


class _Profile:
  """A profiler's trace of the steps from a first to a last one, counted from 1."""

  def __init__(self, folder: epath.Path, steps: Sequence[int] | None):
    self._folder = folder / "profile"
    self._first, self._last = steps or (0, 0)
    self._runs = False

  def handed(self, step: int) -> None:
    """So many steps were handed to the devices; the trace begins before the first of its own is."""
    if step == self._first - 1:
      jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
      self._runs = True

  def done(self, step: int) -> None:
    """So many steps are done; the trace ends after the last of its own."""
    if step >= self._last:
      self.stop()

  def stop(self) -> None:
    """Ends the trace, also one that is not complete."""
    if self._runs:
      self._runs = False
      jax.profiler.stop_trace()
      print(f"profile: {self._folder}", flush=True)
