"""One process of a small training run, for tests; `python tests/hosts_worker.py FOLDER --help`.

Its batches are read from nowhere: row r of step s is a function of s and r. What rows it was asked
for is kept in `rows-<process>-<time>.txt`.
"""

import argparse
import pathlib
import sys
import time

sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

import jax
import numpy as np
import optax

from kard_jax.core import config, distributed, hosts
from kard_jax.core import train as loop
from kard_jax.core.files import InputError
from kard_jax.core.optimizers import AdamW, Schedule
from kard_jax.core.partitioning import Partitioner
from kard_jax.student.objective import TokenCrossEntropy
from kard_jax.student.t5 import T5

SIZES = {"vocab_size": 64, "embed_dim": 16, "num_heads": 2, "head_dim": 8, "mlp_dim": 32}
RULES = [("batch", "data"), ("vocab", "tensor"), ("heads", "tensor"), ("mlp", "tensor")]
# AdamW divides by the size of a gradient, and so makes much of the last bits of a small one.
OPTIMIZERS = {
  "adamw": AdamW(Schedule(1e-2)),
  "sgd": lambda steps: optax.sgd(0.03),
}


def tokens(rng, *shape):
  rows = rng.integers(2, 64, shape).astype(np.int32)
  lengths = rng.integers(2, shape[-1] + 1, (*shape[:-1], 1))
  return np.where(np.arange(shape[-1]) < lengths, rows, 0).astype(np.int32)


def example(step, row):
  rng = np.random.default_rng([step, row])
  target = tokens(rng, 5)
  return {
    "encoder_input_tokens": tokens(rng, 6),
    "decoder_input_tokens": np.pad(target[:-1], (1, 0)),
    "decoder_target_tokens": target,
    "decoder_loss_weights": (target > 0).astype(np.int32),
  }


class Batches:
  """Batches that tell what is asked of them, and may take their time or fail."""

  def __init__(self, arguments):
    self.options = arguments
    self.batch_size = arguments.batch_size
    place = f"rows-{hosts.index()}-{time.time_ns()}.txt"
    self.asked = (pathlib.Path(arguments.folder) / place).open("w")

  def __call__(self, step, rows=None):
    options = self.options
    time.sleep(options.pace)
    if hosts.index() == hosts.count() - 1 and step == options.stall_at:
      time.sleep(60)
    if hosts.index() == hosts.count() - 1 and step == options.fail_at:
      raise InputError(f"row {step} is broken")
    chosen = range(self.batch_size)[rows or slice(None)]
    if rows is not None:
      self.asked.write("".join(f"{step} {row}\n" for row in chosen))
      self.asked.flush()
    made = [example(step, row) for row in chosen]
    return {name: np.stack([one[name] for one in made]) for name in made[0]}

  def names(self, step):
    return [str(row) for row in range(self.batch_size)]


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("folder")
  parser.add_argument("--steps", type=int, default=20)
  parser.add_argument("--save_every", type=int, default=5)
  parser.add_argument("--batch_size", type=int, default=8)
  parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adamw")
  parser.add_argument("--devices", type=int, default=2, help="of each process")
  parser.add_argument("--tensor", type=int, default=1)
  parser.add_argument("--pace", type=float, default=0.0, help="seconds a batch takes")
  parser.add_argument("--stall_at", type=int, default=-1)
  parser.add_argument("--fail_at", type=int, default=-1)
  parser.add_argument("--step_timeout", type=float, default=60.0)
  distributed.add_flags(parser)
  arguments = parser.parse_args()

  def work():
    times = hosts.Times(start=120.0, step=arguments.step_timeout, barrier=60.0)
    distributed.start(distributed.find(arguments), times)
    jax.config.update("jax_num_cpu_devices", arguments.devices)
    pathlib.Path(arguments.folder).mkdir(parents=True, exist_ok=True)
    batches = Batches(arguments)
    trainer = loop.Trainer(
      steps=arguments.steps,
      optimizer=OPTIMIZERS[arguments.optimizer],
      partitioner=Partitioner({"data": -1, "tensor": arguments.tensor}, RULES),
      log_every=1,
      evaluate_every=10,
      save_every=arguments.save_every,
    )
    network = T5(**SIZES, num_encoder_layers=1, num_decoder_layers=1, dropout_rate=0.1)
    loop.train(
      TokenCrossEntropy(network),
      batches,
      pathlib.Path(arguments.folder) / "run",
      trainer=trainer,
      validation=[batches(9999)],
    )

  return config.exit_status(work)


if __name__ == "__main__":
  sys.exit(main())
