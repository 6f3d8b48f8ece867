"""How long the devices had nothing to do because the next batch was not there.

The time that the loop waits for a batch is not it: most of it the devices are still at the step
before. So a thread notes when each step ends, and only what is waited after that counts.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any, TypeVar

T = TypeVar("T")


class Idle:
  """Sums up idle time over the batches that pass through `batches`."""

  def __init__(self) -> None:
    self.seconds = 0.0
    self._steps: queue.Queue[Any] = queue.Queue()
    self._last: Any = None
    self._ended: float | None = None  # when the last step did
    self._lock = threading.Lock()
    self._thread: threading.Thread | None = None

  def batches(self, batches: Iterator[T]) -> Iterator[T]:
    """The same batches; what is waited for each, while nothing runs, is added to `seconds`."""
    while True:
      begun = time.monotonic()
      batch = next(batches, None)
      if batch is None:
        return
      with self._lock:
        ended = self._ended
      if ended is not None:
        self.seconds += time.monotonic() - max(begun, ended)
      yield batch

  def runs(self, output: Any) -> None:
    """A step was handed to the devices; `output`, an array, is there when it ends."""
    with self._lock:
      self._last, self._ended = output, None
    self._steps.put(output)
    if self._thread is None:
      self._thread = threading.Thread(target=self._note, name="step ends", daemon=True)
      self._thread.start()

  def close(self) -> None:
    """Ends the thread."""
    if self._thread is not None:
      self._steps.put(None)
      self._thread.join()

  def _note(self) -> None:
    for output in iter(self._steps.get, None):
      with contextlib.suppress(Exception):  # whoever reads the figures gets the error
        output.block_until_ready()
      with self._lock:
        if output is self._last:
          self._ended = time.monotonic()
