"""BM25 by JAX against an exhaustive one."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from kard_jax.retrieval import bm25
from kard_jax.retrieval import index as index_lib
from kard_jax.retrieval.analyzer import Analyzer
from tests.retrieval import corpus

WHITE = Analyzer("whitespace")
WORDS = st.lists(st.sampled_from("abcdefg"), max_size=8).map(" ".join)


def build(path, texts):
  return index_lib.build(corpus.passages(*texts), path / "i", analyzer=WHITE)


def exhaustive(index, queries):
  """Float32 scores, added in the order the module promises: by term id, repeats one by one."""
  dense = np.zeros((len(queries), len(index)), np.float32)
  for row, query in enumerate(queries):
    for term in index.query(query):
      span = slice(index.offsets[term], index.offsets[term + 1])
      dense[row, index.passages[span]] += index.scores[span]
  return dense


def ranked(dense, k):
  """Top k by (score, position), positive scores only."""
  ids = np.full((len(dense), k), -1, np.int32)
  scores = np.zeros((len(dense), k), np.float32)
  for row, values in enumerate(dense):
    order = [i for i in np.lexsort((np.arange(len(values)), -values)) if values[i] > 0][:k]
    ids[row, : len(order)], scores[row, : len(order)] = order, values[order]
  return ids, scores


def assert_exact(index, queries, k):
  hits = bm25.top_k(index, queries, k)
  ids, scores = ranked(exhaustive(index, queries), k)
  np.testing.assert_array_equal(hits.ids_BxK, ids)
  np.testing.assert_array_equal(hits.scores_BxK, scores)
  return hits


def zipf_texts(count, seed, longest=30, words=5000):
  rng = np.random.default_rng(seed)
  return [
    " ".join(f"w{word}" for word in rng.zipf(1.2, rng.integers(1, longest)) % words)
    for _ in range(count)
  ]


@hypothesis.settings(
  max_examples=60,
  deadline=None,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(
  texts=st.lists(WORDS, min_size=1, max_size=12),
  queries=st.lists(st.lists(st.sampled_from("abcdefgxyz"), max_size=9).map(" ".join), max_size=5),
  k=st.sampled_from([1, 3, 20]),
)
def test_equals_exhaustive_search(tmp_path, texts, queries, k):
  index = build(tmp_path, texts)
  hits = assert_exact(index, queries, k)
  assert hits.ids_BxK.shape == hits.scores_BxK.shape == (len(queries), k)
  if not queries:
    return
  truth = np.array(corpus.bm25(texts, queries))  # float64, from the texts
  best = -np.sort(-truth, axis=1)[:, :k]
  np.testing.assert_allclose(hits.scores_BxK[:, : best.shape[1]], best, rtol=1e-6)
  everything = np.tile(np.arange(len(texts)), (len(queries), 1))
  np.testing.assert_allclose(bm25.rescore(index, queries, everything), truth, rtol=1e-6)


def test_larger_corpus_over_blocks_and_batches(tmp_path):
  index = build(tmp_path, zipf_texts(3000, 0))
  queries = zipf_texts(100, 1, longest=60)
  assert np.diff(index.offsets).max() > 2 * bm25._BLOCK  # several blocks for one term
  assert len(queries) > 3 * bm25._BATCH
  assert_exact(index, queries, 10)


@pytest.mark.parametrize(
  "change", [{"_CHUNK": 1024}, {"_MOST_BLOCKS": 20}, {"_BLOCKS": 1}, {"_BATCH": 3}]
)
def test_bounds_on_memory_do_not_change_the_answer(tmp_path, monkeypatch, change):
  index = build(tmp_path, zipf_texts(2500, 0))
  queries = [*zipf_texts(40, 1), "", "unknown"]
  expected = bm25.top_k(index, queries, 15)
  wanted = np.random.default_rng(2).integers(-1, 2500, (len(queries), 9))
  rescored = bm25.rescore(index, queries, wanted)
  assert (rescored > 0).any()
  for name, value in change.items():
    assert getattr(bm25, name) > value
    monkeypatch.setattr(bm25, name, value)
  hits = bm25.top_k(index, queries, 15)
  np.testing.assert_array_equal(hits.ids_BxK, expected.ids_BxK)
  np.testing.assert_array_equal(hits.scores_BxK, expected.scores_BxK)
  np.testing.assert_array_equal(bm25.rescore(index, queries, wanted), rescored)


def test_side_by_side_as_on_an_accelerator_gives_the_same_bits(tmp_path, monkeypatch):
  index = build(tmp_path, zipf_texts(2500, 0))
  queries = zipf_texts(40, 1)
  expected = bm25.top_k(index, queries, 15)
  monkeypatch.setattr(bm25, "_together", lambda: bm25._BATCH)
  hits = bm25.top_k(index, queries, 15)
  np.testing.assert_array_equal(hits.ids_BxK, expected.ids_BxK)
  np.testing.assert_array_equal(hits.scores_BxK, expected.scores_BxK)
  np.testing.assert_array_equal(bm25.rescore(index, queries, expected.ids_BxK), expected.scores_BxK)


def test_ties_go_to_the_earlier_passage(tmp_path, monkeypatch):
  index = build(tmp_path, ["x y"] * 700 + ["x"] + ["x y"] * 700)
  hits = bm25.top_k(index, ["x", "y", "y x"], 20)
  assert hits.ids_BxK[0].tolist() == [700, *range(19)]
  assert hits.ids_BxK[1].tolist() == hits.ids_BxK[2].tolist() == list(range(20))
  monkeypatch.setattr(bm25, "_CHUNK", 1024)  # across chunks too
  many = bm25.top_k(index, ["x"], 1400).ids_BxK[0].tolist()
  assert many == [700, *(n for n in range(1401) if n != 700)][:1400]


def test_order_of_words_does_not_change_a_bit(tmp_path):
  texts = zipf_texts(500, 3, words=50)
  index = build(tmp_path, texts)
  query = " ".join(texts[:5])
  shuffled = " ".join(np.random.default_rng(0).permutation(query.split()))
  assert shuffled != query
  first, second = (bm25.top_k(index, [text], 50) for text in (query, shuffled))
  np.testing.assert_array_equal(first.scores_BxK, second.scores_BxK)


def test_repeated_words_count_again(tmp_path):
  index = build(tmp_path, ["a", "b c", "a b"])
  everything = np.arange(3)[None]
  once, twice = (bm25.rescore(index, [query], everything) for query in ("a b", "a b a"))
  only = bm25.rescore(index, ["a"], everything)
  np.testing.assert_allclose(twice, once + only, rtol=1e-6)
  assert (twice != once).any()


def test_nothing_to_find(tmp_path):
  index = build(tmp_path, ["a", "b"])
  hits = bm25.top_k(index, ["", "zz", "a", "  "], 3)
  assert hits.ids_BxK.tolist() == [[-1] * 3, [-1] * 3, [0, -1, -1], [-1] * 3]
  assert (hits.scores_BxK[[0, 1, 3]] == 0).all()
  assert hits.scores_BxK[2, 0] > 0
  assert bm25.top_k(index, [], 3).ids_BxK.shape == (0, 3)


def test_index_without_terms(tmp_path):
  index = index_lib.build(corpus.passages("the", "of"), tmp_path / "i")
  assert bm25.top_k(index, ["the tin"], 2).ids_BxK.tolist() == [[-1, -1]]
  assert bm25.rescore(index, ["the tin"], np.array([[0, 1]])).tolist() == [[0, 0]]


def test_k_beyond_all_passages(tmp_path):
  index = build(tmp_path, ["a", "b", "a a"])
  hits = bm25.top_k(index, ["a"], 2000)  # beyond the padded number too
  assert hits.ids_BxK.shape == (1, 2000)
  assert sorted(hits.ids_BxK[0, :2].tolist()) == [0, 2]
  assert (hits.ids_BxK[0, 2:] == -1).all()


def test_rescore_gives_the_very_scores_of_top_k(tmp_path):
  index = build(tmp_path, zipf_texts(800, 5))
  queries = zipf_texts(40, 6, longest=80)
  hits = bm25.top_k(index, queries, 30)
  np.testing.assert_array_equal(bm25.rescore(index, queries, hits.ids_BxK), hits.scores_BxK)


def test_rescore_under_another_query_and_missing_passages(tmp_path):
  index = build(tmp_path, ["a", "b", "a b", "c"])
  scores = bm25.rescore(index, ["b", "zz", "c"], np.array([[0, 2, -1], [0, 1, 2], [3, 3, -1]]))
  truth = corpus.bm25(["a", "b", "a b", "c"], ["b", "zz", "c"])
  expected = [[0, truth[0][2], 0], [0, 0, 0], [truth[2][3], truth[2][3], 0]]
  np.testing.assert_allclose(scores, expected, rtol=1e-6)
  assert scores.dtype == np.float32


def test_rescore_of_no_candidates(tmp_path):
  index = build(tmp_path, ["a", "b"])
  assert bm25.rescore(index, ["a"], np.zeros((1, 0), np.int32)).shape == (1, 0)
  assert bm25.rescore(index, [], np.zeros((0, 4), np.int32)).shape == (0, 4)


def test_wrong_arguments(tmp_path):
  index = build(tmp_path, ["a", "b"])
  with pytest.raises(ValueError, match="k has to be at least 1"):
    bm25.top_k(index, ["a"], 0)
  for position in (-2, 2):
    with pytest.raises(ValueError, match=r"outside -1\.\.1"):
      bm25.rescore(index, ["a"], np.array([[position]]))
  with pytest.raises(ValueError, match="2 queries and 1 rows"):
    bm25.rescore(index, ["a", "b"], np.array([[0]]))


def test_at_most_four_programs_for_each_k(tmp_path):
  index = build(tmp_path, zipf_texts(1800, 7))
  before = bm25._top._cache_size(), bm25._at._cache_size()
  for count in (1, 2, 5, 31, 32, 33, 70):
    for longest in (2, 10, 40):
      queries = zipf_texts(count, count, longest=longest)
      hits = bm25.top_k(index, queries, 7)
      bm25.rescore(index, queries, hits.ids_BxK)
  assert bm25._top._cache_size() - before[0] <= 4
  assert bm25._at._cache_size() - before[1] <= 4


def test_real_textbooks_against_exhaustive_search(tmp_path, shared_data):
  from kard_jax.core import files
  from kard_jax.retrieval.passages import Passage

  rows = [row for _, row in files.read_jsonl(shared_data / "corpora/openstax_anatomy.jsonl.gz")]
  items = [Passage(row["_id"], row["title"] or "", row["text"]) for row in rows[:2000]]
  index = index_lib.build(items, tmp_path / "i")
  queries = [row["text"] for row in rows[2000:2040]]
  hits = assert_exact(index, queries, 10)
  truth = corpus.bm25([index_lib.contents(item) for item in items], queries[:5], Analyzer())
  best = -np.sort(-np.array(truth), axis=1)[:, :10]
  np.testing.assert_allclose(hits.scores_BxK[:5], best, rtol=2e-6)
