"""Memory and time of loading a checkpoint, ours against transformers.

  .venv/bin/python benchmarks/load_checkpoint.py --json=FILE --hf_python=PEERS/hf/bin/python

Writes a Hugging Face folder with random weights of a T5's shape (780 M parameters by default), and
loads it in new processes. Status 1: ours peaked above the checkpoint's size plus 2 GiB (of a
bfloat16 checkpoint: the size of its parameters in float32, which is what they become).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
ALLOWANCE = 2 << 30  # bytes
SIZES = {  # of T5 1.1, and one to try this with
  "tiny": {"d_model": 64, "d_ff": 128, "num_heads": 2, "num_layers": 2},
  "small": {"d_model": 512, "d_ff": 1024, "num_heads": 6, "num_layers": 8},
  "base": {"d_model": 768, "d_ff": 2048, "num_heads": 12, "num_layers": 12},
  "large": {"d_model": 1024, "d_ff": 2816, "num_heads": 16, "num_layers": 24},
  "xl": {"d_model": 2048, "d_ff": 5120, "num_heads": 32, "num_layers": 24},
}
COMMON = {
  "architectures": ["T5ForConditionalGeneration"],
  "model_type": "t5",
  "d_kv": 64,
  "vocab_size": 32_128,
  "feed_forward_proj": "gated-gelu",
  "tie_word_embeddings": False,
}


def main() -> int:
  """The command line. Gives the exit status."""
  flags = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  flags.add_argument("--json", metavar="FILE", help="where the figures go")
  flags.add_argument("--size", choices=SIZES, default="large")
  flags.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
  flags.add_argument("--shard_bytes", type=int, default=1_000_000_000, help="of a file, at most")
  flags.add_argument("--devices", type=int, default=1, help="a CPU that pretends to be so many")
  flags.add_argument("--folder", metavar="FOLDER", help="where it is written (a temporary folder)")
  flags.add_argument("--peers", default="hf_torch", help="hf_torch or none")
  default = os.environ.get("HF_PYTHON", sys.executable)
  flags.add_argument("--hf_python", default=default, metavar="PYTHON", help="with transformers")
  flags.add_argument("--worker", choices=("write", "ours", "hf_torch"), help=argparse.SUPPRESS)
  arguments = flags.parse_args()
  if arguments.worker:
    sys.path.insert(0, str(ROOT))
    print(json.dumps(WORKERS[arguments.worker](arguments)), flush=True)
    return 0
  with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
    return compare(arguments, temporary)


def compare(arguments: argparse.Namespace, folder: str) -> int:
  """Writes, loads and prints; gives the exit status."""

  def run(worker: str, python: str = sys.executable) -> dict[str, Any]:
    command = [python, __file__, f"--worker={worker}", f"--folder={folder}"]
    for name in ("size", "dtype", "shard_bytes", "devices"):
      command.append(f"--{name}={getattr(arguments, name)}")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
      return {"absent": (done.stderr.strip().splitlines() or ["?"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])

  written = run("write")
  ours = run("ours")
  if "absent" in written or "absent" in ours:
    print(written.get("absent") or ours["absent"], file=sys.stderr)
    return 2
  size = written["bytes"]
  ours["over_checkpoint_bytes"] = ours["peak_rss_bytes"] - size
  peers, absent = {}, {}
  for name in filter(lambda name: name != "none", arguments.peers.split(",")):
    figures = run(name, arguments.hf_python)
    if "absent" in figures:
      absent[name] = figures["absent"]
    else:
      peers[name] = figures | {"over_checkpoint_bytes": figures["peak_rss_bytes"] - size}
  measures = ("load_s", "peak_rss_bytes")
  ratios = {name: {m: ours[m] / theirs[m] for m in measures} for name, theirs in peers.items()}
  chosen = {name: getattr(arguments, name) for name in ("size", "dtype", "shard_bytes", "devices")}
  report = {
    "config": chosen | {"checkpoint_bytes": size, "parameters": written["parameters"]},
    "ours": ours,
    "peers": peers,
    "ratios": ratios,
    "absent": absent,
  }
  text = json.dumps(report, indent=2)
  print(text, flush=True)
  if arguments.json:
    pathlib.Path(arguments.json).write_text(text + "\n")
  return int(ours["peak_rss_bytes"] > max(size, 4 * written["parameters"]) + ALLOWANCE)


def write(arguments: argparse.Namespace) -> dict[str, Any]:
  """Writes config.json and random weights."""
  import ml_dtypes
  import numpy as np

  from kard_jax.convert import huggingface, tensors
  from kard_jax.convert.source import Config

  folder = pathlib.Path(arguments.folder)
  values = COMMON | SIZES[arguments.size]
  (folder / "config.json").write_text(json.dumps(values))
  family = huggingface.FAMILIES["t5"]
  network = family.NETWORK(**family.settings(Config(folder / "config.json", values), None))
  shapes, _ = huggingface.abstract(network, family.INPUTS, None)
  stored = {e.name: e.layout.stored_shape(shapes[e.path].shape) for e in family.table(network)}
  dtype = np.dtype(ml_dtypes.bfloat16 if arguments.dtype == "bfloat16" else np.float32)
  sizes = {name: math.prod(shape) * dtype.itemsize for name, shape in stored.items()}
  rng = np.random.default_rng(0)
  arrays = (
    (name, rng.standard_normal(shape, np.float32).astype(dtype)) for name, shape in stored.items()
  )
  tensors.write(folder, arrays, tensors.shard(sizes, arguments.shard_bytes))
  return {
    "bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
    "parameters": sum(math.prod(shape) for shape in stored.values()),
  }


def ours(arguments: argparse.Namespace) -> dict[str, Any]:
  """Loads here."""
  import jax

  from kard_jax.convert import huggingface
  from kard_jax.core.partitioning import Partitioner

  rules = (("vocab", "tensor"), ("heads", "tensor"), ("mlp", "tensor"))
  partitioner = Partitioner({"tensor": arguments.devices}, rules, cpu_devices=arguments.devices)
  network = huggingface.network(arguments.folder)
  before, start = peak(), time.perf_counter()
  params = huggingface.load(arguments.folder, network, partitioner)
  jax.block_until_ready(params)
  return figures(before, start)


def hf_torch(arguments: argparse.Namespace) -> dict[str, Any]:
  """Loads in transformers."""
  import torch
  import transformers

  before, start = peak(), time.perf_counter()
  model = transformers.AutoModelForSeq2SeqLM.from_pretrained(arguments.folder, dtype=torch.float32)
  sum(parameter.flatten()[0] for parameter in model.parameters())
  return figures(before, start)


def figures(before: int, start: float) -> dict[str, Any]:
  """Of this process."""
  seconds = time.perf_counter() - start
  return {"load_s": seconds, "before_rss_bytes": before, "peak_rss_bytes": peak()}


def peak() -> int:
  """The most bytes that have been resident in this process."""
  status = pathlib.Path("/proc/self/status").read_text()
  line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
  return int(line.split()[1]) << 10


WORKERS = {"write": write, "ours": ours, "hf_torch": hf_torch}

if __name__ == "__main__":
  sys.exit(main())
