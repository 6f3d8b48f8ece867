"""Measures rerankers: pairs/s of ours against sentence-transformers and a MaxSim model on torch.

Examples:
  python benchmarks/rerank.py --json=rerank.json
  python benchmarks/rerank.py --questions=8 --candidates=100 --peers=none

All encoders have MiniLM-L6's shape and the same random weights, written once as a Hugging Face
folder, and read the same texts in float32; tokenising counts for all. A round asks each engine
once, one after another; the first round is not counted, the median of the others is. README.md says
how to install the peers, and what is measured.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import itertools
import json
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

_WORDS = 5_000  # of the made-up language
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_SHAPE = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12}
_PEERS = ("sentence_transformers", "maxsim_torch")
Lists = tuple[list[str], list[list[str]]]
Engine = Callable[[], list[np.ndarray]]  # scores of all lists


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
  add("--json", metavar="FILE", help="write the measures there")
  return parser


def main() -> None:
  """Measures, prints and writes."""
  options = flags().parse_args()
  wanted = [name for name in options.peers.split(",") if name and name != "none"]
  with tempfile.TemporaryDirectory() as folder:
    model = pathlib.Path(folder) / "model"
    write_model(model, options.seed)
    lists = make_lists(options)
    engines, absent = {}, {}
    for name, build in (("cross_encoder", ours_cross), ("late", ours_late)):
      engines[name] = build(model, lists)
    engines["stored"] = ours_stored(model, lists, pathlib.Path(folder) / "store")
    for name in wanted:
      module = {"sentence_transformers": "sentence_transformers", "maxsim_torch": "torch"}[name]
      if importlib.util.find_spec(module) is None:
        absent[name] = f"{module} is not installed"
      else:
        engines[name] = {"sentence_transformers": peer_cross, "maxsim_torch": peer_maxsim}[name](
          model, lists
        )
    seconds, scores = measure(engines, options.rounds)
  report = summary(options, seconds, scores, absent)
  print(json.dumps(report, indent=2))
  if options.json:
    pathlib.Path(options.json).write_text(json.dumps(report, indent=2) + "\n")


def write_model(folder: pathlib.Path, seed: int) -> None:
  """A cross-encoder's folder: MiniLM-L6's shape, random weights, whole words for WordPiece."""
  from safetensors.numpy import save_file

  rng = np.random.default_rng(seed)
  width, hidden, layers = 384, 1536, 6
  vocab = [*_SPECIAL, *(f"w{number}" for number in range(_WORDS))]
  normal = lambda *shape: rng.normal(0, 0.05, shape).astype(np.float32)
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


def _tokens(model: pathlib.Path) -> Callable[[Sequence[str]], list[np.ndarray]]:
  from etils import epath

  from tasks import hugging_face

  loaded = hugging_face.load(epath.Path(model))
  around = [np.array(loaded.prefix, np.int32), np.array(loaded.suffix, np.int32)]
  return lambda texts: [
    np.concatenate([around[0], np.array(ids, np.int32), around[1]]) for ids in loaded.encode(texts)
  ]


def ours_cross(model: pathlib.Path, lists: Lists) -> Engine:
  """The cross-encoder."""
  from kard_jax.convert import cross_encoder
  from kard_jax.reranker import score

  network, params = cross_encoder.load(model)
  tokens, (queries, passages) = _tokens(model), lists

  def run() -> list[np.ndarray]:
    return score.rerank_scores(
      network, params, tokens(queries), [tokens(texts) for texts in passages]
    )

  return run


def _late(model: pathlib.Path) -> tuple[Any, Any]:
  from kard_jax.convert import huggingface
  from kard_jax.reranker import network

  encoder: Any = huggingface.network(model)
  return network.LateInteraction(encoder), {"encoder": huggingface.load(model, encoder)}


def ours_late(model: pathlib.Path, lists: Lists) -> Engine:
  """Late interaction that encodes the passages each time."""
  from kard_jax.reranker import score

  network, params = _late(model)
  tokens, (queries, passages) = _tokens(model), lists

  def run() -> list[np.ndarray]:
    return score.rerank_scores(
      network, params, tokens(queries), [tokens(texts) for texts in passages]
    )

  return run


def ours_stored(model: pathlib.Path, lists: Lists, folder: pathlib.Path) -> Engine:
  """Late interaction with passage vectors that were computed before, in float16 on disk."""
  from kard_jax.reranker import store

  network, params = _late(model)
  tokens, (queries, passages) = _tokens(model), lists
  store.write(folder, network, params, tokens([text for texts in passages for text in texts]))
  opened = store.Store(folder)
  starts = np.cumsum([0, *map(len, passages)])
  positions = [np.arange(*bounds) for bounds in itertools.pairwise(starts)]
  return lambda: opened.rerank_scores(network, params, tokens(queries), positions)


def peer_cross(model: pathlib.Path, lists: Lists) -> Engine:
  """sentence-transformers' CrossEncoder, with the batch size that is fastest here (16 to 64)."""
  import sentence_transformers
  import torch

  reranker = sentence_transformers.CrossEncoder(
    str(model), device="cpu", max_length=512, activation_fn=torch.nn.Identity()
  )
  pairs = [(query, text) for query, texts in zip(*lists, strict=True) for text in texts]
  ends = np.cumsum([len(texts) for texts in lists[1]])[:-1]

  def run(batch_size: int, pairs: list[tuple[str, str]] = pairs) -> np.ndarray:
    return reranker.predict(pairs, batch_size=batch_size, show_progress_bar=False)

  def cost(batch_size: int) -> float:
    started = time.perf_counter()
    run(batch_size, pairs[:128])
    return time.perf_counter() - started

  run(32, pairs[:64])
  best = min((16, 32, 64), key=cost)
  return lambda: np.split(run(best), ends)


def peer_maxsim(model: pathlib.Path, lists: Lists) -> Engine:
  """The same late interaction in torch: transformers' encoder, passages sorted by length."""
  import torch
  import transformers

  encoder = transformers.BertModel.from_pretrained(model, add_pooling_layer=False).eval()
  tokens, (queries, passages) = _tokens(model), lists

  def encode(rows: list[np.ndarray]) -> list[Any]:
    found: list[Any] = [None] * len(rows)
    order = sorted(range(len(rows)), key=lambda at: len(rows[at]))
    for start in range(0, len(order), 32):
      some = order[start : start + 32]
      longest = max(len(rows[at]) for at in some)
      ids = torch.zeros((len(some), longest), dtype=torch.long)
      for row, at in enumerate(some):
        ids[row, : len(rows[at])] = torch.from_numpy(rows[at])
      hidden = encoder(input_ids=ids, attention_mask=(ids > 0).long()).last_hidden_state
      for row, at in enumerate(some):
        found[at] = hidden[row, : len(rows[at])]
    return found

  def run() -> list[np.ndarray]:
    with torch.inference_mode():
      asked, result = encode(tokens(queries)), []
      for query, texts in zip(asked, passages, strict=True):
        sums = [(query @ vectors.T).max(1).values.sum() for vectors in encode(tokens(texts))]
        result.append(torch.stack(sums).numpy())
      return result

  return run


def measure(
  engines: dict[str, Engine], rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[np.ndarray]]]:
  """Seconds of each round but the first, and the scores."""
  seconds: dict[str, list[float]] = {name: [] for name in engines}
  scores = {}
  for number in range(rounds):
    for name, run in engines.items():
      started = time.perf_counter()
      scores[name] = run()
      if number:
        seconds[name].append(time.perf_counter() - started)
  return seconds, scores


def summary(
  options: argparse.Namespace,
  seconds: dict[str, list[float]],
  scores: dict[str, list[np.ndarray]],
  absent: dict[str, str],
) -> dict[str, Any]:
  """The measures, their ratios, and how far scores are apart."""
  pairs = options.questions * options.candidates
  rates = {name: pairs / statistics.median(some) for name, some in seconds.items()}
  found: dict[str, Any] = {
    "config": vars(options) | {"cores": len(os.sched_getaffinity(0)), "dtype": "float32"},
    "ours": {
      name: {"pairs_per_s": rates[name], "seconds": seconds[name]}
      for name in ("cross_encoder", "late", "stored")
    },
    "peers": {
      name: {"pairs_per_s": rates[name], "seconds": seconds[name]}
      for name in _PEERS
      if name in rates
    },
    "ratios": {"stored_to_cross_encoder": rates["stored"] / rates["cross_encoder"]},
    "differences": {"stored": _apart(scores["late"], scores["stored"])},
    "absent": absent,
    "packages": {
      name: importlib.metadata.version(name)
      for name in ("jax", "torch", "transformers", "sentence-transformers")
      if importlib.util.find_spec(name.replace("-", "_"))
    },
  }
  for peer, mine in (("sentence_transformers", "cross_encoder"), ("maxsim_torch", "late")):
    if peer in rates:
      found["ratios"][peer] = rates[mine] / rates[peer]
      found["differences"][peer] = _apart(scores[peer], scores[mine])
  return found


def _apart(one: list[np.ndarray], other: list[np.ndarray]) -> float:
  """The largest difference of scores within lists (a number that moves a whole list is none)."""
  centred = [[np.ravel(row) - np.mean(row) for row in rows] for rows in (one, other)]
  return float(max(np.max(np.abs(a - b)) for a, b in zip(*centred, strict=True)))


if __name__ == "__main__":
  main()
