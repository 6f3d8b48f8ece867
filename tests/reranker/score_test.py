"""Ragged lists are scored as the network would, whatever they are scored together with."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kard_jax.reranker import network, score

SIZES = {
  "vocab_size": 64,
  "embed_dim": 16,
  "num_layers": 1,
  "num_heads": 2,
  "head_dim": 8,
  "mlp_dim": 32,
}
LATE = network.LateInteraction(network.T5Encoder(**SIZES), projection_dim=8)
CROSS = network.CrossEncoder(network.T5Encoder(**SIZES))
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
both = pytest.mark.parametrize("net", [LATE, CROSS], ids=["late", "cross"])


@functools.cache
def params_of(net):
  tokens = jnp.ones((1, 2), jnp.int32), jnp.ones((1, 1, 2), jnp.int32)
  return nn.unbox(quick_jit(net.init)(jax.random.key(0), *tokens))["params"]


def ragged(seed=0):
  """Lists of 0 to 21 candidates of 0 to 32 tokens drawn from 30 passages, so that many repeat."""
  rng = np.random.default_rng(seed)
  pool = [rng.integers(1, 64, n) for n in (0, 1, 16, 17, 32, *rng.integers(2, 33, 25))]
  queries = [rng.integers(1, 64, n) for n in (5, 16, 17, 0, 3, 30, 8)]
  lists = [[pool[i] for i in rng.integers(0, 30, n)] for n in (9, 0, 21, 2, 1, 8, 17)]
  return queries, lists


run = functools.partial(score.rerank_scores, tokens_per_call=512)  # several calls of each shape


@both
def test_scores_are_the_networks(net):
  queries, lists = ragged()
  scores = run(net, params_of(net), queries, lists)
  assert [len(s) for s in scores] == [len(row) for row in lists]
  assert all(s.dtype == np.float32 for s in scores)
  query_BxL = np.zeros((7, 48), np.int32)
  passage_BxCxM = np.zeros((7, 21, 48), np.int32)
  for b, (query, row) in enumerate(zip(queries, lists, strict=True)):
    query_BxL[b, : len(query)] = query
    for c, passage in enumerate(row):
      passage_BxCxM[b, c, : len(passage)] = passage
  expected_BxC = quick_jit(net.apply)({"params": params_of(net)}, query_BxL, passage_BxCxM)
  for row, expected_C in zip(scores, np.asarray(expected_BxC), strict=True):
    np.testing.assert_allclose(row, expected_C[: len(row)], rtol=1e-5, atol=1e-5)
  assert np.std(np.concatenate(scores)) > 0.1


@both
def test_a_score_does_not_depend_on_what_else_is_scored(net):
  queries, lists = ragged()
  scores = run(net, params_of(net), queries, lists)
  for b in (0, 2, 6):  # alone
    np.testing.assert_array_equal(run(net, params_of(net), [queries[b]], [lists[b]])[0], scores[b])
  turned = run(net, params_of(net), queries[::-1], [row[::-1] for row in lists[::-1]])
  for row, other in zip(scores, turned[::-1], strict=True):
    np.testing.assert_array_equal(row, other[::-1])


def test_memory_bounds_the_groups_and_changes_nothing():
  queries, lists = ragged()
  groups = list(score._groups(lists, 256))
  assert len(groups) > 2
  for group in groups:
    padded = {tuple(p): score.padded(len(p)) for row in lists[group] for p in row}
    assert sum(padded.values()) <= 256 or group.stop == group.start + 1
  assert [i for group in groups for i in range(*group.indices(7))] == list(range(7))
  scores = run(LATE, params_of(LATE), queries, lists)
  small = run(LATE, params_of(LATE), queries, lists, tokens_in_memory=256)
  for row, other in zip(scores, small, strict=True):
    np.testing.assert_array_equal(row, other)


def test_each_distinct_passage_is_encoded_once(monkeypatch):
  rows = []

  def spy(net, params, tokens_NxM, method):
    rows.extend((method, tuple(row[row > 0])) for row in np.asarray(tokens_NxM) if row.any())
    return encode_rows(net, params, tokens_NxM, method)

  encode_rows = score._encode_rows
  monkeypatch.setattr(score, "_encode_rows", spy)
  queries, lists = ragged()
  run(LATE, params_of(LATE), queries, lists)
  passages = [row for method, row in rows if method == "encode_passages"]
  distinct = {tuple(p) for row in lists for p in row if len(p)}
  assert sum(len(row) for row in lists) > len(distinct)  # some do repeat
  assert sorted(passages) == sorted(distinct)


@both
def test_more_lists_of_known_lengths_compile_nothing(net, monkeypatch):
  queries, lists = ragged()
  run(net, params_of(net), queries, lists)
  jitted = (score._score_pairs, score._encode_rows, score._compare)
  before = [f._cache_size() for f in jitted]
  run(net, params_of(net), queries[2:], [row[: len(row) // 2] for row in lists[2:]])
  more, longer = ragged(seed=1)
  run(net, params_of(net), more[::-1], longer[::-1])
  after = [f._cache_size() for f in jitted]
  assert sum(before) > 0
  assert after[0] == before[0]
  assert after[1] == before[1]
  assert after[2] <= before[2] + 4  # a table may fall into a smaller or larger size


def test_tables_come_in_few_sizes():
  before = score._compare._cache_size()
  for calls in range(1, 9):  # each encodes 4 rows of 16 tokens
    passages = [[2 + i, 3] for i in range(4 * calls)]
    run(LATE, params_of(LATE), [[5, 6]], [passages], tokens_per_call=64)
  assert 0 < score._compare._cache_size() - before <= 4  # tables of 1, 2, 4 and 8 calls


@both
def test_nothing_to_score(net):
  assert run(net, params_of(net), [], []) == []
  (scores,) = run(net, params_of(net), [np.array([3, 1])], [[]])
  assert scores.shape == (0,)
  assert scores.dtype == np.float32


def test_lists_must_match_questions():
  with pytest.raises(ValueError, match="2 questions, but 1 lists"):
    run(LATE, params_of(LATE), [[1], [2]], [[[3]]])


def test_a_cpu_encodes_few_tokens_at_a_time_and_compares_many(monkeypatch):
  assert score.Runner(LATE, {}).rows(128) == 16
  assert score.Runner(LATE, {}).rows(128, encodes=False) == 64
  assert score.Runner(LATE, {}, tokens_per_call=1024).rows(128) == 8
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert score.Runner(LATE, {}).rows(128) == 64
