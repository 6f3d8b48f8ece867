"""How fast to ask a server whose limit nobody told: as fast as it answers, and hardly faster.

As BBR does for packets, the rate follows the most answers a second of late: it doubles while that
brings more of them, then stays near what was answered, with now and then a stretch above, to see
whether there is more, and one below. So nearly all of a limit is used, and few requests are refused
(HTTP 429), which some servers count too.

Some servers refuse a share at any rate. It is the least share of late, as it shows in stretches
below a limit, and requests are made in addition to make up for it.

Source: Cardwell et al., BBR: Congestion-Based Congestion Control, ACM Queue 14(5), 2016.
"""

from __future__ import annotations

import collections
import math

_START = 100.0  # requests a second
_SLOWEST = 1 / 60
_RESPONSES = 20  # that a stretch has at least,
_SHORTEST, _LONGEST = 0.5, 20.0  # unless it is long; in seconds
_AT_FIRST = 0.3  # the shortest before any was refused
_LATE = 10  # stretches that are remembered
_FEW = 0.02  # share of refusals that tells of no limit
_DOUBLE = 2.0
_CYCLE = (1.25, 0.9, 1.03, 1.03, 1.03, 1.03, 1.03, 1.03)  # times what was answered
_MORE = 1.2  # times as many answers: worth asking faster still
_PATIENCE = 2  # stretches without so many more, after which doubling ends
_MOST_MOODY = 0.5  # a share above this is a limit in any case
_SILENCE = 1.0  # seconds of nothing but refusals, after which all wait,
_LONGEST_SILENCE = 60.0  # and at most so long, unless the server says longer


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
    self._speeds: collections.deque[float] = collections.deque(maxlen=_LATE)  # answers a second
    self._shares: collections.deque[float] = collections.deque(maxlen=_LATE)  # of refusals
    self._best = 0.0  # the speed that a further doubling has to beat
    self._doubling = _PATIENCE  # stretches for which the rate goes on doubling
    self._phase = 0

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
      longer = min(now - self._row, _LONGEST_SILENCE)  # each time about twice as long
      self._next = max(self._next, now + max(wait, longer))
    self._learn(now)

  def _learn(self, now: float) -> None:
    """Sets the rate at the end of a stretch."""
    if self._began is None:
      self._began = now
    seconds, responses = now - self._began, self._answered + self._refused
    shortest = _SHORTEST if self.refusals else _AT_FIRST
    if seconds < shortest or (responses < _RESPONSES and seconds < _LONGEST):
      return
    speed = self._answered / seconds
    self._speeds.append(speed)
    self._shares.append(self._refused / responses)
    self._began, self._answered, self._refused = now, 0, 0
    if speed > _MORE * self._best:
      self._doubling = _PATIENCE
    else:
      self._doubling -= 1
    gain = self._gain()
    wanted = gain * max(self._speeds)
    if gain >= 1:  # below a limit is where it shows which share is refused at any rate
      wanted /= 1 - min(*self._shares, _MOST_MOODY)
    self._best = max(self._speeds)
    # At most a half less: what was answered may have been little for want of asking.
    self.rate = max(min(wanted, _DOUBLE * self.rate), self.rate / _DOUBLE, _SLOWEST)

  def _gain(self) -> float:
    if self._doubling > 0 or max(self._shares) < _FEW:
      self._phase = 0
      return _DOUBLE
    gain = _CYCLE[self._phase % len(_CYCLE)]
    self._phase += 1
    return gain
