"""The engines of `rerank.py`, each in a process of its own, told what to do over a pipe.

`python rerank_engines.py ENGINE` reads a JSON object a line from standard input and answers each
with one on standard output, as `train_step_engines.py` does. All read the same Hugging Face folder
and the same texts. A process each, since torch's threads and XLA's slow one another down in one.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import worker

Run = Callable[[], list[np.ndarray]]  # scores of all lists


class Engine:
  """What all have in common; `_build` is each engine's own.

  Attributes:
    PACKAGES: whose versions are given.
  """

  PACKAGES: tuple[str, ...] = ()
  _run: Run

  def begin(self, *, model: str, texts: str, threads: int) -> dict[str, Any]:
    """Loads the folder's model, and the questions and passages of a JSON file; gives versions."""
    lists = json.loads(Path(texts).read_text())
    self._run = self._build(Path(model), lists["queries"], lists["passages"], threads)
    return {name: importlib.metadata.version(name) for name in self.PACKAGES}

  def _build(self, model: Path, queries: list[str], passages: list[list[str]], threads: int) -> Run:
    raise NotImplementedError

  def run(self) -> dict[str, Any]:
    """Scores all lists once."""
    started = time.perf_counter()
    scores = self._run()
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "scores": [np.ravel(row).tolist() for row in scores]}


class CrossEncoder(Engine):
  """Ours: question and passage in one row. XLA takes all cores that the process may use."""

  PACKAGES = ("jax",)

  def _build(self, model: Path, queries: list[str], passages: list[list[str]], threads: int) -> Run:
    del threads
    _root()
    from kard_jax.convert import cross_encoder
    from kard_jax.reranker import score

    network, params = cross_encoder.load(model)
    tokens = _tokens(model)
    return lambda: score.rerank_scores(
      network, params, tokens(queries), [tokens(texts) for texts in passages]
    )


class Late(Engine):
  """Ours: late interaction that encodes the passages each time."""

  PACKAGES = ("jax",)

  def _build(self, model: Path, queries: list[str], passages: list[list[str]], threads: int) -> Run:
    del threads
    network, params = _late(model)
    from kard_jax.reranker import score

    tokens = _tokens(model)
    return lambda: score.rerank_scores(
      network, params, tokens(queries), [tokens(texts) for texts in passages]
    )


class Stored(Engine):
  """Ours: late interaction with passage vectors computed before, in float16 on disk."""

  PACKAGES = ("jax",)

  def _build(self, model: Path, queries: list[str], passages: list[list[str]], threads: int) -> Run:
    del threads
    network, params = _late(model)
    from kard_jax.reranker import store

    tokens, folder = _tokens(model), model.parent / "store"
    store.write(folder, network, params, tokens([text for texts in passages for text in texts]))
    opened = store.Store(folder)
    starts = np.cumsum([0, *map(len, passages)])
    positions = [np.arange(*bounds) for bounds in itertools.pairwise(starts)]
    return lambda: opened.rerank_scores(network, params, tokens(queries), positions)


class SentenceTransformers(Engine):
  """sentence-transformers' CrossEncoder, with the batch size that is fastest here (16 to 64)."""

  PACKAGES = ("torch", "transformers", "sentence-transformers")

  def _build(self, model: Path, queries: list[str], passages: list[list[str]], threads: int) -> Run:
    import sentence_transformers
    import torch

    torch.set_num_threads(threads)
    reranker = sentence_transformers.CrossEncoder(
      str(model), device="cpu", max_length=512, activation_fn=torch.nn.Identity()
    )
    pairs = [(query, text) for query, some in zip(queries, passages, strict=True) for text in some]
    ends = np.cumsum([len(some) for some in passages])[:-1]

    def run(batch_size: int, pairs: list[tuple[str, str]] = pairs) -> np.ndarray:
      return reranker.predict(pairs, batch_size=batch_size, show_progress_bar=False)

    def cost(batch_size: int) -> float:
      started = time.perf_counter()
      run(batch_size, pairs[:128])
      return time.perf_counter() - started

    run(32, pairs[:64])
    best = min((16, 32, 64), key=cost)
    return lambda: np.split(run(best), ends)


class MaxSim(Engine):
  """The same late interaction in torch: transformers' encoder, passages sorted by length."""

  PACKAGES = ("torch", "transformers")

  def _build(self, model: Path, queries: list[str], passages: list[list[str]], threads: int) -> Run:
    import torch
    import transformers

    torch.set_num_threads(threads)
    encoder = transformers.BertModel.from_pretrained(model, add_pooling_layer=False).eval()
    _root()
    tokens = _tokens(model)

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


def _root() -> None:
  sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def _tokens(model: Path) -> Callable[[Sequence[str]], list[np.ndarray]]:
  from etils import epath

  from tasks import hugging_face

  loaded = hugging_face.load(epath.Path(model))
  around = [np.array(loaded.prefix, np.int32), np.array(loaded.suffix, np.int32)]
  return lambda texts: [
    np.concatenate([around[0], np.array(ids, np.int32), around[1]]) for ids in loaded.encode(texts)
  ]


def _late(model: Path) -> tuple[Any, Any]:
  _root()
  from kard_jax.convert import huggingface
  from kard_jax.reranker import network

  encoder: Any = huggingface.network(model)
  return network.LateInteraction(encoder), {"encoder": huggingface.load(model, encoder)}


ENGINES: dict[str, type[Engine]] = {
  "cross_encoder": CrossEncoder,
  "late": Late,
  "stored": Stored,
  "sentence_transformers": SentenceTransformers,
  "maxsim_torch": MaxSim,
}


if __name__ == "__main__":
  worker.serve(ENGINES)
