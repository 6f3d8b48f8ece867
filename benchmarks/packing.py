"""Measures what packing brings: examples a second of a training step with it and without.

Example:
  python benchmarks/packing.py runs/openbookqa_tiny --dataset=openbookqa --vocabulary=spiece.model

Both train T5 1.1 on rows of the same length and on the same examples, in an order of their own;
steps are timed in turn. A row without packing is an example; a packed row holds as many as fit.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import bm25_report
from train_step import SHAPES, shape


def flags() -> argparse.ArgumentParser:
  """The command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("workdir", help="a work directory after stage 4, launch/ground.py")
  add("--dataset", required=True, help="its dataset's registered name")
  add("--task", choices=("ft", "kaft", "rd", "kard"), default="kard", help="(kard)")
  add("--vocabulary", required=True, help="a SentencePiece model")
  add("--size", choices=SHAPES, default="small", help="of T5 1.1 (small)")
  add("--dtype", choices=("float32", "bfloat16"), default="float32", help="activations (float32)")
  add("--batch", type=int, default=8, help="rows (8)")
  add("--inputs", type=int, default=512, help="input tokens a row (512)")
  add("--targets", type=int, default=256, help="target tokens a row (256)")
  add("--rounds", type=int, default=5, help="steps of each that are timed (5)")
  add("--json", metavar="FILE", help="write the measures there")
  return parser


def main() -> int:
  """Measures and prints."""
  arguments = flags().parse_args()
  if arguments.rounds < 1 or arguments.batch < 1:
    flags().error("--rounds and --batch have to be at least 1")
  found = _measure(arguments)
  for name, values in {"packed": found["ours"], **found["peers"]}.items():
    print(
      f"{name:9} {values['examples_per_s']:7.2f} examples/s"
      f"  {values['tokens_per_s']:7,.0f} tokens/s"
      f"  padding {values['padding']:.0%}  step {values['step_s']:.2f} s"
    )
  print(f"packed by unpacked: {found['ratios']['unpacked']['examples_per_s']:.2f}")
  if arguments.json:
    bm25_report.write(found, Path(arguments.json))
  return 0


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
  """All measures, as the JSON file has them; tokens are those that are not padding."""
  batches = {name: _batches(arguments, name == "packed") for name in ("packed", "unpacked")}
  steps = {name: _step(arguments, stream) for name, stream in batches.items()}
  seconds: dict[str, list[float]] = {name: [] for name in steps}
  for action in steps.values():
    action()  # compiles
    action()
  for number in range(arguments.rounds):
    for name, action in steps.items():
      start = time.perf_counter()
      action()
      seconds[name].append(time.perf_counter() - start)
    print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr, flush=True)
  measures = {}
  for name, stream in batches.items():
    step, padding = statistics.median(seconds[name]), float(stream.padding)
    places = arguments.batch * (arguments.inputs + arguments.targets)
    measures[name] = {
      "step_s": step,
      "padding": padding,
      "examples_per_s": arguments.batch * stream.examples / stream.rows / step,
      "tokens_per_s": places * (1 - padding) / step,
    }
  places = ("json", "workdir", "vocabulary")
  ratio = measures["packed"]["examples_per_s"] / measures["unpacked"]["examples_per_s"]
  return {
    "config": {
      **{name: value for name, value in vars(arguments).items() if name not in places},
      **bm25_report.machine(),
      "examples": batches["packed"].examples,
    },
    "ours": measures["packed"],
    "peers": {"unpacked": measures["unpacked"]},
    "ratios": {"unpacked": {"examples_per_s": ratio}},
  }


def _batches(arguments: argparse.Namespace, pack: bool) -> Any:
  from tasks import batches, registry

  dataset = registry.load(arguments.dataset, vocabulary=arguments.vocabulary).locate(
    arguments.workdir
  )
  lengths = {"inputs": arguments.inputs, "targets": arguments.targets}
  return batches.Batches(
    dataset.task(arguments.task, False), "train", lengths, arguments.batch, pack=pack
  )


def _step(arguments: argparse.Namespace, stream: Any) -> Callable[[], None]:
  """Trains on the next batch, by the step of `core.train`."""
  from kard_jax.core import train
  from kard_jax.core.optimizers import AdamW, Schedule
  from kard_jax.core.partitioning import Partitioner
  from kard_jax.core.state import Beginning
  from kard_jax.student.objective import TokenCrossEntropy
  from kard_jax.student.t5 import T5

  objective = TokenCrossEntropy(
    T5(**shape(arguments.size), dropout_rate=0.1, dtype=arguments.dtype)
  )
  partitioner = Partitioner({"data": 1}, [("batch", "data")], devices=1)
  trainer = train.Trainer(1, AdamW(Schedule(1e-4, warmup=0)), partitioner)
  tx = trainer.optimizer(1)
  beginning = Beginning(objective, tx, stream(0), 0, partitioner)
  state, frozen = beginning.begin(types.SimpleNamespace(latest=None))
  update = partitioner.jit(
    train.make_step(objective, tx, trainer),
    donate_argnums=0,
    out_shardings=(beginning.shardings, None),
  )
  number = 0

  def step() -> None:
    nonlocal state, number
    state, metrics = update(state, frozen, partitioner.put(stream(number), arguments.batch))
    number += 1
    float(metrics["loss"])

  return step


if __name__ == "__main__":
  sys.exit(main())
