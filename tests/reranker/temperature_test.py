"""Schedules of temperatures: where they begin and end, that they stay positive, and in a loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kard_jax.core.files import InputError
from kard_jax.reranker import objective, temperature
from tests.reranker import objective_test

POSITIVE = st.floats(1e-30, 1e30)


@given(POSITIVE, POSITIVE, st.integers(1, 10**6), st.integers(0, 10**7))
def test_a_schedule_stays_between_its_ends(start, end, steps, step):
  for shape in temperature.SHAPES:
    schedule = temperature.Schedule(start, end, steps, shape)
    assert schedule(0) == pytest.approx(start)
    assert min(start, end) <= schedule(step) <= max(start, end)
    assert schedule(steps) == schedule(steps + step) == end


def test_the_two_shapes():
  assert temperature.Schedule(8.0, 2.0, 4)(2) == pytest.approx(4.0)
  assert temperature.Schedule(8.0, 2.0, 4, "linear")(2) == pytest.approx(5.0)


@pytest.mark.parametrize("bad", objective_test.BAD_TEMPERATURES)
def test_both_ends_must_be_positive(bad):
  with pytest.raises(InputError, match=r"Schedule\.start = .*positive"):
    temperature.Schedule(bad, 1.0, 10)
  with pytest.raises(InputError, match=r"Schedule\.end = .*positive"):
    temperature.Schedule(1.0, bad, 10)


def test_steps_and_shape_are_checked():
  for steps in (0, -1):
    with pytest.raises(InputError, match=r"Schedule\.steps = "):
      temperature.Schedule(1.0, 2.0, steps)
  with pytest.raises(InputError, match=r"shape = 'cosine': choose one of geometric, linear"):
    temperature.Schedule(1.0, 2.0, 5, "cosine")


class Same:
  batch_size = 6

  def __init__(self):
    self.batch = objective_test.make_batch()

  def __call__(self, step, rows=None):
    return {name: value[rows or slice(None)] for name, value in self.batch.items()}

  def names(self, step):
    return [str(step)]


def test_a_loss_takes_the_temperatures_of_its_step():
  falling = temperature.Schedule(4.0, 0.5, 10)
  scheduled = objective.ListwiseKL(objective_test.Dot(), tau=falling, rationale_tau=3.0)
  batches = objective.scheduled(scheduled, Same())
  assert batches.names(3) == ["3"]
  batch = batches(5, slice(2, 6))
  np.testing.assert_allclose(batch["tau"], np.full(4, falling(5), np.float32))
  params = jax.tree.map(
    jnp.asarray, objective_test.nn.unbox(scheduled.init(jax.random.key(0), batch))
  )
  loss = jax.jit(lambda batch: scheduled.loss(params, batch, None).total)

  def fixed(tau, batch):
    plain = {k: v for k, v in batch.items() if "tau" not in k}
    return objective.ListwiseKL(objective_test.Dot(), tau, 3.0).loss(params, plain, None).total

  np.testing.assert_allclose(loss(batch), fixed(falling(5), batch), rtol=1e-6)
  assert abs(fixed(4.0, batch) - fixed(0.5, batch)) > 0.1
  plain = Same()(0)  # as evaluation's
  np.testing.assert_allclose(
    scheduled.loss(params, plain, None).total, fixed(0.5, plain), rtol=1e-6
  )


def test_both_temperatures_follow_their_schedules_and_stay_positive():
  both = objective.ListwiseKL(
    objective_test.Dot(),
    tau=temperature.Schedule(1.0, 1e-30, 7, "linear"),
    rationale_tau=temperature.Schedule(1e-3, 50.0, 9),
  )
  batches = objective.scheduled(both, Same())
  for step in (0, 3, 6, 7, 8, 9, 10_000):
    batch = batches(step)
    for name, schedule in both.temperatures.items():
      assert batch[name].dtype == np.float32
      assert (batch[name] > 0).all()
      np.testing.assert_allclose(batch[name], schedule(step), rtol=1e-6)
  batch = objective_test.make_batch()
  params = objective_test.nn.unbox(both.init(jax.random.key(0), batch))
  loss = jax.jit(lambda batch: both.loss(params, batch, None).total)
  ones = np.ones(6, np.float32)
  by_target = [float(loss(batch | {"tau": ones, "rationale_tau": tau * ones})) for tau in (1, 5)]
  assert abs(by_target[0] - by_target[1]) > 0.01  # the target's is heard as well


def test_without_a_schedule_batches_stay_as_they_are():
  batches = Same()
  assert objective.scheduled(objective_test.OBJECTIVES[0], batches) is batches
  assert objective.scheduled(object(), batches) is batches
