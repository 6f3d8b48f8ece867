"""Batches made ready on a thread while the device computes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import jax
import numpy as np

from kard_jax.core.partitioning import Partitioner

if TYPE_CHECKING:
  from kard_jax.core.train import Batches

_DEPTH = 2  # batches kept ready: enough to hide a slow one, little memory


def ahead(
  batches: Batches, rows: slice, partitioner: Partitioner, begin: int, end: int
) -> Iterator[tuple[int, tuple[dict[str, jax.Array], int]]]:
  """Yields `(step, (batch on the mesh, its tokens))` for steps `begin` to `end - 1`.

  An exception on the thread is raised here, at the step it belongs to.
  """
  ready: queue.Queue[tuple[int, dict[str, np.ndarray] | BaseException]] = queue.Queue(_DEPTH)
  stop = threading.Event()

  def hand_over(item: tuple[int, dict[str, np.ndarray] | BaseException]) -> None:
    while not stop.is_set():
      try:
        return ready.put(item, timeout=0.1)
      except queue.Full:
        continue

  def work() -> None:
    for step in range(begin, end):
      try:
        hand_over((step, dict(batches(step, rows))))
      except BaseException as error:
        return hand_over((step, error))
      if stop.is_set():
        return None
    return None

  thread = threading.Thread(target=work, name="prefetch", daemon=True)
  thread.start()
  try:
    for _ in range(begin, end):
      step, batch = ready.get()
      if isinstance(batch, BaseException):
        raise batch
      yield step, (partitioner.put(batch, batches.batch_size), tokens(batch))
  finally:
    stop.set()
    thread.join()


def tokens(batch: dict[str, np.ndarray]) -> int:
  """Real tokens in a batch: all that are not padding, what is read and what is predicted."""
  return sum(
    int(np.count_nonzero(feature))
    for name, feature in batch.items()
    if name.endswith("_tokens") and name != "decoder_input_tokens"
  )
