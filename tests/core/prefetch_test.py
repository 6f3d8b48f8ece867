"""Batches ahead: in order, errors at their step, and no thread left behind."""

import threading
import time

import numpy as np
import pytest

from kard_jax.core import prefetch
from kard_jax.core.partitioning import Partitioner

MESH = Partitioner({"data": 2}, [("batch", "data")], devices=2)


def batches(step, rows):
  return {"x": np.full((4, 2), step)[rows]}


def ahead(source, begin, end):
  source.batch_size = 4
  return prefetch.ahead(source, slice(0, 4), MESH, begin, end)


def threads():
  return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_batches_come_in_order_on_the_mesh():
  seen = []
  for step, (batch, _) in ahead(batches, 3, 9):
    assert batch["x"].sharding == MESH.batch_sharding
    np.testing.assert_array_equal(batch["x"], batches(step, slice(0, 4))["x"])
    seen.append(step)
  assert seen == [3, 4, 5, 6, 7, 8]
  assert not threads()
  assert list(ahead(batches, 3, 3)) == []


def test_few_are_made_before_they_are_asked_for():
  made = []

  def source(step, rows):
    made.append(step)
    return batches(step, rows)

  running = ahead(source, 0, 1000)
  next(running)
  time.sleep(0.1)
  assert len(made) <= 2 + prefetch._DEPTH
  running.close()


def test_an_exception_is_raised_at_its_step():
  def source(step, rows):
    if step == 4:
      raise ValueError("step 4")
    return batches(step, rows)

  running = ahead(source, 0, 9)
  assert [next(running)[0] for _ in range(4)] == [0, 1, 2, 3]
  with pytest.raises(ValueError, match="step 4"):
    next(running)
  assert not threads()


def test_stopping_early_ends_the_thread_at_once():
  running = ahead(batches, 0, 10**9)
  next(running)
  started = time.monotonic()
  running.close()
  assert time.monotonic() - started < 5
  assert not threads()


def test_tokens_are_what_is_read_and_predicted_without_padding():
  batch = {
    "encoder_input_tokens": np.array([[5, 6, 0]]),
    "decoder_input_tokens": np.array([[0, 7, 8]]),
    "decoder_target_tokens": np.array([[7, 8, 1]]),
    "decoder_loss_weights": np.ones((1, 3)),
    "passage_tokens": np.array([[[1, 2], [3, 0]]]),
  }
  assert prefetch.tokens(batch) == 2 + 3 + 3
