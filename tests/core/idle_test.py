"""Idle devices: only what is waited for a batch after the last step has ended counts."""

import threading
import time

import pytest

from kard_jax.core import idle


class Output:
  """An array that is there when `end` is called."""

  def __init__(self, ended=False):
    self._ended = threading.Event()
    if ended:
      self.end()

  def end(self):
    self._ended.set()

  def block_until_ready(self):
    self._ended.wait()


def wait_until_noted(seen):
  while seen._ended is None:
    time.sleep(0.001)


@pytest.fixture
def seen():
  seen = idle.Idle()
  yield seen
  seen.close()


def slow(seconds):
  for number in range(3):
    time.sleep(seconds)
    yield number


def test_waiting_while_a_step_runs_is_not_idling(seen):
  running = []
  for _ in seen.batches(slow(0.05)):
    running.append(Output())
    seen.runs(running[-1])
  assert seen.seconds == 0
  for output in running:
    output.end()


def test_waiting_after_the_last_step_is(seen):
  for _ in seen.batches(slow(0.05)):
    seen.runs(Output(ended=True))
    wait_until_noted(seen)
  assert 0.1 <= seen.seconds < 0.15  # before the second batch and the third


def test_what_is_waited_before_the_step_ends_is_left_out(seen):
  output = Output()
  for number in seen.batches(slow(0.1)):
    if number == 0:
      seen.runs(output)
      threading.Timer(0.06, output.end).start()
    elif number == 1:
      assert 0.02 < seen.seconds < 0.06
      break


def test_what_the_loop_does_itself_is_no_waiting(seen):
  for _ in seen.batches(iter(range(3))):
    seen.runs(Output(ended=True))
    wait_until_noted(seen)
    time.sleep(0.03)
  assert seen.seconds < 0.01


def test_an_error_of_a_step_is_left_to_who_reads_it(seen):
  class Broken:
    def block_until_ready(self):
      raise RuntimeError("no memory")

  for _ in seen.batches(iter(range(2))):
    seen.runs(Broken())
    wait_until_noted(seen)
