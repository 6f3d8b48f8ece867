"""The watchdog names the process that is behind, or of which nothing is heard."""

import time

import pytest

from kard_jax.core import hosts, watchdog


class Team:
  """Two processes; the other's messages are set by the test."""

  index, count = 0, 2
  times = hosts.Times(step=0.4)

  def __init__(self):
    self.beats = {}

  def put(self, key, value):
    if key.startswith("beat/"):
      self.beats[0] = value

  def all(self, folder):
    return dict(self.beats) if folder == "beat" else {}


@pytest.fixture
def given_up(monkeypatch):
  told = []
  monkeypatch.setattr(watchdog.Watchdog, "_give_up", lambda self, late: told.append(late))
  return told


def run(watch, team, other, seconds=1.0):
  """Goes on for a while; `other` gives the other's count and place at each look."""
  watch.start()
  end, beat = time.monotonic() + seconds, 0
  while time.monotonic() < end:
    beat += 1
    message = other(beat)
    if message:
      team.beats[1] = [beat, *message]
    time.sleep(0.02)
  watch.stop()


def test_the_one_behind_is_named(given_up):
  team = Team()
  watch = watchdog.Watchdog(team)
  with watch.in_step("training"):
    for step in range(3):
      watch.goes_on(f"step {step}")
    run(watch, team, lambda beat: [2, "step 0"])
  assert "host 1 (last at step 0) is late" in given_up[0]


def test_one_that_is_silent_is_named(given_up):
  team = Team()
  run(watchdog.Watchdog(team), team, lambda beat: [0, "step 0"] if beat < 5 else None)
  assert given_up
  assert given_up[0].startswith("host 1 (last at step 0, silent for")


def test_all_that_hang_alike(given_up):
  team = Team()
  watch = watchdog.Watchdog(team)
  with watch.in_step("training"):
    run(watch, team, lambda beat: [1, "training"])
  assert "no host goes on" in given_up[0]


def test_nobody_is_late_while_steps_are_made_or_outside_of_training(given_up):
  team = Team()
  watch = watchdog.Watchdog(team)
  run(watch, team, lambda beat: [0, "reading"])
  watch = watchdog.Watchdog(team)
  with watch.in_step("training"):
    run(watch, team, lambda beat: watch.goes_on(f"step {beat}") or [beat, f"step {beat}"])
  assert not given_up
