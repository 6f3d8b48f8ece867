"""Postings on disk: what is written is read again, and Python and C write the same bytes."""

import itertools

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from kard_jax.retrieval import blocks, native, postings
from tests.retrieval import corpus
from tests.retrieval.corpus import WHITE

needs_kernels = pytest.mark.skipif(native.library() is None, reason="there is no C compiler")


def counts(rows, lengths):
  """`Counts` of (term, passage, tf) rows."""
  table = np.array(sorted(rows, key=lambda row: (row[1], row[0])), np.int64).reshape(-1, 3)
  return postings.Counts(
    terms=table[:, 0].astype(np.int32),
    passages=table[:, 1].astype(np.int32),
    tfs=table[:, 2],
    lengths=np.asarray(lengths, np.int32),
  )


@st.composite
def terms(draw):
  """The passages and frequencies of some terms, each by a few numbers and a seed."""
  rng = np.random.default_rng(draw(st.integers(0, 1000)))
  rows = []
  for term in range(draw(st.integers(1, 5))):
    size = draw(st.sampled_from([1, 2, 3, 2047, 2048, 2049, 40_000, 65_536]))
    most = draw(st.sampled_from([1, 2, 255, 256, 100_000]))
    found = rng.permutation(postings.BLOCK)[:size]
    tfs = np.where(rng.random(size) < 0.3, rng.integers(1, most + 1, size), 1)
    tfs[rng.integers(size)] = most
    rows += zip([term] * size, found.tolist(), tfs.tolist(), strict=True)
  return rows


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(terms())
def test_what_is_encoded_is_decoded(rows):
  lengths = np.random.default_rng(len(rows)).integers(1, 100_000, postings.BLOCK)
  wanted = counts(rows, lengths)
  number = max(row[0] for row in rows) + 1
  chunks, data = postings.encode(wanted, number)
  assert len(data) % 8 == 0
  behind = np.concatenate([data, np.full(8, 255, np.uint8)])  # blocks lie one after another
  for term in range(number):
    here = wanted.terms == term
    passages, tfs = postings.decode(chunks[term], behind)
    np.testing.assert_array_equal(passages, wanted.passages[here])
    np.testing.assert_array_equal(tfs, wanted.tfs[here])
    assert chunks["last"][term] == here.sum() - 1
    assert chunks["max_tf"][term] == min(255, tfs.max())
    assert chunks["min_length"][term] == min(65_535, lengths[passages].min())
    assert (chunks["kind"][term] & postings.WIDE > 0) == (tfs.max() > 255)
    assert (chunks["kind"][term] & postings.BITMAP > 0) == (len(tfs) >= 2048)


def test_no_terms():
  chunks, data = postings.encode(counts([], [0, 0]), 0)
  assert len(chunks) == len(data) == 0


def make(texts):
  return blocks.Maker()(texts, blocks.Terms(WHITE))


def both(texts):
  """The block of some texts by the kernels and without them."""
  with pytest.MonkeyPatch.context() as patch:
    one = make(texts)
    corpus.without_kernels(patch)
    other = make(texts)
  return one, other


def terms_of(block):
  ends = block.offsets.tolist()
  data = block.terms.tobytes()
  return [data[start:end] for start, end in itertools.pairwise(ends)]


def assert_equal(one, other):
  assert terms_of(one) == terms_of(other) == sorted(set(terms_of(one)))
  assert one.chunks.tobytes() == other.chunks.tobytes()
  assert one.data.tobytes() == other.data.tobytes()
  np.testing.assert_array_equal(one.lengths, other.lengths)


@needs_kernels
@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(
  st.lists(
    st.lists(st.sampled_from(["a", "b", "é", "\U0001f41f", "\0"]), max_size=9)
    .map(" ".join)
    .map(lambda text: text * (1 + 300 * (len(text) % 5 == 4))),
    max_size=12,
  )
)
def test_the_kernels_write_the_same_bytes(texts):
  assert_equal(*both(texts))


@needs_kernels
@pytest.mark.parametrize("fill", ["\0", "x", "\0x", "\u0149"])
def test_terms_that_begin_alike_are_sorted(fill):
  """Also where they differ only in how often a character follows, be it the zero byte."""
  texts = [f"a{fill * (n * 7 % 90)} b{fill * 40}{n}" for n in range(90)]
  assert_equal(*both(texts))


@needs_kernels
def test_the_kernels_write_the_same_bitmaps():
  texts = [
    f"{text} w0 w{n % 2}{' c' * (n % 3)}"
    for n, text in enumerate(corpus.zipf_texts(6000, 0, longest=9))
  ]
  texts[2500] += " w0" * 255 + " w1" * 70_000 + " rare" * 256
  one, other = both(texts)
  assert set(one.chunks["kind"].tolist()) == {0, 1, 2, 3}
  assert_equal(one, other)


def test_what_a_maker_knows_does_not_reach_the_block():
  texts = corpus.zipf_texts(300, 1)
  shared, one, other = blocks.Terms(WHITE), blocks.Maker(), blocks.Maker()
  for start in range(0, 300, 50):
    part = texts[start : start + 50]
    maker = (one, other)[start // 50 % 2]
    assert_equal(maker(part, shared), make(part))
    assert_equal(maker(part, blocks.Terms(WHITE)), make(part))  # tables begun anew


@pytest.mark.parametrize("kernels", [True, False])
def test_no_more_passages_than_a_block_takes(monkeypatch, kernels):
  if not kernels:
    corpus.without_kernels(monkeypatch)
  maker, terms = blocks.Maker(), blocks.Terms(WHITE)
  assert len(maker(["a"] * postings.BLOCK, terms).lengths) == postings.BLOCK
  with pytest.raises(ValueError, match="at most 65536 passages"):
    maker(["a"] * (postings.BLOCK + 1), terms)
  assert terms_of(maker(["b"], terms)) == [b"b"]  # it can go on


@pytest.mark.parametrize("kernels", [True, False])
def test_passages_without_terms(monkeypatch, kernels):
  if not kernels:
    corpus.without_kernels(monkeypatch)
  block = make(["", " ", "a a b"])
  assert (terms_of(block), block.lengths.tolist()) == ([b"a", b"b"], [0, 0, 3])
  assert terms_of(make([])) == []
