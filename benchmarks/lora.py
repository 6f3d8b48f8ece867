"""Measures training by adapters against training all parameters: step time and memory.

Example:
  python benchmarks/lora.py --size=base --json=lora.json

The same network, batch and optimiser; each way runs in a process of its own, so that the memory is
its own. Random weights and tokens: neither changes the time. Both ways go through the trainer's own
step, with donated state.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time
from typing import Any

import bm25_report

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

SIZES = {
  "tiny": {"embed_dim": 64, "num_heads": 2, "mlp_dim": 128, "layers": 2},
  "small": {"embed_dim": 512, "num_heads": 6, "mlp_dim": 1024, "layers": 8},
  "base": {"embed_dim": 768, "num_heads": 12, "mlp_dim": 2048, "layers": 12},
}
WAYS = ("full", "lora", "lora_bfloat16_base")


def flags() -> argparse.ArgumentParser:
  """The command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--size", choices=sorted(SIZES), default="base", help="of T5 1.1 (base)")
  add("--batch", type=int, default=2, help="examples a step (2)")
  add("--inputs", type=int, default=256, help="tokens (256)")
  add("--targets", type=int, default=64, help="tokens (64)")
  add("--rounds", type=int, default=5, help="timed steps, at least 5 (5)")
  add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of activations")
  add("--rank", type=int, default=16, help="of the adapters on query and value (16)")
  add("--json", metavar="FILE", help="write the measures there")
  add("--way", choices=WAYS, help=argparse.SUPPRESS)
  return parser


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
  """Trains one way for some steps; in a process of its own."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from kard_jax.core import lora, selection, state, train
  from kard_jax.core.optimizers import AdamW, Schedule
  from kard_jax.core.partitioning import Partitioner
  from kard_jax.student.objective import TokenCrossEntropy
  from kard_jax.student.t5 import T5

  shape = dict(SIZES[arguments.size])
  layers = shape.pop("layers")
  network = T5(
    num_encoder_layers=layers, num_decoder_layers=layers, dtype=jnp.dtype(arguments.dtype), **shape
  )
  objective: Any = TokenCrossEntropy(network)
  rng = np.random.default_rng(0)
  rows, targets = arguments.batch, (arguments.batch, arguments.targets)
  batch = {
    "encoder_input_tokens": rng.integers(2, 32_000, (rows, arguments.inputs), np.int32),
    "decoder_input_tokens": rng.integers(2, 32_000, targets, np.int32),
    "decoder_target_tokens": rng.integers(2, 32_000, targets, np.int32),
    "decoder_loss_weights": np.ones(targets, np.float32),
  }
  partitioner = Partitioner({"data": 1, "tensor": 1}, [("batch", "data")], devices=1)
  adapters = arguments.way != "full"
  plain = objective
  if adapters:
    objective = lora.Adapted(objective, lora.Lora(rank=arguments.rank))
  trainer = train.Trainer(
    steps=arguments.rounds + 1,
    optimizer=AdamW(Schedule(1e-4)),
    partitioner=partitioner,
    trained=lora.NAMES if adapters else None,
    frozen_dtype="bfloat16" if arguments.way == "lora_bfloat16_base" else "float32",
  )

  def initial() -> Any:
    make = jax.jit(lambda: selection.unflatten(_values(plain.init(jax.random.key(1), batch))))
    return make()

  tx = trainer.optimizer(trainer.steps)
  beginning = state.Beginning(
    objective,
    tx,
    batch,
    0,
    partitioner,
    trainer.trained,
    initial,
    jnp.dtype(trainer.frozen_dtype),
  )
  now, frozen = beginning.begin_fresh()
  step = jax.jit(train.make_step(objective, tx, trainer), donate_argnums=0)
  with partitioner.active():
    compiled = step.lower(now, frozen, batch).compile()
    times = []
    for _ in range(arguments.rounds + 1):
      started = time.perf_counter()
      now, metrics = compiled(now, frozen, batch)
      jax.block_until_ready(metrics)
      times.append(time.perf_counter() - started)
  size = compiled.memory_analysis()
  trained, total = beginning.counts()
  tokens = rows * (arguments.inputs + arguments.targets)
  seconds = statistics.median(times[1:])
  return {
    "trained_parameters": trained,
    "all_parameters": total,
    "trained_share": trained / total,
    "step_s": seconds,
    "tokens_per_s": tokens / seconds,
    "state_bytes": _bytes(now) + _bytes(frozen),
    "optimiser_bytes": _bytes(now.opt_state),
    "temporary_bytes": size.temp_size_in_bytes,
    "step_bytes": _bytes(now) + _bytes(frozen) + size.temp_size_in_bytes,
    "peak_rss_bytes": _peak_rss(),
  }


def _values(boxed: Any) -> dict[str, Any]:
  from kard_jax.core import selection

  return {path: leaf.value for path, leaf in selection.flatten(boxed).items()}


def _bytes(tree: Any) -> int:
  import jax

  return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def _peak_rss() -> int:
  status = pathlib.Path("/proc/self/status").read_text()
  return int(status.split("VmHWM:")[1].split()[0]) * 1024


def main() -> int:
  """Measures all ways, one after another."""
  arguments = flags().parse_args()
  if arguments.way:
    print(json.dumps(measure(arguments)))
    return 0
  ways: dict[str, Any] = {}
  for way in WAYS:
    done = subprocess.run(
      [sys.executable, __file__, *sys.argv[1:], f"--way={way}"],
      stdout=subprocess.PIPE,
      check=True,
      text=True,
    )
    ways[way] = one = json.loads(done.stdout.splitlines()[-1])
    print(
      f"{way:>20}: {one['trained_parameters']:>12,} parameters trained "
      f"({one['trained_share']:.2%}), {one['step_s']:.2f} s a step, "
      f"{one['tokens_per_s']:,.0f} tokens/s, state {one['state_bytes'] / 2**30:.2f} GiB, with "
      f"activations {one['step_bytes'] / 2**30:.2f} GiB, peak {one['peak_rss_bytes'] / 2**30:.2f}",
      flush=True,
    )
  ours, full = ways["lora"], ways["full"]
  peers = {"full": full, "lora_bfloat16_base": ways["lora_bfloat16_base"]}
  measures = ("step_s", "state_bytes", "step_bytes")
  ratios = {
    way: {name: peer[name] / ours[name] for name in measures} for way, peer in peers.items()
  }
  print("all parameters by lora:", {name: f"{ratio:.2f}" for name, ratio in ratios["full"].items()})
  if arguments.json:
    config = {name: value for name, value in vars(arguments).items() if name not in ("json", "way")}
    bm25_report.write(
      {"config": config | bm25_report.machine(), "ours": ours, "peers": peers, "ratios": ratios},
      pathlib.Path(arguments.json),
    )
  return 0


if __name__ == "__main__":
  sys.exit(main())
