"""The processes of a run among themselves: who leads, who waits for whom, who has failed.

They speak through the key-value store of JAX's coordinator, never through devices, so that a host
which hangs in a device's collective can still be told from one that works. All of this costs
nothing, and means nothing, where there is one process.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from kard_jax.core import exits

_POLL = 0.05  # seconds between two looks at who has come
# What XLA, Gloo and JAX's coordinator say when a process is not there any more.
_GONE = ("gloo", "connection", "unavailable", "deadline_exceeded", "coordination", "heartbeat")


class Times(NamedTuple):
  """How long others are waited for, in seconds.

  Attributes:
    start: for all processes to start.
    step: for a host that no longer goes on, or is not heard of: longer than the longest step with
      its evaluation, save and compilation.
    barrier: for others to finish their part of a stage.
  """

  start: float = 300.0
  step: float = 900.0
  barrier: float = 7200.0


class _Team:
  """Several processes, as one sees it."""

  def __init__(self, index: int, count: int, store: Any, times: Times):
    self.index = index
    self.count = count
    self.times = times
    self.store = store
    self.watch: Any = None
    self._numbers = itertools.count()

  def put(self, key: str, value: Any) -> None:
    self.store.key_value_set(f"kard/{key}", json.dumps(value), allow_overwrite=True)

  def all(self, folder: str) -> dict[int, Any]:
    """What each process has put under `folder/<its number>`."""
    rows = self.store.key_value_dir_get(f"kard/{folder}/")
    return {int(key.rpartition("/")[2]): json.loads(value) for key, value in rows}

  def next(self, name: str) -> str:
    """A name for a meeting: every process comes to all of them in the same order."""
    return f"{next(self._numbers)}-{name}"


_team: _Team | None = None


def join(times: Times) -> None:
  """Takes this process into the team of a run; JAX's distributed service has started."""
  global _team
  from jax._src import distributed  # JAX has no public name for its key-value store

  from kard_jax.core import watchdog

  state = distributed.global_state
  _team = _Team(state.process_id, state.num_processes, state.client, times)
  _team.watch = watchdog.Watchdog(_team)
  _team.watch.start()
  if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGTERM, _terminate)  # so that the others hear of it


def _terminate(number: int, frame: Any) -> None:
  raise exits.Terminated("stopped by SIGTERM; the stage is made at the next start")


def count() -> int:
  """How many processes there are."""
  return _team.count if _team else 1


def index() -> int:
  """This one's number, from 0."""
  return _team.index if _team else 0


def is_lead() -> bool:
  """Whether this is the process that writes what all share."""
  return index() == 0


def share(items: int) -> slice:
  """This process's part of so many items: contiguous, as even as can be."""
  return slice(items * index() // count(), items * (index() + 1) // count())


def goes_on(place: str) -> None:
  """Tells the others that this process has come to another place, such as a step."""
  if _team:
    _team.watch.goes_on(place)


@contextlib.contextmanager
def in_step(what: str) -> Iterator[None]:
  """In here all processes come to the same places one after another, each within `Times.step`."""
  if not _team:
    yield
    return
  with _team.watch.in_step(what):
    yield


def meet(name: str, timeout: float | None = 0.0) -> None:
  """Waits until every process has come here.

  Args:
    name: for messages.
    timeout: seconds; 0 takes `Times.barrier`, None waits as long as the others are heard of.

  Raises:
    exits.Lost: some have not come in time; says which.
  """
  _gather(name, None, timeout)


def agree(name: str, make: Callable[[], Any]) -> Any:
  """What process 0 makes, as every process gets it; it must be of JSON's kinds."""
  if not _team:
    return make()
  value = make() if is_lead() else None
  return _gather(name, value, None)[0]


def all_true(name: str, mine: bool) -> bool:
  """Whether it is true on every process."""
  return all(_gather(name, mine, 0.0).values())


@contextlib.contextmanager
def lead_first(name: str) -> Iterator[None]:
  """Process 0 runs the body alone; the others run it when it has, and find what it made."""
  if not is_lead():
    meet(f"{name}, by process 0", None)
  yield
  if is_lead():
    meet(f"{name}, by process 0", None)


def _gather(name: str, value: Any, timeout: float | None) -> Mapping[int, Any]:
  """Every process's value."""
  team = _team
  if team is None:
    return {0: value}
  limit = team.times.barrier if timeout == 0 else timeout
  key = f"meet/{team.next(name)}"
  team.put(f"{key}/{team.index}", value)
  before = team.watch.place
  team.watch.goes_on(f"waiting for others ({name})", counts=False)
  started = time.monotonic()
  while len(found := team.all(key)) < team.count:
    if limit is not None and time.monotonic() - started > limit:
      missing = sorted(set(range(team.count)) - set(found))
      raise exits.Lost(
        f"{team.watch.describe(missing)} did not come to {name!r} within {limit:.0f} s "
        "(BARRIER_TIMEOUT)"
      )
    time.sleep(_POLL)
  team.watch.goes_on(before, counts=False)
  return found


def blame(error: Exception) -> tuple[int, str]:
  """The status to leave with, and what to tell, for an error that may be another host's.

  A collective fails where another process has died. Whoever failed for a reason of its own says so
  within moments: then the watchdog ends this process as that one ended.
  """
  assert _team is not None
  shown = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
  gone = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError", "ValueError")
  if gone and any(word in shown.lower() for word in _GONE):
    time.sleep(4 * _team.watch.period)
    silent = _team.watch.silent(3 * _team.watch.period)
    who = f"{_team.watch.describe(silent)} is gone" if silent else "another host is gone"
    return exits.LOST, f"error: {who} (this is host {_team.index}, at {_team.watch.place}): {shown}"
  traceback.print_exc()
  return exits.FAILED, shown


def leave(status: int, message: str = "", together: bool = False) -> None:
  """Ends this process's part in the run; a failure ends the others too.

  Where there are others and it is a failure, this does not return: a usual exit would wait for
  processes that are no longer there.

  Args:
    status: see `exits`.
    message: what the others are told.
    together: whether all leave with this status, each by itself.
  """
  global _team
  team = _team
  if team is None:
    return
  if together:
    import jax

    meet("the end")
    team.watch.stop()
    _team = None
    jax.distributed.shutdown()
    return
  with contextlib.suppress(Exception):
    team.put(f"failed/{team.index}", {"status": status, "message": message})
  end(team, status)


def end(team: _Team, status: int) -> None:
  """Leaves at once; process 0, which keeps the store, only when others could read it."""
  sys.stdout.flush()
  sys.stderr.flush()
  if team.index == 0:
    time.sleep(3 * team.watch.period)
  os._exit(status)
