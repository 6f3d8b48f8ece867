"""SIGTERM: a run saves at the next step, on all hosts at the same one, and leaves.

Machines that are taken away, and schedulers whose time is up, say so by SIGTERM, often to one host
alone. Each step every host asks all: the answer is a sum over the mesh, so that all get the same
one at the same step; it is read a step later, when it is there, and holds nothing up.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from kard_jax.core.partitioning import Partitioner


class Stop:
  """A context manager in which SIGTERM is noted instead of ending the process."""

  def __init__(self, partitioner: Partitioner):
    self._asked = False
    self._before: Any = None
    self._answer: jax.Array | None = None
    mesh = partitioner.mesh
    self._alone = jax.process_count() == 1
    self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    self._shape = (mesh.size,)
    self._sum = jax.jit(jnp.sum, out_shardings=partitioner.replicated)

  def __enter__(self) -> Stop:
    if threading.current_thread() is threading.main_thread():  # others must not set handlers
      self._before = signal.signal(signal.SIGTERM, self._note)
    return self

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
  ) -> None:
    if self._before is not None:
      signal.signal(signal.SIGTERM, self._before)

  def _note(self, number: int, frame: FrameType | None) -> None:
    self._asked = True

  def now(self) -> bool:
    """Whether to stop behind this step; every host asks once a step, and gets the same answer."""
    if self._alone:
      return self._asked
    before, asked = self._answer, self._asked
    self._answer = self._sum(
      jax.make_array_from_callback(
        self._shape, self._sharding, lambda index: np.full(1, asked, np.int32)
      )
    )
    return before is not None and int(before) > 0
