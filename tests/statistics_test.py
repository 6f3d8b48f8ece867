"""Statistics against SciPy, statsmodels' recorded values, and plain NumPy, on random inputs."""

import json
import math
import pathlib

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from scipy import stats

from kard_jax import statistics

GOLDEN = json.loads((pathlib.Path(__file__).parent / "golden" / "statistics.json").read_text())


@hypothesis.given(st.integers(1, 5000), st.floats(0, 1))
def test_wilson_solves_its_equation(n, fraction):
  successes = round(fraction * n)
  low, high = statistics.wilson(successes, n)
  p = successes / n
  assert 0 <= low <= p <= high <= 1
  for x in (low, high):  # the ends are where p is 1.96 standard errors of x away from x
    assert abs(p - x) == pytest.approx(1.959964 * math.sqrt(x * (1 - x) / n), abs=1e-6)


def test_wilson_is_that_of_statsmodels():
  for successes, n, *interval in GOLDEN["wilson"]:
    assert statistics.wilson(successes, n) == pytest.approx(interval, abs=1e-12)


def test_wilson_known_values():
  assert statistics.wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
  assert statistics.wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
  for successes, n in ((1, 0), (-1, 5), (6, 5)):
    with pytest.raises(ValueError, match="successes"):
      statistics.wilson(successes, n)


@hypothesis.given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_sums_the_tails_of_a_fair_coin(first, second):
  n, few = first + second, min(first, second)
  tail = sum(math.comb(n, k) for k in range(few + 1)) / 2**n
  assert statistics.mcnemar(first, second) == pytest.approx(min(1.0, 2 * tail), rel=1e-9)
  assert statistics.mcnemar(first, second) == statistics.mcnemar(second, first)


def test_mcnemar_is_that_of_statsmodels():
  for first, second, p in GOLDEN["mcnemar"]:
    assert statistics.mcnemar(first, second) == pytest.approx(p, rel=1e-9)


def test_holm_is_that_of_statsmodels():
  for given, corrected in GOLDEN["holm"]:
    assert statistics.holm(given) == pytest.approx(corrected)
  assert statistics.holm([]) == []


def test_against_statsmodels_itself():
  """Where it is installed, on counts that nobody chose."""
  proportion = pytest.importorskip("statsmodels.stats.proportion")
  contingency = pytest.importorskip("statsmodels.stats.contingency_tables")
  rng = np.random.default_rng()
  for _ in range(100):
    n = int(rng.integers(1, 3000))
    k, b, c = (int(rng.integers(0, n + 1)) for _ in range(3))
    interval = proportion.proportion_confint(k, n, method="wilson")
    assert statistics.wilson(k, n) == pytest.approx(interval, abs=1e-12)
    p = contingency.mcnemar([[0, b], [c, 0]], exact=True).pvalue
    assert statistics.mcnemar(b, c) == pytest.approx(p, rel=1e-6)


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(
  st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=80), st.integers(0, 99)
)
def test_the_paired_bootstrap_is_that_of_scipy(pairs, seed):
  a_N, b_N = np.array(pairs, float).T
  mine = statistics.bootstrap(a_N - b_N, seed=seed)
  theirs = stats.bootstrap(
    (a_N, b_N),
    lambda a, b, axis: (a - b).mean(axis),
    paired=True,
    vectorized=True,
    method="percentile",
    n_resamples=statistics.RESAMPLES,
    rng=np.random.default_rng(seed),
  ).confidence_interval
  # Two drawings: their quantiles lie on the same multiples of 1/N, at most a few drawings apart.
  error = 0.06 * (a_N - b_N).std() / math.sqrt(len(pairs)) + 1.01 / len(pairs)
  assert mine == pytest.approx((theirs.low, theirs.high), abs=error)


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(st.integers(1, 400), st.floats(0, 1), st.integers(0, 99))
def test_the_bootstrap_of_a_fraction_is_binomial(n, fraction, seed):
  successes = round(fraction * n)
  values_N = np.repeat([1.0, 0.0], [successes, n - successes])
  exact = stats.binom(n, successes / n)
  for end, quantile in zip(statistics.bootstrap(values_N, seed=seed), (0.025, 0.975), strict=True):
    # Five standard errors of 10,000 draws of which 2.5 % are beyond: 0.0078.
    assert exact.ppf(quantile - 0.0078) - 0.01 <= end * n <= exact.ppf(quantile + 0.0078) + 0.01


def test_the_bootstrap_is_decided_by_its_seed():
  values_N = np.random.default_rng(0).normal(size=50)
  assert statistics.bootstrap(values_N, seed=1) == statistics.bootstrap(values_N, seed=1)
  assert statistics.bootstrap(values_N, seed=1) != statistics.bootstrap(values_N, seed=2)
  # However the values are ordered: they are drawn by how often each occurs.
  assert statistics.bootstrap(values_N[::-1], seed=1) == pytest.approx(
    statistics.bootstrap(values_N, seed=1)
  )
  assert statistics.bootstrap(np.full(3, 0.5), seed=1) == (0.5, 0.5)
  with pytest.raises(ValueError, match="one value or more"):
    statistics.bootstrap(np.array([]), seed=1)


def reference_error(confidence, right):
  """Answer by answer, no array: the bin of a confidence, and the mean gap of those in it."""
  total = 0.0
  for low in range(10):
    inside = [i for i, c in enumerate(confidence) if low / 10 < c <= (low + 1) / 10]
    if inside:
      mean = sum(confidence[i] for i in inside) / len(inside)
      total += len(inside) * abs(sum(right[i] for i in inside) / len(inside) - mean)
  return total / len(confidence)


shares = st.integers(1, 12).flatmap(lambda n: st.integers(1, n).map(lambda k: k / n))
answers = st.lists(
  st.tuples(shares | st.floats(0, 1, exclude_min=True), st.booleans()), min_size=1, max_size=60
)


@hypothesis.given(answers)
def test_the_calibration_error_is_that_of_a_plain_loop(pairs):
  confidence, right = zip(*pairs, strict=True)
  error, bins = statistics.calibration(np.array(confidence), np.array(right))
  assert error == pytest.approx(reference_error(confidence, right), abs=1e-12)
  assert sum(b.n for b in bins) == len(pairs)
  assert all(b.low < b.confidence + 1e-12 and b.confidence <= b.high + 1e-12 for b in bins)


def test_calibration_by_hand():
  # Two answers of 0.6, one right; three of 1.0, all right; one of 0.2, wrong.
  error, bins = statistics.calibration(
    np.array([0.6, 0.6, 1.0, 1.0, 1.0, 0.2]), np.array([True, False, True, True, True, False])
  )
  assert [(b.low, b.high, b.n, b.accuracy) for b in bins] == [
    (0.1, 0.2, 1, 0.0),
    (0.5, 0.6, 2, 0.5),
    (0.9, 1.0, 3, 1.0),
  ]
  assert error == pytest.approx((1 * 0.2 + 2 * 0.1 + 3 * 0) / 6)
  for confidence in ([], [0.0], [1.1]):
    with pytest.raises(ValueError, match="above 0 and at most 1"):
      statistics.calibration(np.array(confidence, float), np.zeros(len(confidence), bool))
