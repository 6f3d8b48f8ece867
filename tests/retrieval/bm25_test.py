"""Rankings against an exhaustive float64 computation; the ways to search, to the last bit."""

import os
import subprocess
import sys

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from kard_jax.retrieval import blocks, bm25, postings, search_cpu
from kard_jax.retrieval import index as index_lib
from kard_jax.retrieval.analyzer import Analyzer
from tests.retrieval import corpus
from tests.retrieval.corpus import WHITE, Truth, assert_exact, assert_same

QUICK = hypothesis.settings(
  deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)


def build(path, texts, **settings):
  return index_lib.build(corpus.passages(*texts), path / "i", analyzer=WHITE, **settings)


def mesh(devices):
  return jax.make_mesh((devices,), ("x",), devices=jax.devices()[:devices])


@st.composite
def corpora(draw):
  """Texts and queries: small, of few or many words, some repeated, some empty, some very long."""
  letters = st.lists(st.sampled_from("abcdefg"), max_size=8).map(" ".join)
  texts = draw(st.lists(letters, min_size=1, max_size=12))
  queries = draw(
    st.lists(st.lists(st.sampled_from("abcdefgxyz"), max_size=9).map(" ".join), max_size=4)
  )
  if draw(st.booleans()):
    texts += draw(st.lists(st.sampled_from(texts), max_size=20))
  if draw(st.booleans()):  # term frequencies about and above what one byte holds
    often = st.builds(lambda word, tf: f"{word} " * tf, st.sampled_from("ab"), st.integers(14, 700))
    texts += draw(st.lists(often, max_size=4))
  if draw(st.booleans()):  # many words, and a query of most of them
    texts += corpus.zipf_texts(draw(st.integers(1, 30)), draw(st.integers(0, 99)), 90, 900, 1.05)
    queries.append(" ".join(texts[-12:]))
  return draw(st.permutations(texts)), queries


@hypothesis.settings(QUICK, max_examples=60)
@hypothesis.given(
  corpora(),
  st.sampled_from([1, 2, 5, 70]),
  st.sampled_from(["lucene", "exact"]),
  st.sampled_from([(0.9, 0.4), (1.2, 0.75), (0.0, 0.0), (2.0, 1.0), (500.0, 0.5)]),
)
def test_equals_exhaustive_search(tmp_path, given, k, lengths, parameters):
  (texts, queries), (k1, b) = given, parameters
  index = build(tmp_path, texts, lengths=lengths, k1=k1, b=b)
  truth = Truth(texts, k1=k1, b=b, lengths=lengths)
  hits = bm25.top_k(index, queries, k)
  assert_exact(truth, queries, k, hits)
  everything = np.tile(np.arange(len(texts)), (len(queries), 1))
  rescored = bm25.rescore(index, queries, everything)
  for query, row in zip(queries, rescored, strict=True):
    expected, error = truth.scores(query)
    np.testing.assert_allclose(row, expected, rtol=2e-7, atol=error)
    assert ((row > 0) == (expected > 0)).all()


def big_texts():
  """8,000 passages with many words in most of them, and with what is rare otherwise."""
  rng = np.random.default_rng(0)
  often = rng.random((8000, 32)) < np.linspace(0.3, 0.98, 32)
  texts = []
  for number, rest in enumerate(corpus.zipf_texts(8000, 1, longest=8, words=4000)):
    common = [f"c{word}" for word in np.flatnonzero(often[number])]
    texts.append(" ".join([rest, *common, *common[number % 7 :: 5] * 2]))
  texts[123] += " c27" * 300 + " w2500" * 400  # a wide bitmap, and a wide list
  texts[4567] += " c27" * 256 + " c31" * 70_000  # and more than two bytes hold
  texts[6000:6003] = texts[5], texts[5], ""
  return texts


@pytest.fixture(scope="module")
def big(tmp_path_factory):
  """An index of several blocks with bitmaps, its texts and queries that reach all of it."""
  texts = big_texts()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(blocks, "CHARACTERS", sum(map(len, texts)) * 2 // 5)
    index = build(tmp_path_factory.mktemp("big"), texts)
  truth = Truth(texts)
  many = " ".join(f"c{n}" for n in range(32))
  queries = [
    *corpus.zipf_texts(40, 2, longest=80, words=4000),
    many,  # bitmaps alone, in two groups of shares
    f"{many} w1 w2 w3 w77 w2500 w3999 {many}",
    "c3",
    "c3 w2500",
    "c31 c30 c9",
    " ".join(f"w{n}" for n in range(600)),
    texts[123],
    "",
    "unknown",
  ]
  queries += [f"{query} c{number} c3 c{number + 9}" for number, query in enumerate(queries[:20])]
  return index, truth, queries


def test_the_big_index_has_what_it_is_there_for(big):
  index, *_ = big
  (segment,) = index.segments
  bitmaps = segment.chunks["block"][segment.chunks["kind"] & postings.BITMAP > 0]
  assert np.bincount(bitmaps).tolist() > [16, 16]  # in two blocks, too many for one group of shares
  assert len(segment.block_data) - 1 == 3
  assert set(segment.chunks["kind"].tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("k", [1, 10, 1000])
def test_bitmaps_and_several_blocks(big, k):
  index, truth, queries = big
  assert_exact(truth, queries, k, bm25.top_k(index, queries, k))


@pytest.mark.parametrize("k", [1, 100, 2400])
def test_hundreds_of_words_of_most_passages(tmp_path, k):
  """More bitmaps than a search bounds at once: the rest are added in full."""
  rng = np.random.default_rng(6)
  rows = rng.random((2500, 300)) < np.linspace(0.86, 0.99, 300)
  words = np.array([f"c{word}" for word in range(300)])
  texts = [
    " ".join([*words[row], *words[row][:: 2 + number % 5]]) for number, row in enumerate(rows)
  ]
  texts[99] += " rare rare c7" + " c8" * 300
  index = build(tmp_path, texts)
  assert (index.segments[0].chunks["kind"] & postings.BITMAP > 0).sum() == 300
  everything = " ".join(words)
  queries = [everything, f"{everything} rare", " ".join(words[40:140]), " ".join(words[:70])]
  queries.append(f"{queries[2]} rare c8 c8")
  assert_exact(Truth(texts), queries, k, bm25.top_k(index, queries, k))


def test_more_passages_than_a_block_holds(tmp_path):
  rng = np.random.default_rng(3)
  drawn = rng.zipf(1.3, (66_000, 3)) % 3000
  texts = [f"w{a} w{b} w{c}" for a, b, c in drawn]
  index = build(tmp_path, texts)
  assert index.segments[0].block_passages.tolist() == [0, 65_536, 66_000]
  queries = ["w1", "w1 w2 w3 w4 w5 w6 w7", "w2999 w1", *texts[65_534:65_540]]
  assert_exact(Truth(texts), queries, 1000, bm25.top_k(index, queries, 1000))


@pytest.mark.parametrize("more", [18, 23, 26])
def test_equal_scores_of_unequal_bounds(tmp_path, monkeypatch, more):
  """Two words as rare as each other, of which the bound of one is rounded up more than the other's.

  In the second block "u" is a bitmap and "v" a list. So passages that have "u" are looked up first,
  and those before them, of the same score, have to replace them.
  """
  texts = [" ".join(["v" if n < 3000 else "u", *(f"f{n % 7}{m}" for m in range(60))])
           for n in range(3100)]  # fmt: skip
  texts += [("v" if n < 100 else "u") + " end" * more for n in range(3100)]
  texts[0] += " x" * 3000
  monkeypatch.setattr(blocks, "CHARACTERS", sum(map(len, texts[:3100])))
  index = build(tmp_path, texts)
  assert index.segments[0].block_passages.tolist() == [0, 3100, 6200]
  for k in (1, 20, 150):
    hits = bm25.top_k(index, ["u v"], k)
    assert hits.ids_BxK[0].tolist() == list(range(3100, 3100 + k))
    assert len(set(hits.scores_BxK[0].tolist())) == 1


@pytest.mark.parametrize(("odd", "coded"), [(0, "all"), (120, "most"), (1500, "none")])
def test_more_pairs_of_length_and_frequency_than_codes(tmp_path, odd, coded):
  """Postings whose pair has no code are added apart, in a search and in a rescore."""
  rng = np.random.default_rng(8)
  lengths = [*rng.integers(10, 20, 3000), *rng.integers(20, 600, odd)]
  texts = [" ".join(f"w{word}" for word in rng.zipf(1.4, length) % 200) for length in lengths]
  index = build(tmp_path, texts, lengths="exact")
  truth = Truth(texts, lengths="exact")
  queries = ["w1 w2 w3 w4", "w7 w150", " ".join(f"w{n}" for n in range(60))]
  assert_exact(truth, queries, 100, bm25.top_k(index, queries, 100))
  if search_cpu.available():
    searcher = search_cpu.searcher(index)
    without = (searcher._keep[0][4]["kind"] & 4 > 0).any()
    found = {(False, False): "none", (True, True): "most", (True, False): "all"}
    assert found[bool(searcher._segments[0].coded), bool(without)] == coded
  everything = np.tile(np.arange(len(texts)), (len(queries), 1))
  rescored = bm25.rescore(index, queries, everything)
  for query, row in zip(queries, rescored, strict=True):
    expected, error = truth.scores(query)
    np.testing.assert_allclose(row, expected, rtol=2e-7, atol=error)
  on_device = bm25.top_k(index, queries, 100, mesh=mesh(1))  # expanded from coded lists
  assert_same(on_device, bm25.top_k(index, queries, 100))


def rescored_everywhere(index, queries, **options):
  wanted = np.random.default_rng(4).integers(-1, len(index), (len(queries), 60))
  return bm25.rescore(index, queries, wanted, **options)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_threads_do_not_change_a_bit(big, threads):
  index, _, queries = big
  expected = bm25.top_k(index, queries, 100)
  assert_same(bm25.top_k(index, queries, 100, threads=threads), expected)
  scores = rescored_everywhere(index, queries)
  np.testing.assert_array_equal(rescored_everywhere(index, queries, threads=threads), scores)


def test_how_a_batch_is_cut_does_not_change_a_bit(big, monkeypatch):
  index, _, queries = big
  fresh = index_lib.open(index.directory)  # it knows no word yet
  expected = bm25.top_k(index, queries, 50)
  for order in (range(len(queries)), range(len(queries) - 1, -1, -1)):
    for row in order:
      one = bm25.top_k(fresh, [queries[row]], 50)
      assert_same(one, bm25.Hits(*(array[row : row + 1] for array in expected)))
  scores = rescored_everywhere(index, queries)
  monkeypatch.setattr(bm25, "_BATCH", 7)
  monkeypatch.setattr(search_cpu, "_STRIP", 3)
  assert_same(bm25.top_k(index, queries, 50), expected)
  np.testing.assert_array_equal(rescored_everywhere(index, queries), scores)


@pytest.mark.skipif(not search_cpu.available(), reason="there is no C compiler")
@pytest.mark.parametrize("few", [1, 1000])
def test_an_index_that_is_not_copied_to_memory(big, monkeypatch, few):
  """Read block by block, or mapped: term frequencies and lengths instead of codes."""
  index, _, queries = big
  expected = bm25.top_k(index, queries, 100)
  monkeypatch.setattr(search_cpu, "_RESIDENT", -1)
  monkeypatch.setattr(search_cpu, "_FEW", few)
  fresh = index_lib.open(index.directory)
  assert_same(bm25.top_k(fresh, queries, 100), expected)
  assert not any(struct.coded for struct in search_cpu.searcher(fresh)._segments)


@pytest.mark.parametrize("devices", [1, 8])
def test_devices_give_the_bits_of_the_kernels(big, devices):
  index, _, queries = big
  queries = queries[20:]
  expected = bm25.top_k(index, queries, 100)
  assert_same(bm25.top_k(index, queries, 100, mesh=mesh(devices)), expected)


def test_without_a_compiler_the_bits_are_the_same(big, tmp_path):
  index, _, queries = big
  (tmp_path / "queries").write_text("\n".join(queries))
  code = (
    "import sys, numpy as np; from kard_jax.retrieval import bm25, index, search_cpu;"
    "from tests.retrieval.bm25_test import rescored_everywhere;"
    "assert not search_cpu.available();"
    "found = index.open(sys.argv[1]); queries = open(sys.argv[2]).read().split('\\n');"
    "hits = bm25.top_k(found, queries, 100);"
    "np.savez(sys.argv[3], *hits, rescored_everywhere(found, queries))"
  )
  places = [index.directory, str(tmp_path / "queries"), str(tmp_path / "out.npz")]
  environment = {**os.environ, "KARD_JAX_NATIVE": "0", "JAX_PLATFORMS": "cpu"}
  subprocess.run([sys.executable, "-c", code, *places], check=True, env=environment)
  found = np.load(tmp_path / "out.npz")
  assert_same(bm25.Hits(found["arr_0"], found["arr_1"]), bm25.top_k(index, queries, 100))
  np.testing.assert_array_equal(found["arr_2"], rescored_everywhere(index, queries))


@pytest.mark.parametrize("devices", [None, 8])
def test_rescore_gives_the_very_scores_of_top_k(big, devices):
  index, _, queries = big
  hits = bm25.top_k(index, queries, 100, mesh=devices and mesh(devices))
  np.testing.assert_array_equal(bm25.rescore(index, queries, hits.ids_BxK), hits.scores_BxK)


def test_rescore_takes_positions_in_any_order_and_again(big):
  index, _, queries = big
  ids = np.random.default_rng(5).integers(-1, len(index), (len(queries), 30))
  expected = bm25.rescore(index, queries, ids)
  mixed = np.concatenate([ids[:, ::-1], ids], 1)
  np.testing.assert_array_equal(
    bm25.rescore(index, queries, mixed), np.concatenate([expected[:, ::-1], expected], 1)
  )


@pytest.mark.parametrize("devices", [None, 1, 8])
def test_ties_go_to_the_earlier_passage(tmp_path, devices):
  index = build(tmp_path, ["x y"] * 700 + ["x"] + ["x y"] * 700)
  on = devices and mesh(devices)
  hits = bm25.top_k(index, ["x", "y", "y x"], 20, mesh=on)
  assert hits.ids_BxK[0].tolist() == [700, *range(19)]
  assert hits.ids_BxK[1].tolist() == hits.ids_BxK[2].tolist() == list(range(20))
  many = bm25.top_k(index, ["x"], 1400, mesh=on).ids_BxK[0].tolist()
  assert many == [700, *(n for n in range(1401) if n != 700)][:1400]


def test_order_of_words_does_not_change_a_bit(big):
  index, _, queries = big
  query = queries[3]
  shuffled = " ".join(np.random.default_rng(0).permutation(query.split()))
  assert shuffled != query
  assert_same(bm25.top_k(index, [query], 50), bm25.top_k(index, [shuffled], 50))


def test_repeated_words_count_again(tmp_path):
  index = build(tmp_path, ["a", "b c", "a b"])
  everything = np.arange(3)[None]
  once, twice = (bm25.rescore(index, [query], everything) for query in ("a b", "a b a"))
  only = bm25.rescore(index, ["a"], everything)
  np.testing.assert_allclose(twice, once + only, rtol=1e-6)
  assert (twice != once).any()


@pytest.mark.parametrize("devices", [None, 2])
def test_nothing_to_find(tmp_path, devices):
  index = build(tmp_path, ["a", "b"])
  on = devices and mesh(devices)
  hits = bm25.top_k(index, ["", "zz", "a", "  "], 3, mesh=on)
  assert hits.ids_BxK.tolist() == [[-1] * 3, [-1] * 3, [0, -1, -1], [-1] * 3]
  assert (hits.scores_BxK[[0, 1, 3]] == 0).all()
  assert hits.scores_BxK[2, 0] > 0
  assert bm25.top_k(index, [], 3, mesh=on).ids_BxK.shape == (0, 3)


@pytest.mark.parametrize("devices", [None, 1, 8])
def test_index_without_terms(tmp_path, devices):
  index = index_lib.build(corpus.passages("the", "of"), tmp_path / "i")
  hits = bm25.top_k(index, ["the tin", ""], 2, mesh=devices and mesh(devices))
  assert hits.ids_BxK.tolist() == [[-1, -1]] * 2
  assert bm25.rescore(index, ["the tin"], np.array([[0, 1]])).tolist() == [[0, 0]]


@pytest.mark.parametrize("devices", [None, 1, 8])
def test_k_beyond_all_passages(tmp_path, devices):
  index = build(tmp_path, ["a", "b", "a a"])
  hits = bm25.top_k(index, ["a"], 2000, mesh=devices and mesh(devices))
  assert hits.ids_BxK.shape == (1, 2000)
  assert sorted(hits.ids_BxK[0, :2].tolist()) == [0, 2]
  assert (hits.ids_BxK[0, 2:] == -1).all()


def test_rescore_under_another_query_and_missing_passages(tmp_path):
  texts = ["a", "b", "a b", "c"]
  index = build(tmp_path, texts)
  scores = bm25.rescore(index, ["b", "zz", "c"], np.array([[0, 2, -1], [0, 1, 2], [3, 3, -1]]))
  b, c = (Truth(texts).scores(query)[0] for query in "bc")
  np.testing.assert_allclose(scores, [[0, b[2], 0], [0, 0, 0], [c[3], c[3], 0]], rtol=1e-6)
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
  for search in (
    lambda: bm25.top_k(index, ["a"], 1, threads=0),
    lambda: bm25.rescore(index, ["a"], np.array([[0]]), threads=0),
  ):
    with pytest.raises(ValueError, match="threads has to be at least 1"):
      search()


def test_real_textbooks_against_exhaustive_search(tmp_path, shared_data):
  from kard_jax.core import files
  from kard_jax.retrieval.builder import contents
  from kard_jax.retrieval.passages import Passage

  rows = [row for _, row in files.read_jsonl(shared_data / "corpora/openstax_anatomy.jsonl.gz")]
  items = [Passage(row["_id"], row["title"] or "", row["text"]) for row in rows[:2000]]
  index = index_lib.build(items, tmp_path / "i")
  queries = [row["text"] for row in rows[2000:2040]]
  truth = Truth([contents(item) for item in items], Analyzer())
  assert_exact(truth, queries, 100, bm25.top_k(index, queries, 100))
