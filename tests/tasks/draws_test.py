"""Draws of candidates: how many of each side, and that chance comes from the generator alone."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from kard_jax.core.files import InputError
from tasks.draws import Draw

_SIDES = st.lists(st.booleans(), max_size=20)


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(_SIDES, st.integers(0, 5), st.integers(2, 5), st.booleans(), st.integers(0, 99))
def test_each_side_gives_its_number_and_the_other_fills_up(
  sides, by_rationale, by_question, best, seed
):
  mask = np.array(sides, bool)
  draw = Draw(by_rationale, by_question, best)
  chosen = draw(mask, np.random.default_rng(seed))
  assert chosen.tolist() == sorted(set(chosen.tolist()))
  assert len(chosen) == min(draw.size, len(sides))
  there = int(mask.sum()), int((~mask).sum())
  assert mask[chosen].sum() == min(there[0], max(by_rationale, draw.size - there[1]))
  if best and len(sides) and (by_rationale if sides[0] else by_question):
    assert 0 in chosen


def test_same_generator_state_same_draw_and_others_differ():
  mask = np.arange(64) < 32
  draw = Draw(4, 4)
  draws = [tuple(draw(mask, np.random.default_rng(seed))) for seed in (1, 1, 2)]
  assert draws[0] == draws[1] != draws[2]


def test_every_candidate_of_a_side_is_as_likely():
  mask = np.arange(12) < 4
  rng = np.random.default_rng(0)
  counts = np.zeros(12)
  for _ in range(2000):
    counts[Draw(2, 2)(mask, rng)] += 1
  np.testing.assert_allclose(counts[:4] / 2000, 2 / 4, atol=0.05)
  np.testing.assert_allclose(counts[4:] / 2000, 2 / 8, atol=0.05)


@pytest.mark.parametrize("numbers", [(0, 0), (1, 0), (-1, 4)])
def test_a_list_of_less_than_two_is_refused(numbers):
  with pytest.raises(InputError, match="at least 2"):
    Draw(*numbers)
