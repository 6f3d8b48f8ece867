"""Tokens written a second, ours against Hugging Face's `generate` and CTranslate2.

  .venv/bin/python benchmarks/decode.py --size=small --batch=64 --json=FILE \\
    --hf_python=PEERS/bin/python --ctranslate2_python=PEERS/bin/python

A T5 1.1 of random weights is written into a temporary folder in Hugging Face's format; every engine
loads it and writes greedily for the same prompts, whose lengths are mixed, in rounds that go from
engine to engine. The first round compiles and is not counted; medians of the others are. Status 1:
ours and Hugging Face's tokens differ in more than one text of a hundred.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import sys
import tempfile
from typing import Any

import bm25_report
import decode_engines
import load_checkpoint
from worker import Failed, Worker

ROOT = pathlib.Path(__file__).resolve().parents[1]
PEERS = ("hf_torch", "ctranslate2")


def main() -> int:
  """The command line. Gives the exit status."""
  flags = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  flags.add_argument("--json", metavar="FILE", type=pathlib.Path, help="where the figures go")
  flags.add_argument("--size", choices=load_checkpoint.SIZES, default="small")
  flags.add_argument("--batch", type=int, default=8, help="prompts")
  flags.add_argument("--longest", type=int, default=512, help="tokens of a prompt")
  flags.add_argument("--shortest", type=int, default=16, help="the same as --longest: all equal")
  flags.add_argument("--length", type=int, default=128, help="tokens that are written")
  flags.add_argument("--rounds", type=int, default=3, help="that are counted")
  flags.add_argument("--samples", type=int, default=5, help="for a question, against one; 0: none")
  flags.add_argument("--peers", default=",".join(PEERS), help="or none")
  for name in ("hf", "ctranslate2"):
    default = os.environ.get(f"{name.upper()}_PYTHON", sys.executable)
    flags.add_argument(f"--{name}_python", default=default, help="the peer's interpreter")
  arguments = flags.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    found = measure(arguments, pathlib.Path(folder))
  show(found)
  if arguments.json:
    bm25_report.write(found, arguments.json)
  checked = found["ours"].get("agreement", {}).get("hf_torch", 1.0)
  return int(checked < 0.99)


def measure(arguments: argparse.Namespace, folder: pathlib.Path) -> dict[str, Any]:
  """Runs all engines in turn."""
  write(folder, arguments.size)
  vocab_size = load_checkpoint.COMMON["vocab_size"]
  tokens = decode_engines.prompts(
    arguments.batch, arguments.longest, arguments.shortest, vocab_size
  )
  threads = len(os.sched_getaffinity(0))
  workers, absent = {}, {}
  pythons = {"hf_torch": arguments.hf_python, "ctranslate2": arguments.ctranslate2_python}
  wanted = ["ours", *(name for name in PEERS if name in arguments.peers.split(","))]
  for name in wanted:
    log, python = folder / f"{name}.log", pythons.get(name, sys.executable)
    try:
      options = {"folder": str(folder), "threads": threads}
      workers[name] = Worker("decode_engines.py", name, python, log, **options)
      workers[name]("give", tokens=tokens, length=arguments.length)
    except Failed as error:
      absent[name] = str(error)
  if "ours" in absent:
    raise SystemExit(absent["ours"])
  rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
  for _ in range(1 + arguments.rounds):
    for name, worker in workers.items():
      rounds[name].append(worker("run"))
      print(f"{name}: {rounds[name][-1]['seconds']:.2f} s", file=sys.stderr, flush=True)
  bandwidth = workers["ours"]("bandwidth")["bytes_per_s"]
  drawn = samples(workers["ours"], tokens, arguments) if arguments.samples else {}
  for worker in workers.values():
    worker.end()
  engines = {name: figures(runs) for name, runs in rounds.items()}
  ours = engines.pop("ours")
  first = rounds["ours"][-1]["texts"]
  ours["agreement"] = {
    name: statistics.mean(a == b for a, b in zip(first, rounds[name][-1]["texts"], strict=True))
    for name in engines
  }
  ours["samples"] = drawn
  # What a step must at least read: the weights of the decoder and of the head, once a batch.
  read = arguments.length * decoder_bytes(arguments.size)
  ours["fraction_of_peak"] = read / ours["seconds"] / bandwidth
  for engine in engines.values():
    engine["fraction_of_peak"] = read / engine["seconds"] / bandwidth
  config = {k: v for k, v in vars(arguments).items() if not k.endswith("python") and k != "json"}
  return {
    "config": config
    | bm25_report.machine()
    | {
      "threads": threads,
      "mean_prompt_tokens": statistics.mean(map(len, tokens)),
      "memory_bytes_per_s": bandwidth,
    },
    "ours": ours,
    "peers": engines,
    "ratios": {
      name: {"tokens_per_s": ours["tokens_per_s"] / engine["tokens_per_s"]}
      for name, engine in engines.items()
    },
    "absent": absent,
  }


def samples(worker: Worker, tokens: list[list[int]], arguments: argparse.Namespace) -> Any:
  """Seconds of several samples and of one, for one question and for the batch."""
  found = {}
  for name, some in (("a_question", tokens[:1]), ("the_batch", tokens[:8])):
    worker("give", tokens=some, length=arguments.length)
    seconds = {}
    for count in (1, arguments.samples):
      runs = [worker("draw", samples=count)["seconds"] for _ in range(1 + arguments.rounds)]
      seconds[count] = statistics.median(runs[1:])
    found[name] = {
      "questions": len(some),
      "one_s": seconds[1],
      "several_s": seconds[arguments.samples],
      "ratio": seconds[arguments.samples] / seconds[1],
    }
  return found


def figures(runs: list[dict[str, Any]]) -> dict[str, Any]:
  """Medians of all rounds but the first."""
  seconds = [run["seconds"] for run in runs[1:]]
  middle = statistics.median(seconds)
  return {
    "tokens": runs[-1]["tokens"],
    "seconds": middle,
    "seconds_spread": [min(seconds), max(seconds)],
    "tokens_per_s": runs[-1]["tokens"] / middle,
    "first_s": runs[0]["seconds"],
  }


def decoder_bytes(size: str) -> int:
  """Of the weights that a step reads, in float32; keys and values come on top."""
  shape = load_checkpoint.SIZES[size]
  D, F, heads = shape["d_model"], shape["d_ff"], 64 * shape["num_heads"]
  layer = 6 * D * heads + 3 * D * F
  return 4 * (shape["num_layers"] * layer + D * load_checkpoint.COMMON["vocab_size"])


def write(folder: pathlib.Path, size: str) -> None:
  """Writes config.json and random weights, of the spread of a fresh T5; the same each time."""
  sys.path.insert(0, str(ROOT))
  import numpy as np

  from kard_jax.convert import huggingface, tensors
  from kard_jax.convert.source import Config

  values = load_checkpoint.COMMON | load_checkpoint.SIZES[size]
  values |= {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
  (folder / "config.json").write_text(json.dumps(values))
  family = huggingface.FAMILIES["t5"]
  network = family.NETWORK(**family.settings(Config(folder / "config.json", values), None))
  shapes, _ = huggingface.abstract(network, family.INPUTS, None)
  rng = np.random.default_rng(0)
  arrays = []
  for entry in family.table(network):
    shape = entry.layout.stored_shape(shapes[entry.path].shape)
    noise = rng.standard_normal(shape, np.float32)
    if "norm" in entry.path:
      noise = np.ones_like(noise)
    elif "embed" not in entry.path:
      noise *= shape[-1] ** -0.5 * (64**-0.5 if "query" in entry.path else 1)
    arrays.append((entry.name, noise))
  sizes = {name: array.nbytes for name, array in arrays}
  tensors.write(folder, iter(arrays), tensors.shard(sizes, 1 << 30))


def show(found: dict[str, Any]) -> None:
  """Prints a table."""
  config = found["config"]
  print(
    f"T5 1.1 {config['size']}, {config['batch']} prompts of {config['mean_prompt_tokens']:.0f}"
    f" tokens in the mean ({config['shortest']} to {config['longest']}), up to {config['length']}"
    f" written; {config['threads']} threads ({config['processor']}),"
    f" {config['memory_bytes_per_s'] / 1e9:.0f} GB/s"
  )
  for name, engine in {"ours": found["ours"], **found["peers"]}.items():
    low, high = engine["seconds_spread"]
    print(
      f"{name:12} {engine['tokens_per_s']:8,.0f} tokens/s  {engine['tokens']:,} tokens in"
      f" {engine['seconds']:.2f} s ({low:.2f} to {high:.2f}), first {engine['first_s']:.1f} s;"
      f" weights read at {engine['fraction_of_peak']:.0%} of the memory's speed"
    )
  for name, ratio in found["ratios"].items():
    same = found["ours"]["agreement"][name]
    print(f"ours by {name}: {ratio['tokens_per_s']:.2f}; {same:.0%} of texts the same")
  for name, drawn in found["ours"]["samples"].items():
    print(
      f"{config['samples']} samples for {name.replace('_', ' ')} ({drawn['questions']}):"
      f" {drawn['several_s']:.2f} s, one {drawn['one_s']:.2f} s: {drawn['ratio']:.2f} times"
    )
  for name, reason in found["absent"].items():
    print(f"{name} is absent: {reason}")


if __name__ == "__main__":
  sys.exit(main())
