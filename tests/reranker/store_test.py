"""Stored passage vectors: the same scores, whole on disk or not at all, told when not fitting."""

import json

import jax
import numpy as np
import pytest

from kard_jax.core.files import InputError
from kard_jax.core.partitioning import Partitioner
from kard_jax.reranker import score, store
from tests import meshes
from tests.reranker import score_test

NET = score_test.LATE


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """Passages of 0 to 32 tokens, questions, lists of positions, and a store for each dtype."""
  rng = np.random.default_rng(0)
  passages = [rng.integers(1, 64, n) for n in (0, 1, 16, 17, 32, *rng.integers(2, 33, 25))]
  queries = [rng.integers(1, 64, n) for n in (5, 16, 17, 0)]
  lists = [rng.integers(0, 30, n) for n in (9, 0, 21, 2)]
  folder = tmp_path_factory.mktemp("store")
  params = score_test.params_of(NET)
  for dtype in store.DTYPES:
    count = store.write(
      folder / dtype, NET, params, iter(passages), dtype=dtype, corpus="c", tokens_per_call=256
    )
    assert count == 30
  return folder, params, passages, queries, lists


@pytest.mark.parametrize(
  ("dtype", "atol"), [("float32", 1e-5), ("float16", 5e-3), ("bfloat16", 0.05)]
)
def test_scores_are_those_of_passages_encoded_anew(made, dtype, atol):
  folder, params, passages, queries, lists = made
  opened = store.Store(folder / dtype, verify=True)
  opened.check(params, "c")
  assert opened.vectors.dtype == store.DTYPES[dtype]
  scores = opened.rerank_scores(NET, params, queries, lists)
  want = score_test.run(NET, params, queries, [[passages[i] for i in some] for some in lists])
  for mine, exact in zip(scores, want, strict=True):
    assert mine.dtype == np.float32
    np.testing.assert_allclose(mine, exact, atol=atol, rtol=1e-5)
  difference = np.abs(np.concatenate(scores) - np.concatenate(want)).max()
  assert (difference > 1e-5) == (dtype != "float32")
  assert np.std(np.concatenate(want)) > 0.1


def test_a_mesh_gives_the_same_scores(made):
  folder, params, _, queries, lists = made
  opened, done = store.Store(folder / "float32"), []
  want = opened.rerank_scores(NET, params, queries, lists)
  partitioner = Partitioner(meshes.AXES, meshes.RULES)
  with partitioner.active():
    boxed = jax.eval_shape(
      NET.init, jax.random.key(0), np.ones((1, 2), np.int32), np.ones((1, 1, 2), np.int32)
    )["params"]
  split = jax.device_put(params, partitioner.shardings(boxed))
  scores = opened.rerank_scores(
    NET, split, queries, lists, partitioner=partitioner, progress=done.append
  )
  for mine, one in zip(scores, want, strict=True):
    np.testing.assert_allclose(mine, one, rtol=1e-5, atol=1e-5)
  assert done == [len(some) for some in lists]


def test_questions_are_encoded_together_each_once(made, monkeypatch):
  folder, params, passages, *_ = made
  rng = np.random.default_rng(1)
  distinct = [rng.integers(1, 64, n) for n in (17, 3, 30, 5, 16, 20, 4)]  # two lengths, mixed
  queries = [distinct[i] for i in (0, 1, 2, 1, 3, 4, 5, 6, 0)]
  lists = [rng.integers(0, 30, n) for n in (3, 2, 5, 4, 0, 1, 7, 3, 2)]  # one asks for nothing
  calls = []

  def spy(net, params, tokens_NxM, method):
    calls.append((method, np.asarray(tokens_NxM)))
    return encode_rows(net, params, tokens_NxM, method)

  encode_rows = score._encode_rows
  opened = store.Store(folder / "float32")
  monkeypatch.setattr(score, "_encode_rows", spy)
  scores = opened.rerank_scores(NET, params, queries, lists)
  assert [(method, rows.shape) for method, rows in calls] == [
    ("encode_query", (4, 16)),  # of 3, 16 and 4 tokens, and a row of padding
    ("encode_query", (4, 32)),  # of 17, 30 and 20
  ]
  monkeypatch.setattr(score, "_encode_rows", encode_rows)
  want = score_test.run(NET, params, queries, [[passages[i] for i in some] for some in lists])
  for mine, exact in zip(scores, want, strict=True):
    np.testing.assert_allclose(mine, exact, atol=1e-5, rtol=1e-5)
  calls.clear()
  monkeypatch.setattr(score, "_encode_rows", spy)
  opened.rerank_scores(NET, params, queries[:1], lists[:1])
  assert [rows.shape for _, rows in calls] == [(1, 32)]  # alone it waits for no padding


def test_many_questions_are_encoded_some_at_a_time(made, monkeypatch):
  folder, params, _, queries, lists = made
  opened = store.Store(folder / "float32")
  want = opened.rerank_scores(NET, params, queries, lists)
  monkeypatch.setattr(store, "_QUESTIONS", 2)
  for mine, exact in zip(opened.rerank_scores(NET, params, queries, lists), want, strict=True):
    np.testing.assert_allclose(mine, exact, atol=1e-6)


def test_vectors_lie_one_after_another(made):
  folder, params, passages, *_ = made
  opened = store.Store(folder / "float32")
  assert len(opened) == 30
  np.testing.assert_array_equal(np.diff(opened.offsets), [len(tokens) for tokens in passages])
  one = NET.apply(
    {"params": params}, jax.numpy.asarray(passages[4][None]), method="encode_passages"
  )
  stored = opened.vectors[opened.offsets[4] : opened.offsets[5]]
  np.testing.assert_allclose(stored, one.vectors[0], atol=1e-5)


def test_other_parameters_and_passages_are_told(made):
  folder, params, *_ = made
  opened = store.Store(folder / "float16")
  other = jax.tree.map(lambda leaf: leaf + 1, params)
  with pytest.raises(InputError, match="another reranker's parameters"):
    opened.check(other, "c")
  with pytest.raises(InputError, match="vectors of other passages"):
    opened.check(params, "d")
  assert opened.fits(params, "c")
  assert not opened.fits(other, "c")
  assert not opened.fits(params, "d")


def test_damage_is_told(made, tmp_path):
  _, params, passages, *_ = made
  folder = tmp_path / "store"
  with pytest.raises(InputError, match=r"header.json: no such file"):
    store.Store(folder)
  store.write(folder, NET, params, passages)
  vectors = folder / "vectors.bin"
  data = vectors.read_bytes()
  vectors.write_bytes(data[:-1])
  with pytest.raises(InputError, match=r"vectors.bin: is not whole"):
    store.Store(folder)
  vectors.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
  store.Store(folder)  # not seen at once
  with pytest.raises(InputError, match=r"vectors.bin: is missing or has changed"):
    store.Store(folder, verify=True)
  header = folder / "header.json"
  header.write_text(json.dumps(json.loads(header.read_text()) | {"format": 99}))
  with pytest.raises(InputError, match="another version"):
    store.Store(folder)


def test_a_write_that_fails_leaves_the_old_store(made, tmp_path):
  _, params, passages, *_ = made
  folder = tmp_path / "store"
  store.write(folder, NET, params, passages[:3])

  def broken():
    yield passages[0]
    raise OSError("gone")

  with pytest.raises(OSError, match="gone"):
    store.write(folder, NET, params, broken())
  assert len(store.Store(folder)) == 3
  assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_bad_arguments(made):
  folder, params, passages, queries, _ = made
  with pytest.raises(InputError, match="dtype 'int8': choose one of float32, float16, bfloat16"):
    store.write(folder / "x", NET, params, passages, dtype="int8")
  opened = store.Store(folder / "float16")
  with pytest.raises(ValueError, match="outside of the store's 30 passages"):
    opened.rerank_scores(NET, params, queries[:1], [[30]])
  with pytest.raises(ValueError, match="4 questions, but 1 lists"):
    opened.rerank_scores(NET, params, queries, [[1]])


def test_no_passage_makes_an_empty_store(made, tmp_path):
  _, params, _, queries, _ = made
  store.write(tmp_path / "none", NET, params, [])
  opened = store.Store(tmp_path / "none", verify=True)
  assert len(opened) == 0
  (scores,) = opened.rerank_scores(NET, params, queries[:1], [[]])
  assert scores.shape == (0,)
  assert score.padded(0) == 16
