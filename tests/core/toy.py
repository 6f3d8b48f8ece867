"""A two-layer regression objective, small enough to train in a test."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from kard_jax.core.objective import Loss, Mean
from kard_jax.core.optimizers import AdamW, Schedule
from kard_jax.core.partitioning import Partitioner
from kard_jax.core.train import Trainer

RULES = [("batch", "data"), ("mlp", "tensor"), ("embed", None)]


class Network(nn.Module):
  """8 -> 16 -> 1, with dropout."""

  dropout: float = 0.0

  @nn.compact
  def __call__(self, x_BxD, deterministic):
    boxed = lambda *axes: nn.with_logical_partitioning(nn.initializers.lecun_normal(), axes)
    x = nn.Dense(16, kernel_init=boxed("embed", "mlp"), use_bias=False)(x_BxD)
    x = nn.with_logical_constraint(nn.gelu(x), ("batch", "mlp"))
    x = nn.Dropout(self.dropout, deterministic=deterministic)(x)
    return nn.Dense(1, kernel_init=boxed("mlp", "embed"), use_bias=False)(x)[:, 0]


@dataclasses.dataclass(frozen=True)
class Regression:
  """Weighted squared error."""

  network: Network

  def init(self, rng, batch):
    return self.network.init(rng, jnp.asarray(batch["x"]), True)["params"]

  def loss(self, params, batch, rng):
    rngs = None if rng is None else {"dropout": rng}
    y = self.network.apply({"params": params}, batch["x"], rng is None, rngs=rngs)
    total = jnp.sum(batch["weights"] * (y - batch["y"]) ** 2)
    weight = jnp.sum(batch["weights"])
    return Loss(total, weight, {"mse": Mean(total, weight)})


@dataclasses.dataclass
class Batches:
  """Seeded random batches; `poison` puts a NaN into that step's batch."""

  batch_size: int = 16
  poison: int = -1

  def __call__(self, step, rows=None):
    rng = np.random.default_rng(step)
    x = rng.normal(size=(self.batch_size, 8)).astype(np.float32)
    batch = {"x": x, "y": x.sum(1), "weights": rng.uniform(size=self.batch_size).astype(np.float32)}
    if step == self.poison:
      batch["y"][3] = np.nan
    return {name: feature[rows or slice(None)] for name, feature in batch.items()}

  def names(self, step):
    return [f"example-{step}-{row}" for row in range(self.batch_size)]


def trainer(data=1, tensor=1, **changes):
  """A trainer on the first data x tensor devices."""
  microbatches = changes.pop("microbatches", 1)
  mesh = Partitioner({"data": data, "tensor": tensor}, RULES, microbatches, devices=data * tensor)
  settings = {"steps": 20, "evaluate_every": 10, "save_every": 5, "log_every": 1} | changes
  return Trainer(optimizer=AdamW(Schedule(1e-2)), partitioner=mesh, **settings)
