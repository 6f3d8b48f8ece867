"""A reranker's run that was killed goes on to the same bits, temperatures included."""

import jax
import numpy as np
import pytest

from kard_jax.core import train as loop
from kard_jax.core.optimizers import AdamW, Schedule
from kard_jax.core.partitioning import Partitioner
from kard_jax.reranker import bert, network, objective, temperature
from tests.reranker import objective_test

NET = network.LateInteraction(
  bert.Bert(11, 8, 1, 2, 12, max_positions=8, dropout_rate=0.2), projection_dim=4
)
KL = objective.ListwiseKL(NET, tau=temperature.Schedule(2.0, 0.5, 8), rationale_tau=3.0)


class Batches:
  batch_size = 6

  def __init__(self, dies_at=None):
    self._dies_at = dies_at

  def __call__(self, step, rows=None):
    if step == self._dies_at:
      raise KeyboardInterrupt
    batch = objective_test.make_batch(seed=step)
    return {name: value[rows or slice(None)] for name, value in batch.items()}

  def names(self, step):
    return [str(step)]


def run(folder, batches, objective_=KL):
  trainer = loop.Trainer(
    steps=8,
    optimizer=AdamW(Schedule(1e-2)),
    partitioner=Partitioner({"data": 1}, [("batch", "data")], devices=1),
    save_every=2,
    evaluate_every=8,
    log_every=8,
  )
  stream = objective.scheduled(objective_, batches)
  return loop.train(objective_, stream, folder, trainer=trainer).state.params


def test_resumed_equals_uninterrupted(tmp_path):
  whole = run(tmp_path / "whole", Batches())
  with pytest.raises(KeyboardInterrupt):
    run(tmp_path / "killed", Batches(dies_at=5))
  assert not (tmp_path / "killed" / "8").exists()
  resumed = run(tmp_path / "killed", Batches())
  jax.tree.map(np.testing.assert_array_equal, resumed, whole)
  fixed = objective.ListwiseKL(NET, tau=0.5, rationale_tau=3.0)
  other = run(tmp_path / "fixed", Batches(), fixed)
  kernel = lambda params: np.asarray(params["projection"]["kernel"])
  assert np.abs(kernel(other) - kernel(whole)).max() > 1e-4  # the schedule is heard
