"""Search on a mesh: the arithmetic, how many programs are compiled, and what may vary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kard_jax.core.files import InputError
from kard_jax.retrieval import bm25, search_cpu, search_xla
from kard_jax.retrieval import index as index_lib
from tests.retrieval import corpus
from tests.retrieval.corpus import WHITE


def build(path, texts):
  return index_lib.build(corpus.passages(*texts), path / "i", analyzer=WHITE)


def mesh(*shape):
  count = int(np.prod(shape))
  return jax.make_mesh(shape, tuple("xyz"[: len(shape)]), devices=jax.devices()[:count])


def test_products_without_64_bits():
  rng = np.random.default_rng(0)
  edges = [0, 1, 2, 3, 0xFFFF, 0x10000, 2**30, 2**31 - 1]
  weights = np.array([*edges, *rng.integers(0, 2**31, 20_000)], np.uint32)
  parts = np.array([2**32 - 1] * len(edges) + [*rng.integers(0, 2**32, 20_000)], np.uint32)
  exact = weights.astype(object) * parts.astype(object) + 2**31 >> 32
  found = np.asarray(search_xla._product(jnp.asarray(weights), jnp.asarray(parts)))
  np.testing.assert_array_equal(found, exact.astype(np.int64))


def test_few_programs_for_many_batches(tmp_path):
  index = build(tmp_path, corpus.zipf_texts(700, 7))
  before = search_xla._add._cache_size(), search_xla._select._cache_size()
  for count in (1, 2, 5, 31, 32, 33, 70):
    for longest in (2, 10, 200):
      bm25.top_k(index, corpus.zipf_texts(count, count, longest=longest), 7, mesh=mesh(2))
  assert search_xla._add._cache_size() - before[0] == 1
  assert search_xla._select._cache_size() - before[1] == 1


def test_how_work_is_cut_does_not_change_a_bit(tmp_path, monkeypatch):
  index = build(tmp_path, corpus.zipf_texts(900, 1))
  queries = [*corpus.zipf_texts(37, 2, longest=80), "", "unknown"]
  expected = bm25.top_k(index, queries, 15)
  for name, value in {"_PIECE": 16, "_PIECES": 64, "_BATCH": 5, "_TERMS": 100}.items():
    assert getattr(search_xla, name) > value
    monkeypatch.setattr(search_xla, name, value)
  jax.clear_caches()  # constants of programs changed
  corpus.assert_same(bm25.top_k(index, queries, 15, mesh=mesh(3)), expected)
  jax.clear_caches()


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 2), (8,)])
def test_any_mesh_and_several_segments(tmp_path, shape):
  texts = corpus.zipf_texts(301, 3, words=300)
  build(tmp_path, texts[:100])
  index_lib.add(tmp_path / "i", corpus.passages(*texts[100:103]))
  index = index_lib.add(tmp_path / "i", corpus.passages(*texts[103:]))
  queries = corpus.zipf_texts(20, 4, words=300)
  expected = bm25.top_k(index, queries, 200)
  corpus.assert_same(bm25.top_k(index, queries, 200, mesh=mesh(*shape)), expected)
  corpus.assert_exact(corpus.Truth(texts), queries, 200, expected)


def test_fewer_passages_than_devices(tmp_path):
  index = build(tmp_path, ["a", "b a", "a a"])
  hits = bm25.top_k(index, ["a", "b"], 3, mesh=mesh(8))
  corpus.assert_same(hits, bm25.top_k(index, ["a", "b"], 3))


def test_postings_for_devices_are_the_same_without_kernels(tmp_path, monkeypatch):
  texts = corpus.zipf_texts(4000, 5, longest=9, words=60)
  texts[7] += " w1" * 300
  index = build(tmp_path, texts)
  last = len(index.segments[0].terms)
  spans = [(0, last, 0, 4000), (3, 9, 100, 3000), (2, 2, 0, 4000), (0, last, 5000, 6000)]
  expected = [search_cpu.expand(index, 0, *span) for span in spans]
  assert len(expected[0][0]) == index.postings
  corpus.without_kernels(monkeypatch)
  for span, wanted in zip(spans, expected, strict=True):
    for found, array in zip(search_cpu.expand(index, 0, *span), wanted, strict=True):
      np.testing.assert_array_equal(found, array)


def test_too_many_postings_for_a_device(tmp_path, monkeypatch):
  index = build(tmp_path, ["a b", "c"])
  monkeypatch.setattr(search_xla, "_PIECE", 1 << 31)
  with pytest.raises(InputError, match="postings on one device are too many"):
    bm25.top_k(index, ["a"], 1, mesh=mesh(2))
