"""Stores the passages of a dataset's knowledge base and indexes them for BM25.

Example:
  python launch/index.py --gin_file=gin_configs/recipes/quickstart/2_index.gin
"""

from __future__ import annotations

if __name__ == "__main__":  # run the module gin can import, with the project's root on the path
  import pathlib
  import sys

  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])
  from kard_jax.core import config

  sys.exit(config.launch("index", __doc__ or ""))


from kard_jax.core.provenance import Stage
from kard_jax.retrieval import index as index_lib
from kard_jax.retrieval import passages as passages_lib
from kard_jax.retrieval.analyzer import Analyzer
from tasks import registry


def index(
  stage: Stage,
  *,
  dataset: registry.Dataset,
  analyzer: Analyzer = Analyzer(),
  k1: float = 0.9,
  b: float = 0.4,
) -> None:
  """Writes `knowledge/passages/` and `knowledge/bm25/`.

  Args:
    stage: the work directory and the record.
    dataset: whose passages.
    analyzer: text to terms.
    k1: how soon more of the same term counts no more (Anserini's default).
    b: how much long passages pay (Anserini's default).
  """
  stage.reads_outside(dataset.inputs())
  folder = stage.writes("knowledge/passages")
  count = passages_lib.write(dataset.read_passages(), folder)
  stored = passages_lib.Passages(folder)
  built = index_lib.build(stored, stage.writes("knowledge/bm25"), analyzer=analyzer, k1=k1, b=b)
  terms, postings = len(built.terms), len(built.passages)
  print(f"{count:>7,} passages, {terms:,} terms, {postings:,} postings", flush=True)
