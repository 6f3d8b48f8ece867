"""How fast to ask a server whose limit nobody told: as fast as it answers, and hardly faster.

The limit is learned from refusals (HTTP 429), stretch by stretch. The rate doubles until some come;
then it becomes what the server did answer, and a little more; without refusals it grows again. So
nearly all of the limit is used, and few requests are refused, which some servers count too.

Some servers refuse a share at any rate. There a lower rate does not lessen the share, as it would
under a limit; then the rate goes back, and that share is put up with.
"""

from __future__ import annotations

import math

_START = 32.0  # requests a second
_SLOWEST = 1 / 60
_RESPONSES = 20  # that a stretch has at least,
_SHORTEST, _LONGEST = 0.5, 20.0  # unless it is long; in seconds
_FEW = 0.05  # share of refusals that is no reason to ask more slowly
_MARGIN = 1.03  # above what was answered: less would leave a part of the limit unused
_GROWTH = (1.03, 1.06, 1.12, 1.25, 1.5, 2.0)  # after so many stretches with few refusals
_HALF = 0.5  # the deepest cut at once: what was answered may have been few for want of asking
_TELLING = 0.75  # a cut below this part of a rate tells whether the rate matters
_MOST_MOODY = 0.5  # a higher share of refusals is a limit in any case
_FORGET = 0.97  # of that share, each stretch: the server may have changed
_SILENCE = 1.0  # seconds of nothing but refusals, after which all wait


class Pace:
  """When the next request may begin; shared by all requests to one server.

  Times are seconds of one clock that only goes forward.

  Attributes:
    rate: requests a second that may begin.
    refusals: how many there were.
  """

  def __init__(self) -> None:
    self.rate = _START
    self.refusals = 0
    self._next = -math.inf  # when the next request may begin
    self._row: float | None = None  # the first refusal since an answer
    self._began: float | None = None  # the stretch
    self._answered = self._refused = 0  # in it
    self._good = len(_GROWTH)  # stretches in a row with few refusals; until the first, as if many
    self._moody = 0.0  # share that is refused at any rate
    self._before: tuple[float, float] | None = None  # rate and share of refusals before cuts

  def turn(self, now: float) -> float:
    """Takes the next place in the line, and tells how long to wait for it."""
    if self._began is None:
      self._began = now
    at = max(now, self._next)
    self._next = at + 1 / self.rate
    return at - now

  def answered(self, now: float) -> None:
    """A request was not refused; whether its answer is of use is another matter."""
    self._row = None
    self._answered += 1
    self._learn(now)

  def refused(self, now: float, wait: float) -> None:
    """A request was refused.

    Args:
      now: when.
      wait: seconds that it will wait itself. If nothing was answered for a while, all wait.
    """
    self.refusals += 1
    self._refused += 1
    if self._row is None:
      self._row = now
    elif now - self._row > _SILENCE:
      self._next = max(self._next, now + wait)
    self._learn(now)

  def _learn(self, now: float) -> None:
    """Sets the rate at the end of a stretch."""
    if self._began is None:
      self._began = now
    seconds, responses = now - self._began, self._answered + self._refused
    if seconds < _SHORTEST or (responses < _RESPONSES and seconds < _LONGEST):
      return
    share, speed = self._refused / responses, self._answered / seconds
    noise = 2 * math.sqrt(self._moody * (1 - self._moody) / responses)
    if share > self._moody + _FEW + noise:
      self._slow_down(share, speed)
    else:
      self._speed_up(speed)
    self._moody *= _FORGET
    self._began, self._answered, self._refused = now, 0, 0

  def _speed_up(self, speed: float) -> None:
    self._before = None
    grown = self.rate * _GROWTH[min(self._good, len(_GROWTH) - 1)]
    # Far above what is answered, something else holds us back; a limit would be met too late.
    self.rate = max(min(grown, 4 * speed), min(self.rate, _START))
    self._good += 1

  def _slow_down(self, share: float, speed: float) -> None:
    self._good = 0
    if self._before is not None:
      rate, before = self._before
      part = self.rate / rate
      if part < _TELLING:
        self._before = None
        under_a_limit = max(0.0, 1 - (1 - before) / part)
        if share > (before + under_a_limit) / 2 and share < _MOST_MOODY:
          self.rate, self._moody, self._good = rate, share, len(_GROWTH)
          return
    if self._before is None:
      self._before = self.rate, share
    wanted = _MARGIN * speed / (1 - self._moody)
    self.rate = max(min(wanted, self.rate), _HALF * self.rate, _SLOWEST)
