"""Corpora, an exhaustive BM25 in float64, and what it means to equal it: for tests of retrieval."""

import collections
import math

import numpy as np

from kard_jax.core import files
from kard_jax.retrieval import blocks, native, search_cpu, vocabulary
from kard_jax.retrieval.analyzer import Analyzer
from kard_jax.retrieval.passages import Passage

WHITE = Analyzer("whitespace")


def passages(*texts: str) -> list[Passage]:
  return [Passage(f"p{number}", "", text) for number, text in enumerate(texts)]


def zipf_texts(count, seed, longest=30, words=5000, exponent=1.2):
  """Texts of 1 to `longest` - 1 words w0, w1, ..., some of them far more frequent than others."""
  rng = np.random.default_rng(seed)
  sizes = rng.integers(1, longest, count)
  drawn = rng.zipf(exponent, sizes.sum()) % words
  return [
    " ".join([f"w{word}" for word in part]) for part in np.split(drawn, np.cumsum(sizes)[:-1])
  ]


def rounded_length(length: int) -> int:
  """What is left of a length that Lucene kept in a byte: above 39, its four leading bits."""
  if length < 40:
    return length
  step = 1 << (length - 24).bit_length() - 4
  return 24 + (length - 24) // step * step


class Truth:
  """BM25 of all passages in float64, from terms alone."""

  def __init__(self, texts, analyzer=WHITE, k1=0.9, b=0.4, lengths="lucene"):
    self._terms = str.split if analyzer.kind == "whitespace" else analyzer
    self._size = len(texts)
    rows = [self._terms(text) for text in texts]
    sizes = np.array([len(row) for row in rows])
    self._passages = np.count_nonzero(sizes)
    mean = sizes.sum() / max(1, self._passages)
    if lengths == "lucene":
      sizes = np.array([rounded_length(int(size)) for size in sizes])
    self._held_back = k1 * (1 - b + b * sizes / mean) if self._passages else sizes
    postings = collections.defaultdict(lambda: ([], []))
    for number, row in enumerate(rows):
      for term, tf in collections.Counter(row).items():
        postings[term][0].append(number)
        postings[term][1].append(tf)
    self._postings = {
      term: (np.array(found), np.array(tfs, float)) for term, (found, tfs) in postings.items()
    }

  def frequency(self, term):
    """How many passages have a term."""
    return len(self._postings[term][0]) if term in self._postings else 0

  def scores(self, query):
    """float64 [passages], and the absolute error that the index's whole numbers may make."""
    scores, total, terms = np.zeros(self._size), 0.0, 0
    for term, count in collections.Counter(self._terms(query)).items():
      if term not in self._postings:
        continue
      found, tfs = self._postings[term]
      idf = math.log(1 + (self._passages - len(found) + 0.5) / (len(found) + 0.5))
      scores[found] += count * idf * tfs / (tfs + self._held_back[found])
      total, terms = total + count * idf, terms + 1
    # A unit is up to 2**-29 of the sum; weight and product are rounded to half of one each.
    return scores, terms * 2.0**-29 * total


def assert_exact(truth, queries, k, hits):
  """The answer is that of the float64 scores, but where those are nearly equal."""
  assert hits.ids_BxK.shape == hits.scores_BxK.shape == (len(queries), k)
  for query, ids, scores in zip(queries, hits.ids_BxK, hits.scores_BxK, strict=True):
    expected, error = truth.scores(query)
    best = np.lexsort((np.arange(len(expected)), -expected))
    best = best[expected[best] > 0][:k]
    assert (ids[len(best) :] == -1).all()
    assert (scores[len(best) :] == 0).all()
    ids, scores = ids[: len(best)], scores[: len(best)]
    assert len(set(ids.tolist())) == len(best)
    assert (ids >= 0).all()
    np.testing.assert_allclose(scores, expected[ids], rtol=2e-7, atol=error)
    # The same passage at each rank, or one whose score float32 or the units cannot tell from it.
    np.testing.assert_allclose(expected[ids], expected[best], rtol=2.4e-7, atol=2 * error)
    falls, ties = np.diff(scores) < 0, np.diff(scores) == 0
    assert (falls | ties).all()
    assert (np.diff(ids)[ties] > 0).all()


def assert_same(one, other):
  """Two answers are the same, bit for bit."""
  np.testing.assert_array_equal(one.ids_BxK, other.ids_BxK)
  np.testing.assert_array_equal(one.scores_BxK.view(np.int32), other.scores_BxK.view(np.int32))


def without_kernels(patch):
  """Turns the compiled kernels off, as `KARD_JAX_NATIVE=0` does for a process."""
  patch.setattr(native, "library", lambda: None)
  for module in (blocks, search_cpu, vocabulary):
    patch.setattr(module, "_library", lambda: None)


def bytes_below(folder):
  """Hash and size of every file of a folder, by its path in it."""
  return {
    str(path.relative_to(folder)): (files.sha256(path), path.stat().st_size)
    for path in sorted(folder.rglob("*"))
    if path.is_file()
  }
