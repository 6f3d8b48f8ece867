"""Who is late: every process tells where it is, watches the others, and names the one that hangs.

In training all processes go through the same places (steps, batches of an evaluation, saves), so
the one whose count is lowest is the one for which the others wait. The watch runs on threads of its
own: it works while the process's main thread hangs in a collective.
"""

from __future__ import annotations

import contextlib
import faulthandler
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from kard_jax.core import exits

if TYPE_CHECKING:
  from kard_jax.core.hosts import _Team


_SILENT = 60.0  # seconds: a process that lives says something every second


class Seen(NamedTuple):
  """What is known of a process.

  Attributes:
    beat: counts its messages.
    places: how many it has come to; comparable while all are in step.
    place: the last one.
    heard: when a new message of it came, by our clock.
  """

  beat: int
  places: int
  place: str
  heard: float


class Watchdog:
  """Tells the others where this process is, and sees where they are.

  Attributes:
    period: seconds between two messages.
    place: where this process is.
  """

  def __init__(self, team: _Team):
    self.period = min(1.0, team.times.step / 10)
    self.place = "the start"
    self._team = team
    self._limit = team.times.step
    self._count = 0
    self._moved = time.monotonic()
    self._in_step = ""
    self._seen: dict[int, Seen] = {}
    self._answered = time.monotonic()
    self._stop = threading.Event()

  def start(self) -> None:
    """Begins to watch."""
    for work in (self._talk, self._look):  # apart: a store that hangs must not stop the looking
      threading.Thread(target=work, name=f"watchdog{work.__name__}", daemon=True).start()

  def stop(self) -> None:
    """Watches no more."""
    self._stop.set()

  def goes_on(self, place: str, counts: bool = True) -> None:
    """This process has come to a place."""
    self.place = place
    self._moved = time.monotonic()
    self._count += counts

  @contextlib.contextmanager
  def in_step(self, what: str) -> Iterator[None]:
    """All processes come to the same places in here."""
    self._count = 0
    self.goes_on(what)
    self._in_step = what
    try:
      yield
    finally:
      self._in_step = ""

  def silent(self, seconds: float) -> list[int]:
    """The other processes of which nothing was heard for so long."""
    now = time.monotonic()
    return [
      index
      for index, seen in sorted(self._seen.items())
      if index != self._team.index and now - seen.heard > seconds
    ]

  def describe(self, indices: Sequence[int]) -> str:
    """Names processes and says where each was last."""
    told = []
    for index in indices:
      seen = self._seen.get(index)
      if seen is None:
        told.append(f"host {index} (never heard of)")
      else:
        ago = time.monotonic() - seen.heard
        silent = f", silent for {ago:.0f} s" if ago > 3 * self.period else ""
        told.append(f"host {index} (last at {seen.place}{silent})")
    return ", ".join(told)

  def _talk(self) -> None:
    beat = 0
    while not self._stop.wait(self.period if beat else 0):
      beat += 1
      mine = [beat, self._count, self.place]
      with contextlib.suppress(Exception):  # `_look` sees that nothing was heard
        self._team.put(f"beat/{self._team.index}", mine)
        now = time.monotonic()
        for index, (number, count, place) in self._team.all("beat").items():
          before = self._seen.get(index)
          heard = now if before is None or before.beat != number else before.heard
          self._seen[index] = Seen(number, count, place, heard)
        self._answered = now
        for index, failure in self._team.all("failed").items():
          if index != self._team.index and not self._stop.is_set():
            self._follow(index, failure)

  def _follow(self, index: int, failure: dict[str, Any]) -> None:
    """Another process has failed, and said so: this one fails likewise."""
    from kard_jax.core import hosts

    print(f"host {index} failed: {failure['message']}", file=sys.stderr, flush=True)
    hosts.end(self._team, failure["status"])

  def _look(self) -> None:
    while not self._stop.wait(self.period / 2):
      late = self._late()
      if late and not self._stop.is_set():
        self._give_up(late)

  def _late(self) -> str:
    """Which processes are late, and where they are; "" if none is."""
    now = time.monotonic()
    if now - self._answered > self._limit:
      return f"{self.describe([0])} does not answer: it keeps what the processes tell each other"
    if silent := self.silent(min(self._limit, _SILENT)):
      return f"{self.describe(silent)} is not heard of any more"
    if not self._in_step or now - self._moved < self._limit:
      return ""
    counts = {index: seen.places for index, seen in self._seen.items()}
    counts[self._team.index] = self._count
    lowest = min(counts.values())
    if lowest == max(counts.values()):
      return f"no host goes on; all are at {self.place}"
    return f"{self.describe([i for i in sorted(counts) if counts[i] == lowest])} is late"

  def _give_up(self, late: str) -> None:
    from kard_jax.core import hosts

    me = f"this is host {self._team.index}, at {self.place} since"
    message = (
      f"{late}; {me} {time.monotonic() - self._moved:.0f} s, and STEP_TIMEOUT is "
      f"{self._limit:g} s. Start the run again: it goes on at its last checkpoint"
    )
    print(f"error: {message}\nWhat this host is doing:", file=sys.stderr, flush=True)
    faulthandler.dump_traceback(2, all_threads=True)
    if self._team.index == 0:  # others find out by themselves; those who do not are told
      with contextlib.suppress(Exception):
        self._team.put(f"failed/{self._team.index}", {"status": exits.LOST, "message": message})
    hosts.end(self._team, exits.LOST)
