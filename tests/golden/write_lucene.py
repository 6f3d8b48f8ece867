"""Writes lucene_*: what Lucene itself makes of texts, and what it finds. Lucene 9.5 is the oracle.

Not part of the tests: it needs Java (17 was used) and Pyserini, whose jar holds Lucene and
Anserini. Pyserini's own list of dependencies is longer than what this script touches:

  python -m venv /tmp/lucene
  /tmp/lucene/bin/pip install pyjnius pandas scipy scikit-learn faiss-cpu onnxruntime transformers \
    torch==2.13.0
  /tmp/lucene/bin/pip install --no-deps pyserini==0.22.1
  /tmp/lucene/bin/python tests/golden/write_lucene.py --data ../shared/data [--all FOLDER]

Written beside this file:

- `lucene_tokens.jsonl`: odd texts and their terms by Anserini's default English analyzer (Porter).
- `lucene_small.json.gz`: a made-up corpus, queries, ids and scores of the top 100.
- `lucene_evidence.npz`, `lucene_openstax.npz`: the top 100 of every 20th query of the collections
  in `lucene_sources.py`; `--all` writes those of every query to another folder.

Scores are Lucene's float32 numbers (`IndexSearcher`, BM25 with k1 0.9 and b 0.4, Anserini's bag of
words as the query). `LuceneSearcher` of Pyserini is asked too, and has to find the same passages:
it breaks ties by the id string, so ids are numbers of eight digits; and it rounds scores to 4
decimals and takes 0.000001 from one that is nearly equal to the score before it, again and again
along a run of such scores, which is why its scores are not what is kept.
"""

import argparse
import gzip
import json
import pathlib
import tempfile
from typing import Any

import lucene_sources
import lucene_texts
import numpy as np
from pyserini.analysis import Analyzer, get_lucene_analyzer
from pyserini.index.lucene import IndexReader, LuceneIndexer
from pyserini.pyclass import autoclass
from pyserini.search.lucene import LuceneSearcher

HERE = pathlib.Path(__file__).resolve().parent
K1, B, K = 0.9, 0.4, 100
EVERY = 20
# Anserini's rounding, half a unit, and its longest run of equal scores.
PYSERINI_ERROR = 0.5e-4 + K * 1e-6 + 1e-5


def contents(title: str, text: str) -> str:
  """What is indexed, as `kard_jax.retrieval.index.contents` has it."""
  return f"{title}\n{text}" if title else text


class Lucene:
  """An index of texts, numbered as they come."""

  def __init__(self, texts: list[str], folder: str):
    arguments = ["-index", folder, "-generator", "DefaultLuceneDocumentGenerator", "-storeContents"]
    indexer = LuceneIndexer(args=arguments, threads=1)
    # JSON in ASCII: what Java reads does not depend on the locale.
    rows = [json.dumps({"id": f"{n:08d}", "contents": text}) for n, text in enumerate(texts)]
    for start in range(0, len(rows), 1000):
      indexer.add_batch_raw(rows[start : start + 1000])
    indexer.close()
    self.reader = IndexReader(folder).reader
    if self.reader.maxDoc() != len(texts):
      raise SystemExit(f"{len(texts)} texts, {self.reader.maxDoc()} in the index")
    for number, text in enumerate(texts):
      stored = self.reader.document(number)
      if (stored.get("id"), stored.get("contents")) != (f"{number:08d}", text):
        raise SystemExit(f"text {number} was changed or moved")
    self.searcher = autoclass("org.apache.lucene.search.IndexSearcher")(self.reader)
    self.searcher.setSimilarity(
      autoclass("org.apache.lucene.search.similarities.BM25Similarity")(K1, B)
    )
    self.bag_of_words = autoclass("io.anserini.search.query.BagOfWordsQueryGenerator")()
    self.pyserini = LuceneSearcher(folder)
    self.pyserini.set_bm25(K1, B)

  def top(self, queries: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(ids_QxK int32, -1 for none; scores_QxK float32, 0 for none)."""
    analyzer = get_lucene_analyzer()
    ids = np.full((len(queries), K), -1, np.int32)
    scores = np.zeros((len(queries), K), np.float32)
    for row, text in enumerate(queries):
      query = self.bag_of_words.buildQuery("contents", analyzer, text)
      for rank, hit in enumerate(self.searcher.search(query, K).scoreDocs):
        ids[row, rank], scores[row, rank] = hit.doc, hit.score
    return ids, scores

  def pyserini_top(self, queries: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The same through Pyserini, with its scores."""
    ids = np.full((len(queries), K), -1, np.int32)
    scores = np.zeros((len(queries), K), np.float32)
    names = [str(row) for row in range(len(queries))]
    found = self.pyserini.batch_search(queries, names, k=K, threads=1)
    for row, name in enumerate(names):
      for rank, hit in enumerate(found.get(name, ())):
        ids[row, rank], scores[row, rank] = int(hit.docid), hit.score
    return ids, scores


def search(passages: list[tuple[str, str]], queries: list[str]) -> dict[str, np.ndarray]:
  """Indexes and asks, both ways; says where they disagree."""
  with tempfile.TemporaryDirectory() as folder:
    lucene = Lucene([contents(*passage) for passage in passages], folder)
    ids, scores = lucene.top(queries)
    other_ids, other_scores = lucene.pyserini_top(queries)
  error = np.abs(scores - other_scores).max()
  differ = int((ids != other_ids).sum())
  print(f"Pyserini: {differ} of {ids.size} ids differ, scores by up to {error:.2g}")
  if differ or error > PYSERINI_ERROR:
    raise SystemExit("Pyserini and Lucene disagree: nothing is written")
  return {"ids_QxK": ids, "scores_QxK": scores, "pyserini_scores_QxK": other_scores}


def write_tokens() -> None:
  analyzer = Analyzer(get_lucene_analyzer())
  with (HERE / "lucene_tokens.jsonl").open("w", encoding="utf-8") as out:
    for text in lucene_texts.odd():
      row = {"text": text, "terms": analyzer.analyze(text)}
      out.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_small() -> None:
  passages, queries = lucene_texts.small()
  found = search(passages, queries)
  rows: list[dict[str, Any]] = []
  for query, ids, scores in zip(queries, found["ids_QxK"], found["scores_QxK"], strict=True):
    count = int((ids >= 0).sum())
    short = [float(f"{score:.9g}") for score in scores[:count]]  # 9 digits: every float32
    rows.append({"query": query, "ids": ids[:count].tolist(), "scores": short})
  golden = {"passages": passages, "searches": rows}
  text = json.dumps(golden, ensure_ascii=False, separators=(",", ":"))
  (HERE / "lucene_small.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))


def write_collection(name: str, data: pathlib.Path, everything: pathlib.Path | None) -> None:
  collection = lucene_sources.COLLECTIONS[name](data)
  passages = [(title, text) for _, title, text in collection.passages]
  found = search(passages, collection.queries)
  if everything is not None:
    everything.mkdir(parents=True, exist_ok=True)
    np.savez(everything / f"{name}_top{K}.npz", **found)
    with (everything / f"{name}_queries.jsonl").open("w", encoding="utf-8") as out:
      out.writelines(json.dumps(query, ensure_ascii=False) + "\n" for query in collection.queries)
  rows = np.arange(0, len(collection.queries), EVERY, dtype=np.int32)
  np.savez_compressed(
    HERE / f"lucene_{name}.npz",
    queries_Q=rows,
    ids_QxK=found["ids_QxK"][rows],
    scores_QxK=found["scores_QxK"][rows],
  )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--data", type=pathlib.Path, help="the folder of the real collections")
  parser.add_argument("--all", type=pathlib.Path, help="where results of every query go")
  arguments = parser.parse_args()
  write_tokens()
  write_small()
  if arguments.data is not None:
    for name in lucene_sources.COLLECTIONS:
      write_collection(name, arguments.data, arguments.all)


if __name__ == "__main__":
  main()
