"""Members trained side by side: each is what it would be alone."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np

from kard_jax.core import ensemble, train
from kard_jax.core.objective import Loss
from kard_jax.core.optimizers import AdamW, Schedule
from tests.core.toy import Batches, Network, Regression, trainer


@dataclasses.dataclass(frozen=True)
class Begun:
  """A regression that begins with given parameters."""

  params: object
  network: Network = Network()

  def init(self, rng, batch):
    return jax.tree.map(
      lambda box, value: box.replace_boxed(value),
      Regression(self.network).init(rng, batch),
      self.params,
      is_leaf=lambda leaf: isinstance(leaf, nn.meta.AxisMetadata),
    )

  def loss(self, params, batch, rng) -> Loss:
    return Regression(self.network).loss(params, batch, rng)


class Own(Batches):
  """Batches of one member: others than those of another, of equal weight."""

  def __init__(self, number):
    super().__init__()
    self.number = number

  def __call__(self, step, rows=None):
    batch = super().__call__(1000 * self.number + step, rows)
    return batch | {"weights": np.ones_like(batch["weights"])}


class Side:
  """The batches of two members, side by side."""

  batch_size = 2
  members = (Own(1), Own(2))

  def __call__(self, step, rows=None):
    both = [member(step) for member in self.members]
    return {name: np.stack([one[name] for one in both]) for name in both[0]}

  def names(self, step):
    return ["one", "two"]


def test_each_member_is_trained_as_it_would_be_alone(tmp_path):
  settings = dataclasses.replace(trainer(steps=6), optimizer=AdamW(Schedule(1e-2), clip=0.0))
  both = ensemble.Ensemble(Regression(Network()))
  run = train.train(both, Side(), tmp_path / "both", trainer=settings)
  begun = nn.meta.unbox(both.init(jax.random.key(settings.seed), Side()(0)))
  kernels = [np.asarray(leaf) for leaf in jax.tree.leaves(run.state.params)]
  assert all(np.abs(kernel[0] - kernel[1]).max() > 0.1 for kernel in kernels)  # two of them
  for number, batches in enumerate(Side.members):
    objective = Begun(ensemble.member(begun, number))
    alone = train.train(objective, batches, tmp_path / str(number), trainer=settings)
    mine = jax.tree.leaves(ensemble.member(run.state.params, number))
    for one, other in zip(mine, jax.tree.leaves(alone.state.params), strict=True):
      np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_parameters_are_boxed_with_an_axis_of_members():
  boxed = jax.eval_shape(
    ensemble.Ensemble(Regression(Network())).init, jax.random.key(0), Side()(0)
  )
  boxes = jax.tree.leaves(boxed, is_leaf=lambda leaf: isinstance(leaf, nn.meta.AxisMetadata))
  assert {box.names for box in boxes} == {
    ("members", "embed", "mlp"),
    ("members", "mlp", "embed"),
  }
  assert all(box.value.ndim == 3 and box.value.shape[0] == 2 for box in boxes)


def test_dropout_differs_between_members():
  """The same parameters on the same rows, twice: only dropout can tell them apart."""
  objective = ensemble.Ensemble(Regression(Network(0.5)))
  batch = {name: np.stack([x, x]) for name, x in Own(1)(0).items()}
  params = nn.meta.unbox(objective.init(jax.random.key(0), batch))
  params = jax.tree.map(lambda leaf: np.stack([leaf[0], leaf[0]]), params)
  plain, dropped = (objective.loss(params, batch, rng) for rng in (None, jax.random.key(1)))
  alone = Regression(Network()).loss(ensemble.member(params, 0), Own(1)(0), None)
  np.testing.assert_allclose(plain.total, 2 * alone.total, rtol=1e-5)
  keys = jax.random.split(jax.random.key(1), 2)
  each = [
    Regression(Network(0.5)).loss(ensemble.member(params, 0), Own(1)(0), key).total for key in keys
  ]
  assert each[0] != each[1]
  np.testing.assert_allclose(dropped.total, sum(each), rtol=1e-5)
