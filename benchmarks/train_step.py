"""Measures a training step of T5 1.1 against Hugging Face on torch and T5X's network.

Examples:
  python benchmarks/train_step.py --size=small --dtype=bfloat16
  python benchmarks/train_step.py --size=base --json=train_step.json \\
    --hf_python=PEERS/bin/python --t5x_path=PEERS/t5x

Each engine is a process of its own and trains on the same tokens; steps are timed in rounds that go
from engine to engine, never two at a time. README.md says how to install the peers, and what is
measured.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bm25_report
from worker import Failed, Worker

SHAPES = {  # T5 1.1's; attributes of `student.t5.T5`
  "small": (512, 6, 1024, 8),
  "base": (768, 12, 2048, 12),
  "large": (1024, 16, 2816, 24),
  "xl": (2048, 32, 5120, 24),
  "tiny": (64, 2, 128, 2),
}
_PEERS = ("hf_torch", "t5x")


def flags() -> argparse.ArgumentParser:
  """The command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--size", choices=SHAPES, default="small", help="of T5 1.1 (small)")
  add("--dtype", choices=("float32", "bfloat16"), default="float32", help="activations (float32)")
  add("--batch", type=int, default=8, help="rows (8)")
  add("--inputs", type=int, default=512, help="input tokens a row (512)")
  add("--targets", type=int, default=128, help="target tokens a row (128)")
  add("--rounds", type=int, default=5, help="steps of each engine that are timed (5)")
  add(
    "--one_at_a_time",
    action="store_true",
    help="a round starts each engine anew and ends it before the next: where two do not fit",
  )
  add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of torch; all cores")
  add("--scan", action="store_true", help="ours: layers by nn.scan")
  add("--remat", default="none", help="ours: none, dots, minimal or full (none)")
  add("--peers", default=",".join(_PEERS), help="hf_torch, t5x, both with a comma, or none")
  python = os.environ.get("HF_PYTHON", sys.executable)
  add("--hf_python", default=python, help="interpreter with torch and transformers; or $HF_PYTHON")
  add("--t5x_python", default=sys.executable, help="interpreter with jax, flax, optax")
  path = os.environ.get("T5X_PATH", "")
  add("--t5x_path", default=path, help="a checkout of google-research/t5x; or $T5X_PATH")
  add("--json", metavar="FILE", help="write the measures there")
  return parser


def main() -> int:
  """Measures and prints."""
  arguments = flags().parse_args()
  peers = [] if arguments.peers == "none" else arguments.peers.split(",")
  if unknown := set(peers) - set(_PEERS):
    flags().error(f"--peers: hf_torch, t5x or none, not {', '.join(sorted(unknown))}")
  if arguments.rounds < 1:
    flags().error("--rounds has to be at least 1")
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that processes end
  with tempfile.TemporaryDirectory(prefix="train-step-") as folder:
    found = _measure(arguments, ["ours", *peers], Path(folder))
  _show(found)
  if arguments.json:
    bm25_report.write(found, Path(arguments.json))
  return 0


class _Engines:
  """The engines and what was measured of each; those that fail are left out from then on."""

  def __init__(self, arguments: argparse.Namespace, names: list[str], folder: Path):
    self._arguments, self._folder = arguments, folder
    self._workers: dict[str, Worker] = {}
    self.measures: dict[str, dict[str, Any]] = {name: {} for name in names}
    self.seconds: dict[str, list[float]] = {name: [] for name in names}
    self.absent: dict[str, str] = {}

  def run(self) -> None:
    """Times all rounds."""
    apart = self._arguments.one_at_a_time
    try:
      for name in () if apart else self.measures:
        self._attempt(name, self._begin)
      for number in range(self._arguments.rounds):
        for name in self.measures:
          self._attempt(name, self._visit if apart else self._once)
        print(f"round {number + 1} of {self._arguments.rounds}", file=sys.stderr, flush=True)
      for name in () if apart else self.measures:
        self._attempt(name, self._end)
    finally:
      for worker in self._workers.values():
        worker.end()

  def _attempt(self, name: str, action: Callable[[str], None]) -> None:
    if name in self.absent:
      return
    try:
      action(name)
    except Failed as error:
      if name == "ours":
        raise SystemExit(str(error)) from None
      self.absent[name] = str(error)
      print(f"absent: {error}", file=sys.stderr, flush=True)

  def _begin(self, name: str) -> None:
    self._workers[name] = worker = _worker(self._arguments, name, self._folder)
    self.measures[name] |= worker.begun
    self.measures[name] |= worker("first")
    self.measures[name]["peak_flops_per_s"] = worker("peak")["flops"]
    worker("run", steps=1)  # warms up: allocators, thread pools

  def _once(self, name: str) -> None:
    self.seconds[name].append(self._workers[name]("run", steps=1)["seconds"])

  def _end(self, name: str) -> None:
    worker = self._workers.pop(name)
    try:
      self.measures[name] |= worker("memory")
    finally:
      worker.end()

  def _visit(self, name: str) -> None:
    self._begin(name)
    self._once(name)
    self._end(name)


def _measure(arguments: argparse.Namespace, names: list[str], folder: Path) -> dict[str, Any]:
  """All measures, as the JSON file has them."""
  engines = _Engines(arguments, names, folder)
  engines.run()
  measures, seconds, absent = engines.measures, engines.seconds, engines.absent
  present = [name for name in names if name not in absent]
  peak = max(measures[name]["peak_flops_per_s"] for name in present)
  tokens = arguments.batch * (arguments.inputs + arguments.targets)
  for name in present:
    step = statistics.median(seconds[name])
    measures[name] |= {
      "step_s": step,
      "step_s_spread": [min(seconds[name]), max(seconds[name])],
      "tokens_per_s": tokens / step,
      "fraction_of_peak": _flops(arguments) / step / peak,
    }
  ours = measures["ours"]
  return {
    "config": _settings(arguments)
    | bm25_report.machine()
    | {"flops_per_step": _flops(arguments), "peak_flops_per_s": peak},
    "ours": ours,
    "peers": {name: measures[name] for name in present[1:]},
    "ratios": {
      name: {"tokens_per_s": ours["tokens_per_s"] / measures[name]["tokens_per_s"]}
      for name in present[1:]
    },
    "absent": absent,
  }


def _worker(arguments: argparse.Namespace, name: str, folder: Path) -> Worker:
  pythons = {"hf_torch": arguments.hf_python, "t5x": arguments.t5x_python}
  if name == "t5x" and not arguments.t5x_path:
    raise Failed("t5x: give --t5x_path, a checkout of google-research/t5x")
  own = {"t5x": {"t5x_path": arguments.t5x_path}, "hf_torch": {"threads": arguments.threads}}
  own["ours"] = {"scan": arguments.scan, "remat": arguments.remat}
  return Worker(
    "train_step_engines.py",
    name,
    pythons.get(name, sys.executable),
    folder / f"{name}.log",
    shape=shape(arguments.size),
    dtype=arguments.dtype,
    rows=arguments.batch,
    inputs=arguments.inputs,
    targets=arguments.targets,
    **own[name],
  )


def shape(size: str) -> dict[str, int]:
  """The sizes of a T5 1.1, as attributes of `student.t5.T5`."""
  width, heads, hidden, layers = SHAPES[size]
  return {
    "vocab_size": 32_128,
    "embed_dim": width,
    "num_heads": heads,
    "head_dim": 64,
    "mlp_dim": hidden,
    "num_encoder_layers": layers,
    "num_decoder_layers": layers,
  }


def _flops(arguments: argparse.Namespace) -> float:
  """Of the products that a step needs: forward, and twice as many for the gradients."""
  width, heads, hidden, layers = SHAPES[arguments.size]
  B, L, T = arguments.batch, arguments.inputs, arguments.targets
  inner = heads * 64
  project, mix = 2 * width * inner, 4 * inner  # of a token; of a pair of tokens
  feed_forward = 2 * 3 * width * hidden
  encoder = L * (4 * project + feed_forward) + L * L * mix
  decoder = T * (6 * project + feed_forward) + 2 * L * project + (T * T + T * L) * mix
  return 3.0 * B * (layers * (encoder + decoder) + T * 2 * width * 32_128)


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
  """The flags, but for the places of this machine."""
  places = ("json", "hf_python", "t5x_python", "t5x_path")
  return {name: value for name, value in vars(arguments).items() if name not in places}


def _show(found: dict[str, Any]) -> None:
  config = found["config"]
  print(
    f"T5 1.1 {config['size']}, {config['dtype']}, {config['batch']} x {config['inputs']} inputs x "
    f"{config['targets']} targets; {config['flops_per_step'] / 1e9:,.0f} GFLOP a step; peak of a "
    f"matrix product {config['peak_flops_per_s'] / 1e9:,.0f} GFLOP/s; {config['cores']} cores "
    f"({config['processor']})"
  )
  for name, engine in {"ours": found["ours"], **found["peers"]}.items():
    low, high = engine["step_s_spread"]
    print(
      f"{name:9} {engine['tokens_per_s']:8,.0f} tokens/s  {engine['fraction_of_peak']:5.1%} of peak"
      f"  step {engine['step_s']:.2f} s ({low:.2f} to {high:.2f})"
      f"  memory {engine['peak_rss_bytes'] / 2**20:,.0f} MiB"
      f"  first step {engine['first_step_s']:.0f} s  {engine['version']}"
    )
  for name, values in found["ratios"].items():
    print(f"ours by {name}: {values['tokens_per_s']:.2f}")
  for name, reason in found["absent"].items():
    print(f"{name} is absent: {reason}")


if __name__ == "__main__":
  sys.exit(main())
