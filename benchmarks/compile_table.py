"""Makes docs/hardware_table.md: what each pair of model and machine takes, by launch/compile.py.

Examples:
  python benchmarks/compile_table.py --rows=DIR > docs/hardware_table.md
  python benchmarks/compile_table.py --rows=DIR --only='_xl-(v5e-16|v5p-128)$'

Each pair is compiled once, by a process of its own, and kept in DIR as JSON; a run that was stopped
goes on with those that are not there. At its end it prints the page: those that do not fit, tables
of all pairs that DIR has, and those that it lacks. It needs libtpu for TPUs and JAX's CUDA plugin
for GPUs (`pip install 'kard_jax[compile]'`, `'kard_jax[compile-gpu]'`).
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402

from kard_jax.core import ahead, machines  # noqa: E402

# machine, as its file in gin_configs/hardware/ is called -> the batch of a train step
MACHINES = {
  "v4-8": 32,
  "v5e-8": 32,
  "v5e-16": 32,
  "v5e-256": 256,
  "v5p-128": 64,
  "v6e-64": 64,
  "gpu-1": 32,
  "gpu-8": 32,
  "gpu-hosts": 64,
}
TOPOLOGIES = machines.SLICES | {"gpu-1": "h100:1", "gpu-8": "h100:8", "gpu-hosts": "h100:4x8"}
MODELS = {  # file in gin_configs/models/ -> name
  "t5_1_1_base": "Flan-T5 base",
  "t5_1_1_large": "Flan-T5 large",
  "t5_1_1_xl": "Flan-T5 XL",
  "t5_1_1_xxl": "Flan-T5 XXL",
  "reranker_linkbert_base": "reranker LinkBERT-base",
  "reranker_flan_t5_base": "reranker Flan-T5 base",
  "t5_1_1_small": "T5 1.1 small",
  "opt_350m": "OPT 350M",
  "opt_1_3b": "OPT 1.3B",
  "gpt2": "GPT-2",
  "llama_3_2_1b": "Llama 3.2 1B",
  "llama_2_7b": "Llama 2 7B",
  "qwen3_0_6b": "Qwen3 0.6B",
  "smollm2_135m": "SmolLM2 135M",
  "reranker_minilm": "reranker MiniLM",
}
_FIRST = ("v5e-16", "v5e-256", "v5p-128")
_PAPERS = 6  # of MODELS, which come before the others
_PASSAGES = 40_000_000
# Decoders read prompt and text into one cache, which their positions end.
_PROMPTS = {"gpt2": 768, "opt_350m": 1_792, "opt_1_3b": 1_792}


# Prompts together, on one host; of others 64.
_ANSWERED = {"xl": (64, 16), "xxl": (64, 8), "opt_1_3b": (64, 16), "llama_2_7b": (64, 8)}
# A host of the one is a host of the other.
_AS = {"v5e-256": "v5e-16", "gpu-hosts": "gpu-8"}
# Answering with FSDP_AXIS = 1 and a TENSOR_AXIS, besides the machine's own mesh: what fsdp splits
# is gathered anew for each token.
_TENSOR = {
  "v5e": {"base": 1, "large": 1, "xl": 2, "xxl": 4},
  "v6e": {"base": 1, "large": 1, "xl": 1, "xxl": 4},
  "v4": {"base": 1, "large": 1, "xl": 1, "xxl": 4},
  "v5p": {"base": 1, "large": 1, "xl": 1, "xxl": 1},
  "gpu": {"base": 1, "large": 1, "xl": 1, "xxl": 1},
}
_ONE_CHIP = "gpu-1"  # has no other mesh


class Pair(NamedTuple):
  """A row or two of the table: its name, the model's, the batch, and flags of launch/compile.py."""

  name: str
  model: str
  batch: int
  flags: list[str]


def pairs() -> Iterator[Pair]:
  """All, those of the paper's models on the larger slices first."""
  slices = [*_FIRST, *(slice_ for slice_ in MACHINES if slice_ not in _FIRST)]
  names = list(MODELS)
  for some in (slices[: len(_FIRST)], slices[len(_FIRST) :]):
    for machine in some:
      # On one chip 2.4 billion postings are more than a device's search can number.
      if machine not in _AS and machine != _ONE_CHIP:
        flags = [f"--passages={_PASSAGES}", f"--topology={TOPOLOGIES[machine]}"]
        yield Pair(f"search-{machine}", "40 M passages", 32, flags)
      for model in names[:_PAPERS]:
        yield from _of_model(model, machine)
  for machine in slices:
    for model in names[_PAPERS:]:
      yield from _of_model(model, machine)


def _of_model(model: str, machine: str) -> Iterator[Pair]:
  run = "reranker" if model.startswith("reranker") else "student"
  yield _pair(run, model, machine, MACHINES[machine])
  if run == "reranker" or machine in _AS:
    return
  size = model.removeprefix("t5_1_1_")
  batches = _ANSWERED.get(size, (64,))
  for rows in batches:
    yield _pair("answer", model, machine, rows)
  tensor = _TENSOR[machine.split("-")[0]].get(size)
  if tensor and machine != _ONE_CHIP:
    yield _pair("answer", model, machine, batches[-1], tensor)


def _pair(run: str, model: str, machine: str, rows: int, tensor: int | None = None) -> Pair:
  files = [f"models/{model}", f"runs/{run}", f"hardware/{machine.replace('-', '_')}"]
  macros = {"BATCH_SIZE": rows, "SCAN_LAYERS": True}
  name = f"{run}_{rows}"
  if run == "answer" and model in _PROMPTS:
    macros["INPUT_LENGTH"] = _PROMPTS[model]
  if tensor:
    macros |= {"DATA_AXIS": -1, "FSDP_AXIS": 1, "TENSOR_AXIS": tensor}
    name += f"_tensor_{tensor}"
  flags = [f"--gin_file={ROOT}/gin_configs/{file}.gin" for file in files]
  flags += [f"--gin.{macro}={value}" for macro, value in macros.items()]
  flags.append(f"--topology={TOPOLOGIES[machine]}")
  return Pair(f"{name}-{model}-{machine}", MODELS[model], rows, flags)


def main() -> int:
  """Compiles what is not there yet, and prints the table."""
  flags = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  flags.add_argument("--rows", type=Path, required=True, metavar="DIR", help="keeps each pair")
  flags.add_argument("--only", default="", metavar="PATTERN", help="pairs whose names have it")
  flags.add_argument("--table", action="store_true", help="print what DIR has, compile nothing")
  arguments = flags.parse_args()
  arguments.rows.mkdir(parents=True, exist_ok=True)
  chosen = [pair for pair in pairs() if re.search(arguments.only, pair.name)]
  for number, pair in enumerate(chosen, 1):
    if not arguments.table and not _place(arguments.rows, pair).exists():
      print(f"{number} of {len(chosen)}: {pair.name}", file=sys.stderr, flush=True)
      _compile(pair, arguments.rows)
  _show([(pair, _place(arguments.rows, pair)) for pair in chosen])
  return 0


def _place(rows: Path, pair: Pair) -> Path:
  return rows / f"{pair.name}.json"


def _compile(pair: Pair, rows: Path) -> None:
  """Writes a pair's file; what went wrong goes to one beside it."""
  place = _place(rows, pair)
  partial = place.with_suffix(".partial")
  command = [sys.executable, str(ROOT / "launch/compile.py"), *pair.flags]
  done = subprocess.run(
    [*command, "--effort=-1", f"--json={partial}"], capture_output=True, text=True, check=False
  )
  if done.returncode:
    place.with_suffix(".log").write_text(done.stdout + done.stderr)
    print(f"failed: {pair.name}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
  else:
    partial.rename(place)


_COLUMNS = (
  "parameters", "arguments", "temporaries", "peak of HBM", "fits", "FLOPs", "collectives",
  "compiled in",
)  # fmt: skip


_PAGE = """# What each pair of model and machine takes

Printed by `python benchmarks/compile_table.py --rows=DIR`, which runs `launch/compile.py
--effort=-1` for each model of `gin_configs/models/` (the tiny ones, which any machine holds, left
out) on each machine of `gin_configs/hardware/` that is not a CPU; a GPU is an H100 of 80 GB,
`gpu-hosts` four hosts of eight. [Hardware](hardware.md) says what the columns are. jax {jax},
libtpu 0.0.42.1, SCAN_LAYERS on.

Training: inputs of 512 tokens, targets of 256, AdamW; a reranker 8 passages of 256 tokens a
question. Reading and writing: prompts of 2,048 tokens (OPT: 1,792; GPT-2: 768), texts of 256, 5
samples a prompt, parameters in float32; by the machine's own mesh, and for T5 without fsdp too.
Search: 40 M passages with 60 postings each, 32 queries. Each program is taken alone: what a host
holds besides, such as the index of a search while it writes, comes on top."""


def _show(found: list[tuple[Pair, Path]]) -> None:
  """The page, in Markdown."""
  refused, tables = [], []
  for machine in MACHINES:
    lines = [f"## {machine}", ""]
    lines.append(f"| what | batch | mesh | {' | '.join(_COLUMNS)} |")
    lines.append("|---" * (len(_COLUMNS) + 3) + "|")
    for pair, place in found:
      if not pair.name.endswith(f"-{machine}") or not place.exists():
        continue
      for report in ahead.from_json(place.read_text()):
        cells = ahead.cells(report)
        if not report.fits:
          refused.append(f"{machine}: {pair.model}, {report.program} {pair.batch}: {report.reason}")
          cells["fits"] = "**no**"
        where = "" if report.machine == TOPOLOGIES[machine] else ", each host"
        named = [f"{pair.model}, {report.program}", str(pair.batch), cells["mesh"] + where]
        lines.append(f"| {' | '.join([*named, *(cells[column] for column in _COLUMNS)])} |")
    if machine in _AS:
      lines += [
        "",
        f"Answering and searching: as on {_AS[machine]}, whose hosts have the same chips.",
      ]
    tables.append("\n".join(lines))
  missing = [pair.name for pair, place in found if not place.exists()]
  print(_PAGE.format(jax=jax.__version__))
  print("\n## What does not fit\n")
  print("\n".join(f"- {line}" for line in refused or ["nothing"]))
  print("\n" + "\n\n".join(tables))
  if missing:
    print("\n## Not compiled\n")
    print("\n".join(f"- {name}" for name in missing))


if __name__ == "__main__":
  sys.exit(main())
