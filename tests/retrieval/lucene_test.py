"""Terms, rankings and scores are Lucene's own (golden values: tests/golden/write_lucene.py)."""

import gzip
import json
import pathlib

import numpy as np
import pytest

from kard_jax.retrieval import bm25
from kard_jax.retrieval import index as index_lib
from kard_jax.retrieval.analyzer import Analyzer
from kard_jax.retrieval.passages import Passage
from tests.golden import lucene_sources

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def hold_against_lucene(hits, ids_QxK, scores_QxK):
  """At least 99.5 % of all (query, rank) pairs hold the same passage, all the same score."""
  found = (ids_QxK >= 0) | (hits.ids_BxK >= 0)
  same = (ids_QxK == hits.ids_BxK)[found]
  assert same.mean() >= 0.995, f"{(~same).sum()} of {same.size} pairs differ"
  np.testing.assert_allclose(hits.scores_BxK, scores_QxK, rtol=1e-4, atol=0.0)


def test_terms():
  analyzer = Analyzer()
  lines = (GOLDEN / "lucene_tokens.jsonl").read_text("utf-8").split("\n")
  rows = [json.loads(line) for line in lines if line]
  assert len(rows) > 1000
  terms = analyzer.batch([row["text"] for row in rows])
  wrong = [
    (row["text"], row["terms"], found)
    for row, found in zip(rows, terms, strict=True)
    if row["terms"] != found
  ]
  assert not wrong, f"{len(wrong)} texts of {len(rows)}: {wrong[:5]}"


def test_a_corpus_of_odd_passages(tmp_path):
  golden = json.loads(gzip.decompress((GOLDEN / "lucene_small.json.gz").read_bytes()))
  passages = [Passage(f"p{n}", *row) for n, row in enumerate(golden["passages"])]
  # The corpus has to have what it is there for.
  assert len({(passage.title, passage.text) for passage in passages}) < len(passages)  # ties
  assert any(not Analyzer()(index_lib.contents(passage)) for passage in passages)  # no terms
  index = index_lib.build(passages, tmp_path / "index")
  searches = golden["searches"]
  ids = np.full((len(searches), 100), -1, np.int32)
  scores = np.zeros(ids.shape, np.float32)
  for row, search in enumerate(searches):
    ids[row, : len(search["ids"])] = search["ids"]
    scores[row, : len(search["scores"])] = search["scores"]
  hits = bm25.top_k(index, [search["query"] for search in searches], 100)
  hold_against_lucene(hits, ids, scores)


@pytest.mark.parametrize("name", lucene_sources.COLLECTIONS)
def test_a_real_collection(shared_data, tmp_path, name):
  golden = np.load(GOLDEN / f"lucene_{name}.npz")
  collection = lucene_sources.COLLECTIONS[name](shared_data)
  passages = [Passage(*row) for row in collection.passages]
  index = index_lib.build(passages, tmp_path / "index")
  hits = bm25.top_k(index, [collection.queries[row] for row in golden["queries_Q"]], 100)
  hold_against_lucene(hits, golden["ids_QxK"], golden["scores_QxK"])
