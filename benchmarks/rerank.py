"""Measures rerankers: pairs/s of ours against sentence-transformers and a MaxSim model on torch.

Examples:
  python benchmarks/rerank.py --json=rerank.json
  python benchmarks/rerank.py --questions=8 --candidates=100 --peers=none

All encoders have MiniLM-L6's shape and the same random weights, written once as a Hugging Face
folder, and read the same texts in float32; tokenising counts for all. An engine is a process of its
own. A round asks each engine once, one after another; the first round is not counted, the median of
the others is. README.md says how to install the peers, and what is measured.
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
import numpy as np
from worker import Failed, Worker

_WORDS = 5_000  # of the made-up language
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_SHAPE = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12}
_OURS = ("cross_encoder", "late", "stored")
_PEERS = {"sentence_transformers": "cross_encoder", "maxsim_torch": "late"}  # and whose rival
Lists = tuple[list[str], list[list[str]]]
Runs = dict[str, list[dict[str, Any]]]  # of each engine: seconds and scores of each round


def flags() -> argparse.ArgumentParser:
  """The command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--questions", type=int, default=4, metavar="Q")
  add("--candidates", type=int, default=100, metavar="C", help="of each question (100)")
  add("--query_words", type=int, default=16, help="words of a question, on average (16)")
  add("--passage_words", type=int, default=100, help="of a passage, on average (100)")
  add("--rounds", type=int, default=4, help="of each engine, the first is not counted (4)")
  add("--peers", default=",".join(_PEERS), help="names with a comma, or none")
  add("--seed", type=int, default=0)
  add("--peers_python", default=sys.executable, help="the interpreter that has the peers")
  add("--json", metavar="FILE", type=pathlib.Path, help="write the measures there")
  return parser


def main() -> None:
  """Measures, prints and writes."""
  options = flags().parse_args()
  wanted = [name for name in options.peers.split(",") if name and name != "none"]
  if options.rounds < 2:
    raise SystemExit(f"--rounds={options.rounds}: at least 2, as the first is not counted")
  if unknown := sorted(set(wanted) - set(_PEERS)):
    raise SystemExit(f"--peers: no {', '.join(unknown)}; choose from {', '.join(_PEERS)}, or none")
  with tempfile.TemporaryDirectory() as folder:
    runs, versions, absent = measure(options, wanted, pathlib.Path(folder))
  report = summary(options, runs, versions, absent)
  print(json.dumps(report, indent=2))
  if options.json:
    bm25_report.write(report, options.json)


def write_model(folder: pathlib.Path, seed: int) -> None:
  """A cross-encoder's folder: MiniLM-L6's shape, random weights, whole words for WordPiece."""
  from safetensors.numpy import save_file

  rng = np.random.default_rng(seed)
  width, hidden, layers = 384, 1536, 6
  vocab = [*_SPECIAL, *(f"w{number}" for number in range(_WORDS))]

  def normal(*shape: int) -> np.ndarray:
    return rng.normal(0, 0.05, shape).astype(np.float32)

  weights: dict[str, np.ndarray] = {}

  def linear(name: str, outputs: int, inputs: int) -> None:
    weights[f"{name}.weight"], weights[f"{name}.bias"] = normal(outputs, inputs), normal(outputs)

  def norm(name: str) -> None:
    weights[f"{name}.weight"], weights[f"{name}.bias"] = 1 + normal(width), normal(width)

  tables = {"word": len(vocab), "position": 512, "token_type": 2}
  for name, rows in tables.items():
    weights[f"bert.embeddings.{name}_embeddings.weight"] = normal(rows, width)
  norm("bert.embeddings.LayerNorm")
  for i in range(layers):
    prefix = f"bert.encoder.layer.{i}"
    for name in ("self.query", "self.key", "self.value", "output.dense"):
      linear(f"{prefix}.attention.{name}", width, width)
    norm(f"{prefix}.attention.output.LayerNorm")
    linear(f"{prefix}.intermediate.dense", hidden, width)
    linear(f"{prefix}.output.dense", width, hidden)
    norm(f"{prefix}.output.LayerNorm")
  linear("bert.pooler.dense", width, width)
  linear("classifier", 1, width)
  folder.mkdir()
  save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
  config = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "vocab_size": len(vocab),
    "intermediate_size": hidden,
    "hidden_act": "gelu",
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "pad_token_id": 0,
    "id2label": {"0": "LABEL_0"},
    "label2id": {"LABEL_0": 0},
  }
  (folder / "config.json").write_text(json.dumps(config | _SHAPE))
  (folder / "vocab.txt").write_text("\n".join(vocab) + "\n")
  names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
  tokenizer = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}
  tokenizer |= {f"{kind}_token": token for kind, token in names.items()}
  (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))


def make_lists(options: argparse.Namespace) -> Lists:
  """Questions and candidates; lengths are spread evenly from half to one and a half of the mean."""
  rng = np.random.default_rng(options.seed)

  def text(words: int) -> str:
    count = rng.integers(words // 2, words * 3 // 2 + 1)
    return " ".join(f"w{number}" for number in rng.integers(0, _WORDS, count))

  queries = [text(options.query_words) for _ in range(options.questions)]
  passages = [
    [text(options.passage_words) for _ in range(options.candidates)] for _ in range(len(queries))
  ]
  return queries, passages


def measure(
  options: argparse.Namespace, wanted: list[str], folder: pathlib.Path
) -> tuple[Runs, dict[str, str], dict[str, str]]:
  """What each engine did in each round, versions of packages, and why a peer is not there."""
  write_model(folder / "model", options.seed)
  texts = folder / "texts.json"
  texts.write_text(json.dumps(dict(zip(("queries", "passages"), make_lists(options), strict=True))))
  given = {
    "model": str(folder / "model"),
    "texts": str(texts),
    "threads": len(os.sched_getaffinity(0)),
  }
  workers: dict[str, Worker] = {}
  versions: dict[str, str] = {}
  absent: dict[str, str] = {}
  try:
    for name in (*_OURS, *wanted):
      python = options.peers_python if name in _PEERS else sys.executable
      try:
        worker = Worker("rerank_engines.py", name, python, folder / f"{name}.log", **given)
      except Failed as error:
        if name in _OURS:
          raise SystemExit(str(error)) from None
        absent[name] = str(error)
        continue
      workers[name] = worker
      versions |= worker.begun
    runs: Runs = {name: [] for name in workers}
    for _ in range(options.rounds):
      for name, worker in workers.items():
        runs[name].append(worker("run"))
  finally:
    for worker in workers.values():
      worker.end()
  return runs, versions, absent


def summary(
  options: argparse.Namespace,
  runs: Runs,
  versions: dict[str, str],
  absent: dict[str, str],
) -> dict[str, Any]:
  """The measures, their ratios, and how far scores are apart."""
  pairs = options.questions * options.candidates
  seconds = {name: [run["seconds"] for run in some[1:]] for name, some in runs.items()}
  rates = {name: pairs / statistics.median(some) for name, some in seconds.items()}
  figures = {
    name: {
      "pairs_per_s": rates[name],
      "seconds": seconds[name],
      "first_s": runs[name][0]["seconds"],
    }
    for name in runs
  }
  scores = {name: some[-1]["scores"] for name, some in runs.items()}
  rivals = {name: mine for name, mine in _PEERS.items() if name in runs}
  return {
    "config": bm25_report.settings(options) | bm25_report.machine() | {"dtype": "float32"},
    "ours": {name: figures[name] for name in _OURS},
    "peers": {name: figures[name] for name in rivals},
    "ratios": {"stored_to_cross_encoder": rates["stored"] / rates["cross_encoder"]}
    | {name: rates[mine] / rates[name] for name, mine in rivals.items()},
    "differences": {"stored": _apart(scores["late"], scores["stored"])}
    | {name: _apart(scores[name], scores[mine]) for name, mine in rivals.items()},
    "absent": absent,
    "packages": versions,
  }


def _apart(one: list[list[float]], other: list[list[float]]) -> float:
  """The largest difference of scores within lists (a number that moves a whole list is none)."""
  centred = [[np.array(row) - np.mean(row) for row in rows] for rows in (one, other)]
  return float(max(np.max(np.abs(a - b)) for a, b in zip(*centred, strict=True)))


if __name__ == "__main__":
  main()
