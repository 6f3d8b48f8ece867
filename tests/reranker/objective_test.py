"""The listwise objectives against float64 NumPy, and at the edges that real batches have."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kard_jax.core.files import InputError
from kard_jax.reranker import objective


def reference(scores, rationale_scores, mask, tau, rationale_tau):
  """KL and its gradients by both scores, for one list, in float64, straight from the definition."""
  kl, by_scores, by_rationale = 0.0, np.zeros(len(scores)), np.zeros(len(scores))
  real = np.flatnonzero(mask)
  if not len(real):
    return kl, by_scores, by_rationale

  def log_softmax(x, temperature):
    z = np.asarray(x, np.float64)[real] / temperature
    z = z - z.max()
    return z - np.log(np.exp(z).sum())

  log_q, log_p = log_softmax(rationale_scores, rationale_tau), log_softmax(scores, tau)
  q, p = np.exp(log_q), np.exp(log_p)
  kl = float((q * (log_q - log_p)).sum())
  by_scores[real] = (p - q) / tau
  by_rationale[real] = q * (log_q - log_p - kl) / rationale_tau
  return kl, by_scores, by_rationale


@st.composite
def lists(draw):
  shape = draw(st.sampled_from([(3, 1), (4, 8)]))  # few shapes: each is compiled
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  scale = draw(st.sampled_from([0.0, 1e-3, 1.0, 30.0, 1e4]))  # 0: all equal
  shift = draw(st.sampled_from([0.0, -50.0, 4096.0]))
  scores = (rng.normal(size=shape) * scale + shift).astype(np.float32)
  rationale_scores = (rng.gamma(1.0, 8.0, size=shape)).astype(np.float32)
  mask = rng.random(shape) < draw(st.sampled_from([0.0, 0.2, 0.7, 1.0]))
  if draw(st.booleans()):  # what stands under the mask must not matter
    scores[~mask] = draw(st.sampled_from([np.nan, np.inf, -np.inf, 3e38]))
    rationale_scores[~mask] = np.nan
  tau, rationale_tau = draw(st.sampled_from([(1.0, 1.0), (0.1, 5.0), (3.0, 0.25), (100.0, 2.0)]))
  return scores, rationale_scores, mask, tau, rationale_tau


@functools.partial(jax.jit, static_argnums=(3, 4))
def kl_and_gradients(scores, rationale_scores, mask, tau, rationale_tau):
  def total(scores, rationale_scores):
    kl_B = objective.listwise_kl(
      scores, rationale_scores, mask, tau=tau, rationale_tau=rationale_tau
    )
    return kl_B.sum(), kl_B

  (_, kl_B), gradients = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(
    scores, rationale_scores
  )
  return kl_B, gradients


@settings(max_examples=100, deadline=None)
@given(lists())
def test_kl_and_its_gradients_match_float64(case):
  scores, rationale_scores, mask, tau, rationale_tau = case

  kl_B, gradients = kl_and_gradients(scores, rationale_scores, mask, tau, rationale_tau)
  for i in range(len(scores)):
    kl, by_scores, by_rationale = reference(
      scores[i], rationale_scores[i], mask[i], tau, rationale_tau
    )
    np.testing.assert_allclose(kl_B[i], kl, rtol=2e-6, atol=2e-5)
    np.testing.assert_allclose(gradients[0][i], by_scores, rtol=1e-5, atol=2e-6 / tau)
    # q (log q - log p - kl) cancels: its error grows with the size of log p
    atol = 2e-6 * max(kl, 10.0) / rationale_tau
    np.testing.assert_allclose(gradients[1][i], by_rationale, rtol=1e-4, atol=atol)


def kl_and_gradient(scores, rationale_scores, mask, tau=1.0, rationale_tau=1.0):
  kl_B, (gradient_BxC, _) = kl_and_gradients(
    jnp.asarray(scores),
    np.asarray(rationale_scores, np.float32),
    np.asarray(mask, bool),
    tau,
    rationale_tau,
  )
  return np.asarray(kl_B), np.asarray(gradient_BxC)


def test_one_candidate_and_none_cost_nothing_and_teach_nothing():
  kl_B, gradient_BxC = kl_and_gradient(
    np.float32([[7.0, -3.0], [7.0, -3.0], [np.nan, np.inf]]),
    [[1.0, 9.0], [1.0, 9.0], [np.nan, np.nan]],
    [[True, False], [False, True], [False, False]],
  )
  np.testing.assert_array_equal(kl_B, 0.0)
  np.testing.assert_array_equal(gradient_BxC, 0.0)


def test_no_step_on_the_way_is_nan():
  # so that `jax_debug_nans` finds real trouble
  scores_BxC = jnp.asarray([[np.inf, 3.0], [np.inf, 2.0], [1.0, 2.0]])
  mask_BxC = np.array([[0, 0], [0, 1], [1, 1]], bool)

  def total(scores_BxC):
    kl_B = objective.listwise_kl(scores_BxC, scores_BxC, mask_BxC, tau=1.0, rationale_tau=2.0)
    cross_entropy_B = objective.top_cross_entropy(scores_BxC, scores_BxC, mask_BxC, tau=1.0)
    return (kl_B + cross_entropy_B).sum()

  with jax.debug_nans(True), jax.disable_jit():
    gradient_BxC = jax.grad(total)(scores_BxC)
  assert np.isfinite(gradient_BxC).all()
  assert gradient_BxC[2].any()


def test_equal_scores_on_both_sides_are_a_fit():
  kl_B, gradient_BxC = kl_and_gradient(
    np.full((1, 8), 5e3, np.float32), np.full((1, 8), 2.0), np.ones((1, 8))
  )
  np.testing.assert_allclose(kl_B, 0.0, atol=1e-6)
  np.testing.assert_allclose(gradient_BxC, 0.0, atol=1e-7)


def test_scores_at_the_ends_of_float32_stay_finite():
  kl_B, gradient_BxC = kl_and_gradient(
    np.float32([[3e38, -3e38, 0.0], [-3e38, 3e38, 0.0]]),
    [[3e38, -3e38, 0.0], [3e38, -3e38, 0.0]],
    np.ones((2, 3)),
    tau=0.01,
  )
  assert np.isfinite(kl_B).all()
  assert np.isfinite(gradient_BxC).all()
  assert kl_B[0] == 0.0
  assert kl_B[1] > 1e20


def test_a_nan_among_real_scores_is_not_hidden():
  kl_B, _ = kl_and_gradient(np.float32([[np.nan, 0.0]]), [[1.0, 0.0]], [[True, True]])
  assert np.isnan(kl_B).all()


def test_bfloat16_scores_are_computed_in_float32():
  scores_BxC = jnp.asarray([[1.0, 1.5, -2.0]], jnp.bfloat16)
  kl_B, gradient_BxC = kl_and_gradient(scores_BxC, [[1.0, 4.0, 2.0]], np.ones((1, 3)))
  exact_B, _ = kl_and_gradient(np.float32(scores_BxC), [[1.0, 4.0, 2.0]], np.ones((1, 3)))
  assert kl_B.dtype == np.float32
  assert gradient_BxC.dtype == jnp.bfloat16
  np.testing.assert_array_equal(kl_B, exact_B)


def test_cross_entropy_is_the_limit_of_kl():
  rng = np.random.default_rng(0)
  scores_BxC = rng.normal(size=(3, 5)).astype(np.float32)
  rationale_scores_BxC = np.float32([[9, 3, 1, 0, 0], [9, 9, 1, 0, 0], [1, 2, 3, 4, 99]])
  mask_BxC = np.ones((3, 5), bool)
  mask_BxC[2, 4] = False  # the best there is no candidate
  loss_B = objective.top_cross_entropy(scores_BxC, rationale_scores_BxC, mask_BxC, tau=0.5)
  sharp_B = objective.listwise_kl(
    scores_BxC, rationale_scores_BxC, mask_BxC, tau=0.5, rationale_tau=1e-3
  )
  # KL is the cross-entropy less the entropy of Q, which is log 2 where two share the top
  np.testing.assert_allclose(loss_B, sharp_B + np.log([1.0, 2.0, 1.0]), rtol=1e-6)
  soft_B = objective.listwise_kl(
    scores_BxC, rationale_scores_BxC, mask_BxC, tau=0.5, rationale_tau=5.0
  )
  assert not np.allclose(loss_B, soft_B, atol=0.1)  # elsewhere they do differ


def test_cross_entropy_of_no_candidate_is_zero_with_zero_gradient():
  def total(scores_BxC):
    none_BxC = np.zeros((1, 2), bool)
    return objective.top_cross_entropy(scores_BxC, scores_BxC, none_BxC, tau=1.0).sum()

  value, gradient_BxC = jax.value_and_grad(total)(jnp.asarray([[np.nan, 1.0]]))
  assert value == 0.0
  np.testing.assert_array_equal(gradient_BxC, 0.0)


def test_hit_at_1_shares_ties_and_passes_over_padding():
  hit_B = objective.hit_at_1(
    np.float32([[3, 1, 0], [1, 3, 0], [2, 2, 2], [2, 2, 9], [5, 1, 0]]),
    np.float32([[9, 1, 1], [9, 1, 1], [9, 1, 1], [9, 1, 1], [9, 9, 9]]),
    np.array([[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 0], [0, 0, 0]], bool),
  )
  np.testing.assert_allclose(hit_B, [1.0, 0.0, 1 / 3, 1 / 2, 0.0])


BAD_TEMPERATURES = [0.0, -0.0, -1.0, float("nan"), float("inf"), 1e-45]


@pytest.mark.parametrize("bad", BAD_TEMPERATURES)
def test_a_temperature_must_be_positive(bad):
  x_BxC = jnp.ones((1, 2))
  mask_BxC = jnp.ones((1, 2), bool)
  with pytest.raises(InputError, match=r"objective\.ListwiseKL\.tau = .*positive"):
    objective.ListwiseKL(Dot(), tau=bad)
  with pytest.raises(InputError, match=r"objective\.ListwiseKL\.rationale_tau = .*positive"):
    objective.ListwiseKL(Dot(), rationale_tau=bad)
  with pytest.raises(InputError, match=r"objective\.TopCrossEntropy\.tau = .*positive"):
    objective.TopCrossEntropy(Dot(), tau=bad)
  for taus in ({"tau": bad, "rationale_tau": 1.0}, {"tau": 1.0, "rationale_tau": bad}):
    with pytest.raises(InputError, match="positive"):  # while tracing: no step is ever run
      jax.eval_shape(
        lambda x, m, taus=taus: objective.listwise_kl(x, x, m, **taus), x_BxC, mask_BxC
      )


class Dot(nn.Module):
  """Scores by embeddings, so that the objectives are tested without a real network."""

  width: int = 4
  dropout_rate: float = 0.0

  @nn.compact
  def __call__(self, query_tokens_BxL, passage_tokens_BxCxM, *, deterministic=True):
    init = nn.with_logical_partitioning(nn.initializers.normal(1.0), ("vocab", "embed"))
    table = self.param("table", init, (11, self.width))
    query_BxD = table[query_tokens_BxL].mean(1)
    query_BxD = nn.Dropout(self.dropout_rate)(query_BxD, deterministic=deterministic)
    return jnp.einsum("bd,bcd->bc", query_BxD, table[passage_tokens_BxCxM].mean(2))


def make_batch(lists=6, candidates=5, seed=0):
  rng = np.random.default_rng(seed)
  mask_BxC = rng.random((lists, candidates)) < 0.7
  mask_BxC[0] = False
  mask_BxC[1:, 0] = True
  return {
    "query_tokens": rng.integers(1, 11, (lists, 3), dtype=np.int32),
    "passage_tokens": rng.integers(1, 11, (lists, candidates, 4), dtype=np.int32),
    "passage_scores": rng.gamma(1.0, 8.0, (lists, candidates)).astype(np.float32),
    "passage_mask": mask_BxC,
  }


OBJECTIVES = [
  objective.ListwiseKL(Dot(), tau=0.7, rationale_tau=3.0),
  objective.TopCrossEntropy(Dot(), tau=0.7),
]


@pytest.mark.parametrize("the_objective", OBJECTIVES, ids=lambda o: type(o).__name__)
def test_loss_counts_real_lists_and_does_not_depend_on_the_split(the_objective):
  batch = make_batch()
  boxed = the_objective.init(jax.random.key(0), batch)
  assert isinstance(boxed["table"], nn.LogicallyPartitioned)
  params = nn.unbox(boxed)
  loss = jax.jit(lambda p, b: the_objective.loss(p, b, None))
  whole = loss(params, batch)
  assert whole.weight == 5
  assert whole.total > 0
  parts = [
    loss(params, {name: value[start : start + 2] for name, value in batch.items()})
    for start in (0, 2, 4)
  ]
  assert [part.weight for part in parts] == [1, 2, 2]
  summed = jax.tree.map(lambda *xs: sum(xs), *parts)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), summed, whole)


def test_loss_is_the_kl_of_the_networks_scores():
  batch = make_batch()
  kl = OBJECTIVES[0]
  params = nn.unbox(kl.init(jax.random.key(0), batch))
  scores_BxC = kl.network.apply({"params": params}, batch["query_tokens"], batch["passage_tokens"])
  by_hand = [
    reference(*row, 0.7, 3.0)[0]
    for row in zip(scores_BxC, batch["passage_scores"], batch["passage_mask"], strict=True)
  ]
  loss = kl.loss(params, batch, None)
  np.testing.assert_allclose(loss.total, sum(by_hand), rtol=1e-5)
  np.testing.assert_allclose(loss.metrics["kl"].total, loss.total)
  assert 0 <= loss.metrics["hit@1"].total <= loss.metrics["hit@1"].weight == 5
  # the entropy of Q is the KL's distance from the cross-entropy: check it at a uniform Q
  flat = dict(batch, passage_scores=np.ones_like(batch["passage_scores"]))
  entropy = kl.loss(params, flat, None).metrics["target_entropy"]
  np.testing.assert_allclose(
    entropy.total, np.log(np.maximum(batch["passage_mask"].sum(-1), 1)).sum(), rtol=1e-5
  )


def test_an_integer_mask_serves_as_well():
  batch = make_batch()
  kl = OBJECTIVES[0]
  params = nn.unbox(kl.init(jax.random.key(0), batch))
  integer = dict(batch, passage_mask=batch["passage_mask"].astype(np.int32))
  assert kl.loss(params, integer, None).total == kl.loss(params, batch, None).total


def test_dropout_only_with_a_key():
  batch = make_batch()
  kl = objective.ListwiseKL(Dot(dropout_rate=0.5))
  params = nn.unbox(kl.init(jax.random.key(0), batch))
  still = [float(kl.loss(params, batch, None).total) for _ in range(2)]
  moved = [float(kl.loss(params, batch, jax.random.key(i)).total) for i in range(2)]
  assert still[0] == still[1]
  assert len({still[0], *moved}) == 3


def test_training_moves_the_model_to_the_target():
  batch = make_batch()
  kl = objective.ListwiseKL(Dot(width=16), rationale_tau=5.0)
  params = nn.unbox(kl.init(jax.random.key(0), batch))
  step = jax.jit(jax.value_and_grad(lambda p: kl.loss(p, batch, None).total / 5))
  before, _ = step(params)
  for _ in range(500):
    _, gradient = step(params)
    params = jax.tree.map(lambda p, g: p - 0.3 * g, params, gradient)
  after, _ = step(params)
  assert after < 0.02 < 0.2 < before
