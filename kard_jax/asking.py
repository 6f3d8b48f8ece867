"""Asks an endpoint for thousands of completions at the rate it allows, and loses none that came.

What comes is recorded at once (`completions.Record`), so a run that was killed goes on where it
was; how fast to ask is learned from refusals (`core.pacing`).
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import random
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from kard_jax.completions import Ask, Piece, Record, digest
from kard_jax.core import progress
from kard_jax.core.files import InputError, PathLike
from kard_jax.core.pacing import Pace
from kard_jax.endpoint import (
  Client,
  Endpoint,
  RefusedError,
  RejectedError,
  TroubleError,
  tokens_of,
)

_FIRST_WAIT, _LONGEST_WAIT = 0.25, 60.0  # seconds, before the second try and at most
_LONGEST_REFUSED = 4.0  # after a refusal that names no time: all together are slowed down besides
_WAITING = 32  # completions for each open request: those that wait to ask again hold no others up
_WRITTEN = 256  # tokens of a completion, before any has come
_TICK = 0.5  # seconds between looks at the disk and at the screen


class Outcome(NamedTuple):
  """What there is after a run.

  Attributes:
    texts: completions of each ask, by its id, in the order of their samples.
    counts: completions that were asked for, answered, cut at the length limit, rejected.
    prompt_tokens, completion_tokens: used so far, all runs together.
    capped: the cap that ended the run, as told to the user; None where all was asked.
  """

  texts: dict[str, list[str]]
  counts: dict[str, int]
  prompt_tokens: int
  completion_tokens: int
  capped: str | None


def ask(endpoint: Endpoint, asks: Sequence[Ask], path: PathLike) -> Outcome:
  """Asks for what is not recorded yet.

  Args:
    endpoint: who is asked, and how.
    asks: all that is wanted, recorded or not.
    path: of the journal.

  Raises:
    InputError: nothing like this will be answered (a wrong key, model or option), nothing was
      answered for long, or some requests met trouble at each attempt. What came is recorded.
  """
  with Record(path, endpoint.identity, asks) as record:
    if record.torn:
      print(
        f"{record.path}: a kill cut the last row short ({record.torn:,} bytes, dropped); it is "
        "asked for again",
        flush=True,
      )
    run = _Run(endpoint, record)
    if run.waiting:
      run.go()
    return _outcome(record, run.capped)


def recorded(endpoint: Endpoint, asks: Sequence[Ask], path: PathLike) -> Outcome:
  """What is in the journal; asks nothing."""
  with Record(path, endpoint.identity, asks) as record:
    return _outcome(record, None)


def _outcome(record: Record, capped: str | None) -> Outcome:
  counts = record.counts()
  return Outcome(record.texts(), counts, record.prompt_tokens, record.completion_tokens, capped)


def generate(endpoint: Endpoint, path: PathLike) -> Callable[[Sequence[str], int], list[list[str]]]:
  """The endpoint as what writes texts for prompts (`answer.Generate`).

  Args:
    endpoint: who is asked.
    path: of the journal; a prompt that was answered there is not asked again.

  Returns:
    a function; it raises InputError as `ask`, and where a cap or the server's refusal leaves a
    prompt without some of its texts.
  """

  def write(prompts: Sequence[str], samples: int) -> list[list[str]]:
    unique = {digest(prompt): prompt for prompt in prompts}
    outcome = ask(endpoint, [Ask(id, prompt, samples) for id, prompt in unique.items()], path)
    found = [outcome.texts[digest(prompt)] for prompt in prompts]
    if lacking := sum(len(texts) < samples for texts in found):
      raise InputError(
        f"{path}: {lacking:,} of {len(prompts):,} prompts were not answered "
        f"({outcome.capped or 'the endpoint rejects them'})"
      )
    return found

  return write


class _Run:
  """One run: what waits to be asked, what is open, and what is known of the server."""

  def __init__(self, endpoint: Endpoint, record: Record):
    self.endpoint = endpoint
    self.record = record
    self.waiting = collections.deque(record.missing(at_once=endpoint.at_once))
    self.capped: str | None = None
    self.failed: list[str] = []  # the last reason of each request that was given up
    self.pace = Pace()
    self._draws = random.Random()  # of waits: two runs must not go in step
    self._begun = self._heard = time.monotonic()  # when the last answer came
    self._open = 0  # completions in requests that are under way
    self._landed = asyncio.Event()  # a request that was under way is not any more
    self._done = 0

  def go(self) -> None:
    """Asks for all that waits."""
    wanted = sum(len(piece.samples) for piece in self.waiting)
    with progress.asking(wanted) as self._show, contextlib.closing(asyncio.Runner()) as runner:
      runner.run(self._all())
    if self.failed:
      left = sum(len(piece.samples) for piece in self.record.missing(at_once=False))
      raise InputError(
        f"{left:,} of {wanted:,} completions did not come, after {self.endpoint.attempts} attempts "
        f"each (the last: {self.failed[-1]}); the others are in {self.record.path}. Run again to "
        "ask for these"
      )

  async def _all(self) -> None:
    try:
      async with Client(self.endpoint) as self.client:
        self._slots = asyncio.Semaphore(self.endpoint.concurrency)
        ticker = asyncio.create_task(self._tick())
        try:
          async with asyncio.TaskGroup() as group:
            while (piece := await self._next()) is not None:
              group.create_task(self._one(piece))
        finally:
          ticker.cancel()
    except* InputError as several:
      raise several.exceptions[0] from None

  async def _next(self) -> Piece | None:
    """What to ask for next, with a slot held for it; None where all is done or a cap is reached."""
    await self._slots.acquire()
    while self.waiting or self._open:
      full = self._open >= _WAITING * self.endpoint.concurrency
      if self.waiting and not full:
        self.capped = self._cap(len(self.waiting[0].samples))
        if self.capped is None:
          piece = self.waiting.popleft()
          self._open += len(piece.samples)
          return piece
        if not self._open:
          break
      # What is under way may cost less than expected, or bring less than it was asked for.
      self._slots.release()
      self._landed.clear()
      await self._landed.wait()
      await self._slots.acquire()
    return None

  async def _one(self, piece: Piece) -> None:
    """Asks until an answer comes, or the attempts are used up; begins with a slot held."""
    attempts = refusals = 0
    try:
      while True:
        try:
          await self._turn()
          answer = await self.client.complete(piece.ask.prompt, len(piece.samples))
        except RejectedError as error:
          self.pace.answered(time.monotonic())
          self.record.reject(piece, str(error))
          return
        except RefusedError as error:
          trouble, now = error, time.monotonic()
          if isinstance(error, TroubleError):
            attempts += 1
            wait = self._wait(attempts, _LONGEST_WAIT, error)
            self.pace.answered(now)
          else:
            refusals += 1
            wait = self._wait(refusals, _LONGEST_REFUSED, error)
            self.pace.refused(now, wait)
        else:
          self._heard = time.monotonic()
          self.pace.answered(self._heard)
          self._done += len(answer.completions)
          if (rest := self.record.add(piece, answer)) is not None:
            self.waiting.append(rest)  # the server gave fewer than `n`
          return
        finally:
          self._slots.release()
        if attempts >= self.endpoint.attempts:
          self.failed.append(str(trouble))
          return
        self._check_patience(wait, trouble)
        await asyncio.sleep(wait)
        await self._slots.acquire()
    finally:
      self._open -= len(piece.samples)
      self._landed.set()

  async def _turn(self) -> None:
    if (wait := self.pace.turn(time.monotonic())) > 0:
      await asyncio.sleep(wait)

  def _wait(self, tries: int, longest: float, error: RefusedError) -> float:
    """Seconds before the next try: as told, or longer each time; never all in step."""
    if error.wait is not None:
      return error.wait + self._draws.uniform(0, min(1.0, 0.1 * error.wait))
    return self._draws.uniform(0.5, 1) * min(longest, _FIRST_WAIT * 2.0 ** (tries - 1))

  def _check_patience(self, wait: float, error: RefusedError) -> None:
    patience, where = self.endpoint.patience, self.endpoint.base_url
    if error.wait is not None and error.wait > patience:
      raise InputError(
        f"{where} wants {error.wait:,.0f} s without requests ({error}); what came is in "
        f"{self.record.path}. Run again then"
      )
    if (silent := time.monotonic() - self._heard) > patience:
      raise InputError(
        f"{where} has answered nothing for {silent:,.0f} s (the last: {error}); what came is in "
        f"{self.record.path}. Run again to go on"
      )

  def _cap(self, more: int) -> str | None:
    """Which cap would be passed by so many completions more, those under way counted."""
    record, endpoint = self.record, self.endpoint
    if endpoint.max_tokens is None and endpoint.max_cost is None:
      return None
    if record.completions:
      read = record.prompt_tokens / record.completions
      written = record.completion_tokens / record.completions
    else:
      read, written = tokens_of(self.waiting[0].ask.prompt), expected_tokens(endpoint)
    coming = self._open + more
    tokens = record.prompt_tokens + coming * read, record.completion_tokens + coming * written
    if endpoint.max_tokens is not None and sum(tokens) > endpoint.max_tokens:
      return f"MAX_TOKENS = {endpoint.max_tokens:,} is reached"
    cost = endpoint.cost(*tokens)
    if endpoint.max_cost is not None and cost is not None and cost > endpoint.max_cost:
      return f"MAX_COST = {endpoint.max_cost:g} dollars is reached"
    return None

  async def _tick(self) -> None:
    while True:
      await asyncio.sleep(_TICK)
      self.record.sync()
      self._show(self._done, self._status())

  def _status(self) -> str:
    record = self.record
    seconds = time.monotonic() - self._begun
    cost = self.endpoint.cost(record.prompt_tokens, record.completion_tokens)
    parts = [f"{self._done / seconds:,.1f}/s"]
    parts += [f"{record.prompt_tokens + record.completion_tokens:,} tokens"]
    parts += [] if cost is None else [f"{cost:,.2f} dollars"]
    parts += [f"{self.pace.refusals:,} refusals"] if self.pace.refusals else []
    return ", ".join(parts)


def expected_tokens(endpoint: Endpoint) -> int:
  """Tokens of a completion to expect before any has come: the limit that is asked for, if any."""
  limits = (endpoint.options.get(name) for name in ("max_tokens", "max_completion_tokens"))
  return min((limit for limit in limits if isinstance(limit, int)), default=_WRITTEN)


class Estimate(NamedTuple):
  """What a run is going to need, about.

  Attributes:
    requests: how many.
    prompt_tokens: read.
    completion_tokens: written, at most where the requests limit them.
    cost: dollars; None where prices are unknown.
  """

  requests: int
  prompt_tokens: int
  completion_tokens: int
  cost: float | None


def estimate(endpoint: Endpoint, pieces: Sequence[Piece]) -> Estimate:
  """What it takes to ask for some pieces; asks nothing."""
  read = sum(tokens_of(piece.ask.prompt) for piece in pieces)
  written = sum(len(piece.samples) for piece in pieces) * expected_tokens(endpoint)
  return Estimate(len(pieces), read, written, endpoint.cost(read, written))
