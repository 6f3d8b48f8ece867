"""A bar for what takes long: how much is done, how fast, and when it will end."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

_SAY_EVERY = 60.0  # seconds


@contextlib.contextmanager
def texts(total: int) -> Iterator[Callable[[int, int], None]]:
  """Yields what counts the inputs that are done and the tokens that were written.

  The bar stands on standard error, and only where somebody looks on.

  Args:
    total: inputs.
  """
  begun, inputs, written = time.monotonic(), 0, 0
  with _bar(total, "texts") as show:

    def advance(done: int, tokens: int) -> None:
      nonlocal inputs, written
      inputs, written = inputs + done, written + tokens
      seconds = max(time.monotonic() - begun, 1e-9)
      show(inputs, f"{inputs / seconds:,.1f} texts/s, {written / seconds:,.0f} tokens/s")

    yield advance


@contextlib.contextmanager
def candidates(total: int) -> Iterator[Callable[[int], None]]:
  """Yields what counts the passages that a reranker has scored, or encoded.

  Args:
    total: passages.
  """
  begun, done = time.monotonic(), 0
  with _bar(total, "passages") as show:

    def advance(count: int) -> None:
      nonlocal done
      done += count
      show(done, f"{done / max(time.monotonic() - begun, 1e-9):,.0f} passages/s")

    yield advance


@contextlib.contextmanager
def asking(total: int) -> Iterator[Callable[[int, str], None]]:
  """Yields what shows how many completions came of an endpoint, and what else to tell.

  Where nobody looks on, a line is printed once a minute: such runs take hours.

  Args:
    total: completions wanted.
  """
  said = time.monotonic()
  with _bar(total, "completions") as show:

    def advance(done: int, status: str) -> None:
      nonlocal said
      show(done, status)
      if not sys.stderr.isatty() and time.monotonic() - said > _SAY_EVERY:
        said = time.monotonic()
        print(f"{done:>7,} of {total:,} completions, {status}", flush=True)

    yield advance


@contextlib.contextmanager
def _bar(total: int, unit: str) -> Iterator[Callable[[int, str], None]]:
  """Yields what shows how much is done, and how fast."""
  if not sys.stderr.isatty():
    yield lambda done, speed: None
    return
  import rich.console
  import rich.progress

  columns = (
    rich.progress.TextColumn("{task.completed:>7,.0f} of {task.total:,.0f} " + unit),
    rich.progress.BarColumn(),
    rich.progress.TextColumn("{task.fields[speed]}"),
    rich.progress.TimeElapsedColumn(),
    rich.progress.TextColumn("left"),
    rich.progress.TimeRemainingColumn(),
  )
  with rich.progress.Progress(*columns, console=rich.console.Console(stderr=True)) as bar:
    task = bar.add_task("writing", total=total, speed="")
    yield lambda done, speed: bar.update(task, completed=done, speed=speed)
