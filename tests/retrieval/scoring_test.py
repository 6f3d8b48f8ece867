"""Lengths in a byte, terms as whole numbers, and what queries become before a search."""

import pathlib

import numpy as np
import pytest

from kard_jax.core.files import InputError
from kard_jax.retrieval import bm25, postings, queries, scoring
from kard_jax.retrieval import index as index_lib
from kard_jax.retrieval.analyzer import Analyzer
from kard_jax.retrieval.segment import Segment
from tests.retrieval import corpus
from tests.retrieval.corpus import WHITE


def segment(lengths):
  """A segment of passages of these lengths, and nothing else in it."""
  lengths = np.array(lengths, np.int32)
  made = object.__new__(Segment)
  for name, value in {
    "lengths": lengths,
    "header": {"with_terms": np.count_nonzero(lengths), "total_length": int(lengths.sum())},
    "folder": pathlib.Path("here/segment-00000"),
  }.items():
    object.__setattr__(made, name, value)
  return made


def test_lucene_lengths():
  decoded = scoring.lucene_lengths()
  assert len(decoded) == 256
  lengths = np.concatenate([np.arange(5000), 2 ** np.arange(12, 31), 2 ** np.arange(12, 31) - 1])
  rounded = [corpus.rounded_length(int(length)) for length in lengths]
  np.testing.assert_array_equal(
    decoded[np.searchsorted(decoded, lengths, side="right") - 1], rounded
  )


@pytest.mark.parametrize("lengths", scoring.LENGTHS)
def test_each_passage_has_its_length(lengths):
  sizes = [0, 1, 39, 40, 41, 1000, 70_000, 2_000_000]
  made = scoring.make([segment(sizes[:3]), segment(sizes[3:])], k1=1.0, b=1.0, lengths=lengths)
  assert (made.passages, made.mean) == (7, float(np.float32(sum(sizes) / 7)))
  classes = np.concatenate([made.classes[0][:3], made.classes[1][:5]])
  kept = sizes if lengths == "exact" else [corpus.rounded_length(size) for size in sizes]
  np.testing.assert_allclose(made.held_back[classes], np.array(kept) / made.mean)
  assert all(len(part) >= postings.BLOCK for part in made.classes)  # kernels look ahead
  # Bounds on scores rest on this: never longer than the length, and as long as it can be.
  np.testing.assert_array_less(
    made.held_back[made.class_of_length] * made.mean, np.arange(1 << 16) + 1e-6
  )
  assert made.class_of_length[39] == made.classes[0][2]


def test_too_many_lengths():
  parts = [segment(np.arange(40_000)), segment(np.arange(40_000) + 30_000)]
  with pytest.raises(InputError, match=r"65,536 different lengths.*lengths='lucene'"):
    scoring.make(parts, k1=0.9, b=0.4, lengths="exact")
  scoring.make(parts, k1=0.9, b=0.4, lengths="lucene")


@pytest.mark.parametrize("k1", [0.0, 0.9, 1000.0])
def test_parts(k1):
  made = scoring.make([segment([0, 3, 50])], k1=k1, b=0.4, lengths="exact")
  tfs, classes = np.arange(1, 16)[:, None], np.arange(3)[None]
  exact = tfs / (tfs + made.held_back[classes])
  np.testing.assert_array_equal(made.parts[1:], made.part(tfs, classes))
  np.testing.assert_allclose(made.parts[1:] / 2.0**32, exact, atol=2.0**-32, rtol=0.0)
  assert (made.parts[0] == 0).all()


def weights(idf, counts, ends):
  made = scoring.make([segment([5] * 10)], k1=0.9, b=0.4, lengths="lucene")
  return made.weights(np.array(idf), np.array(counts), np.array(ends))


def test_weights_fill_their_room():
  rng = np.random.default_rng(0)
  sizes = rng.integers(1, 300, 50)
  idf, counts = rng.random(sizes.sum()) * 18 + 1e-3, rng.integers(1, 5, sizes.sum())
  ends = np.cumsum(sizes)
  found, units = weights(idf, counts, ends)
  sums = np.add.reduceat(found.astype(np.int64), np.append(0, ends[:-1]))
  assert (sums < 2**scoring.SCALE_BITS + 300).all()
  assert (sums > 2 ** (scoring.SCALE_BITS - 1) - 300).all()
  unit = np.repeat(units, sizes)
  np.testing.assert_allclose(found * unit, idf * counts, atol=float(unit.max()) / 2, rtol=0.0)
  assert (np.log2(units) % 1 == 0).all()


def test_a_query_has_the_same_weights_whatever_stands_beside_it():
  rare, idf = 2.0**-24 * (1 - 2.0**-20), np.full(4000 * 300, 9.7)
  counts = np.ones(len(idf) + 1, np.int64)
  alone, unit = weights([rare], [1], [1])
  ends = np.append(np.arange(1, 4001) * 300, len(idf) + 1)
  found, units = weights(np.append(idf, rare), counts, ends)
  assert (found[-1], units[-1]) == (alone[0], unit[0])


def test_a_query_has_the_same_unit_in_any_order_of_terms():
  rng = np.random.default_rng(1)
  for _ in range(50):  # sums that are a power of two but for rounding
    idf = rng.random(40)
    idf *= 64 / idf.sum()
    units = {float(weights(rng.permutation(idf), [1] * 40, [40])[1][0]) for _ in range(20)}
    assert len(units) == 1


def test_a_term_of_all_passages_still_counts(tmp_path):
  rare = " ".join(f"y{n}" for n in range(300))
  texts = ["x"] * 3000 + ["x" + " z" * 5000, rare]
  index = index_lib.build(corpus.passages(*texts), tmp_path / "i", analyzer=WHITE)
  hits = bm25.top_k(index, [f"x {rare}"], 4000)
  assert (hits.ids_BxK >= 0).sum() == 3002
  assert (hits.scores_BxK[hits.ids_BxK >= 0] > 0).all()


def test_queries_become_known_terms_with_counts(tmp_path):
  index = index_lib.build(corpus.passages("b a b", "c"), tmp_path / "i", analyzer=WHITE)
  index_lib.add(tmp_path / "i", corpus.passages("c d"))
  index = index_lib.open(tmp_path / "i")
  found = index.encoder(["c b zz c", "", "zz", "d c"])
  assert found.ends.tolist() == [2, 2, 2, 4]
  ids = {"b": (1, -1), "c": (2, 0), "d": (-1, 1)}
  terms = {value: key for key, value in ids.items()}
  rows = [
    (terms[tuple(found.ids[:, at].tolist())], int(found.counts[at]), int(found.frequency[at]))
    for at in range(4)
  ]
  assert sorted(rows[:2]) == [("b", 1, 1), ("c", 2, 2)]
  assert sorted(rows[2:]) == [("c", 1, 2), ("d", 1, 1)]


def test_an_encoder_that_forgets_gives_the_same(tmp_path, monkeypatch):
  texts = corpus.zipf_texts(200, 0)
  index = index_lib.build(corpus.passages(*texts), tmp_path / "i", analyzer=WHITE)
  fresh = index_lib.open(tmp_path / "i")
  monkeypatch.setattr(queries, "_MOST_WORDS", 5)
  for text in texts[:40]:
    corpus.assert_same(bm25.top_k(index, [text], 9), bm25.top_k(fresh, [text], 9))
  assert len(fresh.encoder._words) < 40


@pytest.mark.parametrize("text", ["\ud800", "?\udfff?", "\0", "\U0010ffff"])
@pytest.mark.parametrize("analyzer", [WHITE, Analyzer()], ids=lambda analyzer: analyzer.kind)
def test_odd_characters_in_queries(tmp_path, text, analyzer):
  index = index_lib.build(corpus.passages("a", "?", "b"), tmp_path / "i", analyzer=analyzer)
  assert bm25.top_k(index, [text, f"{text} b"], 1).ids_BxK.tolist() == [[-1], [2]]
