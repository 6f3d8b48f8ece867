"""The pace against servers in simulated time: near each one's limit, with few refusals."""

import collections
import heapq
import itertools
import random

import pytest

from kard_jax.core.pacing import Pace


class Server:
  """Answers or refuses; `rate` a second with as many saved up as in a tenth of one."""

  def __init__(self, draws, rate=0.0, most_open=0, window=0.0, moody=0.0):
    self.draws, self.rate, self.most_open, self.window, self.moody = (
      draws, rate, most_open, window, moody)  # fmt: skip
    self.room = self.burst = max(1.0, rate * 0.1)
    self.filled = 0.0
    self.open = 0

  def admits(self, now):
    if self.draws.random() < self.moody or (self.most_open and self.open >= self.most_open):
      return False
    if self.window:
      if now - self.filled >= self.window:
        self.filled, self.room = now - now % self.window, self.rate * self.window
    elif self.rate:
      self.room = min(self.burst, self.room + (now - self.filled) * self.rate)
      self.filled = now
    if self.rate:
      if self.room < 1:
        return False
      self.room -= 1
    return True


def simulate(count, latency, slots=32, wait=1.0, **server):
  """Asks for `count` answers; gives answers a second, from begin to end, and the refusals."""
  draws = random.Random(1)
  server, pace = Server(draws, **server), Pace()
  events, order, again = [], itertools.count(), collections.deque()
  now, left = 0.0, count

  def at(time, what):
    heapq.heappush(events, (time, next(order), what))

  while True:
    while slots and (again or left):
      if again:
        again.popleft()
      else:
        left -= 1
      slots -= 1
      at(now + pace.turn(now), "send")
    if not events:
      return count / now, pace.refusals
    now, _, what = heapq.heappop(events)
    if what == "send":
      if server.admits(now):
        server.open += 1
        at(now + latency * draws.uniform(0.5, 1.5), "answer")
      else:
        at(now + 0.002, "refuse")
    elif what == "answer":
      server.open -= 1
      slots += 1
      pace.answered(now)
    elif what == "refuse":
      slots += 1
      pause = draws.uniform(wait, 1.1 * wait)
      pace.refused(now, pause)
      at(now + pause, "again")
    else:
      again.append(None)


@pytest.mark.parametrize(
  ("limit", "used", "refused", "count", "latency", "server"),
  [
    (150, 0.95, 0.2, 6000, 0.05, {"rate": 150}),
    (500, 0.93, 0.2, 20000, 0.05, {"rate": 500}),
    (8, 0.75, 2.0, 500, 0.5, {"rate": 8}),
    (20, 0.75, 0.9, 2000, 5.0, {"rate": 20, "slots": 256}),
    (30, 0.75, 1.1, 3000, 0.05, {"rate": 30, "window": 10.0}),
    (160, 0.8, 0.3, 6000, 0.05, {"most_open": 8}),
    (150, 0.9, 0.4, 6000, 0.05, {"rate": 150, "moody": 0.15}),
    (640, 0.8, 0.3, 40000, 0.05, {"moody": 0.2}),
    (640, 0.95, 0.0, 40000, 0.05, {}),
  ],
  ids=str,
)
def test_most_of_a_limit_is_used(limit, used, refused, count, latency, server):
  """The last answers count in full, which a refusal each may delay by seconds."""
  speed, refusals = simulate(count, latency, **server)
  assert speed > used * limit
  assert refusals <= refused * count


def test_silence_makes_all_wait_and_each_time_longer():
  pace, now, sent = Pace(), 0.0, []
  while now < 300:
    now += pace.turn(now)
    sent.append(now)
    pace.refused(now + 0.01, 0.5)
  assert sum(time > 100 for time in sent) < 20
  assert max(b - a for a, b in itertools.pairwise(sent)) > 30
  pace.answered(now)
  assert pace.turn(now + 120) == 0  # an answer ends it


def test_a_server_says_how_long_to_be_silent():
  pace, now = Pace(), 0.0
  for _ in range(200):
    now += pace.turn(now)
    pace.refused(now, 90.0)
    if now > 2:
      break
  assert pace.turn(now) > 80
