"""A bar for what takes long: how much is done, how fast, and when it will end."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def texts(total: int) -> Iterator[Callable[[int, int], None]]:
  """Yields what counts the inputs that are done and the tokens that were written.

  The bar stands on standard error, and only where somebody looks on.

  Args:
    total: inputs.
  """
  if not sys.stderr.isatty():
    yield lambda done, tokens: None
    return
  import rich.console
  import rich.progress

  columns = (
    rich.progress.TextColumn("{task.completed:>7,.0f} of {task.total:,.0f} texts"),
    rich.progress.BarColumn(),
    rich.progress.TextColumn("{task.fields[speed]}"),
    rich.progress.TimeElapsedColumn(),
    rich.progress.TextColumn("left"),
    rich.progress.TimeRemainingColumn(),
  )
  with rich.progress.Progress(*columns, console=rich.console.Console(stderr=True)) as bar:
    task = bar.add_task("writing", total=total, speed="")
    begun, inputs, written = time.monotonic(), 0, 0

    def advance(done: int, tokens: int) -> None:
      nonlocal inputs, written
      inputs, written = inputs + done, written + tokens
      seconds = max(time.monotonic() - begun, 1e-9)
      speed = f"{inputs / seconds:,.1f} texts/s, {written / seconds:,.0f} tokens/s"
      bar.update(task, completed=inputs, speed=speed)

    yield advance
