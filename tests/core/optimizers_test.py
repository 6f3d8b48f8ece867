"""Learning rates at the steps that matter, and what each optimiser does to a parameter."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kard_jax.core.files import InputError
from kard_jax.core.optimizers import Adafactor, AdamW, Schedule


@pytest.mark.parametrize(
  ("decay", "middle", "end"),
  [("constant", 2.0, 2.0), ("linear", 1.0, 0.0), ("cosine", 1.0, 0.0), ("rsqrt", None, None)],
)
def test_schedules(decay, middle, end):
  rate = Schedule(2.0, warmup=20.0, decay=decay)(100)
  rsqrt = lambda step: 2.0 * (20 / step) ** 0.5  # T5's, through the peak at the end of warm-up
  middle, end = (rsqrt(60), rsqrt(100)) if decay == "rsqrt" else (middle, end)
  steps, values = zip((0, 0), (10, 1.0), (20, 2.0), (60, middle), (100, end), strict=True)
  np.testing.assert_allclose([rate(step) for step in steps], values, atol=1e-6)


@pytest.mark.parametrize("decay", ["constant", "linear", "cosine", "rsqrt"])
def test_without_warmup_a_schedule_starts_at_its_peak(decay):
  assert float(Schedule(3.0, warmup=0.0, decay=decay)(10)(0)) == 3.0


def test_warmup_below_one_is_a_share_of_the_steps():
  share, steps = Schedule(1.0, warmup=0.05)(1000), Schedule(1.0, warmup=50.0)(1000)
  assert [float(share(s)) for s in (0, 25, 50)] == [float(steps(s)) for s in (0, 25, 50)]
  assert float(share(25)) == 0.5


def test_a_decay_that_is_none():
  with pytest.raises(
    InputError, match=r"Schedule\.decay = 'exponential': choose from \['constant'"
  ):
    Schedule(1.0, decay="exponential")(10)


PARAMS = {
  "kernel": jnp.full((2, 2), 4.0),
  "scale": jnp.full((2,), 4.0),
  "layers": {"scale": jnp.full((3, 2), 4.0)},  # scanned: an axis more
}


def update(optimizer, grads):
  tx = optimizer(10)
  updates, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
  return updates


def zeros():
  return jax.tree.map(jnp.zeros_like, PARAMS)


def test_weight_decay_is_of_matrices_alone():
  updates = update(AdamW(Schedule(0.5, warmup=0.0), weight_decay=0.1), zeros())
  np.testing.assert_allclose(updates["kernel"], -0.5 * 0.1 * 4.0, rtol=1e-6)
  np.testing.assert_array_equal(updates["scale"], 0.0)
  np.testing.assert_array_equal(updates["layers"]["scale"], 0.0)


def test_gradients_are_clipped_by_their_global_norm_before_adam_sees_them():
  grads = jax.tree.map(lambda param: jnp.full_like(param, 100.0), PARAMS)
  for clip, norm in ((1.0, 1.0), (0.0, float(optax.tree.norm(grads)))):
    tx = AdamW(Schedule(1.0), clip=clip, b1=0.0)(10)
    _, state = tx.update(grads, tx.init(PARAMS), PARAMS)
    first_moment = optax.tree.get(state, "mu")
    np.testing.assert_allclose(optax.tree.norm(first_moment), norm, rtol=1e-5)


def test_adafactor_follows_its_schedule():
  grads = jax.tree.map(jnp.ones_like, PARAMS)
  slow = update(Adafactor(Schedule(0.1, warmup=0.0)), grads)
  fast = update(Adafactor(Schedule(0.2, warmup=0.0)), grads)
  assert (np.asarray(slow["kernel"]) < 0).all()
  np.testing.assert_allclose(fast["kernel"], 2 * slow["kernel"], rtol=1e-5)
