"""Small corpora and an exhaustive BM25 in plain Python: what the tests hold the code against."""

import collections
import math

from kard_jax.retrieval.analyzer import Analyzer
from kard_jax.retrieval.passages import Passage


def passages(*texts: str) -> list[Passage]:
  return [Passage(f"p{number}", "", text) for number, text in enumerate(texts)]


def bm25(texts, queries, analyzer=Analyzer("whitespace"), k1=0.9, b=0.4):
  """Scores [queries][texts] in float64, written from the formula and not from the code."""
  documents = [analyzer(text) for text in texts]
  counts = [collections.Counter(document) for document in documents]
  mean = sum(map(len, documents)) / len(documents)
  df = collections.Counter(term for count in counts for term in count)
  table = []
  for query in queries:
    row = []
    for document, count in zip(documents, counts, strict=True):
      total = 0.0
      for term in analyzer(query):
        if tf := count[term]:
          idf = math.log(1 + (len(texts) - df[term] + 0.5) / (df[term] + 0.5))
          total += idf * tf / (tf + k1 * (1 - b + b * len(document) / mean))
      row.append(total)
    table.append(row)
  return table
