"""What a measurement on n questions is worth: intervals, paired tests, calibration.

Intervals are of 95 %. Two methods that answered the same questions are compared question by
question, which sees smaller differences than their two intervals do. Nothing here needs JAX.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

RESAMPLES = 10_000
BINS = 10
_QUANTILES = (0.025, 0.975)


def wilson(successes: int, n: int) -> tuple[float, float]:
  """The 95 % Wilson score interval of a fraction.

  Unlike the usual plus-minus it stays within 0 and 1 and is right for few questions (Wilson 1927).

  Raises:
    ValueError: n is not positive, or successes are not between 0 and n.
  """
  if not 0 <= successes <= n or n < 1:
    raise ValueError(f"an interval needs 0 <= successes <= n and n > 0: {successes=}, {n=}")
  interval = stats.binomtest(successes, n).proportion_ci(method="wilson")
  return float(interval.low), float(interval.high)


def mcnemar(only_first: int, only_second: int) -> float:
  """The exact two-sided p of McNemar's test (McNemar 1947), from the questions that differ.

  Where both methods are equally good, each question that one of them alone has right is as likely
  the first's as the second's: a binomial test with 1/2. The normal approximation is not used: it
  fails where few questions differ.

  Args:
    only_first: questions that the first method alone has right.
    only_second: those that the second alone has right.

  Returns:
    p; 1 where no question differs.
  """
  differ = only_first + only_second
  return float(stats.binomtest(only_first, differ).pvalue) if differ else 1.0


def bootstrap(values_N: Float[np.ndarray, " N"], *, seed: int) -> tuple[float, float]:
  """The 95 % percentile interval of a mean, the values drawn anew with replacement (Efron 1979).

  With the difference of two methods on each question this is the paired bootstrap: a drawn question
  brings both methods' answers. Equal values are drawn together, as a multinomial of how often each
  occurs. That is the same distribution, at a cost that does not grow with N.

  Args:
    values_N: one for each question, which are independent of one another.
    seed: of the drawing; `RESAMPLES` times.

  Raises:
    ValueError: there is no value.
  """
  if not len(values_N):
    raise ValueError("a bootstrap needs one value or more")
  distinct, counts = np.unique(np.asarray(values_N, np.float64), return_counts=True)
  draws_RxU = np.random.default_rng(seed).multinomial(
    len(values_N), counts / len(values_N), RESAMPLES
  )
  low, high = np.quantile(draws_RxU @ distinct / len(values_N), _QUANTILES)
  return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
  """p values that hold for all tests at once (Holm 1979), in the order given.

  With every two of nine methods compared, 36 tests, one or two fall below 0.05 by chance; of the
  corrected values all stay above it with a chance of 95 % where nothing differs.
  """
  order = np.argsort(p_values, kind="stable")
  scaled = np.sort(p_values) * np.arange(len(order), 0, -1)
  corrected = np.empty(len(order))
  corrected[order] = np.minimum(1.0, np.maximum.accumulate(scaled))
  return corrected.tolist()


class Bin(NamedTuple):
  """Answers of about the same confidence.

  Attributes:
    low: the confidences lie above it.
    high: and at most here.
    n: how many answers.
    confidence: their mean.
    accuracy: the fraction that is right.
  """

  low: float
  high: float
  n: int
  confidence: float
  accuracy: float


def calibration(
  confidence_N: Float[np.ndarray, " N"], right_N: Bool[np.ndarray, " N"]
) -> tuple[float, list[Bin]]:
  """The expected calibration error, and the bins that it is the mean of (Guo et al. 2017).

  Args:
    confidence_N: of each answer, above 0 and at most 1.
    right_N: whether it is.

  Returns:
    The mean over all answers of |accuracy - confidence| of their bin, and those of the `BINS` equal
    bins (low, high] that hold an answer.

  Raises:
    ValueError: there is no answer, or a confidence is out of range.
  """
  if not len(confidence_N) or confidence_N.min() <= 0 or confidence_N.max() > 1:
    raise ValueError("calibration needs answers whose confidence is above 0 and at most 1")
  edges = np.arange(BINS + 1) / BINS
  place_N = np.digitize(confidence_N, edges, right=True) - 1
  bins = []
  for place in np.unique(place_N):
    some = place_N == place
    bins.append(
      Bin(
        low=float(edges[place]),
        high=float(edges[place + 1]),
        n=int(some.sum()),
        confidence=float(confidence_N[some].mean()),
        accuracy=float(right_N[some].mean()),
      )
    )
  error = sum(b.n * abs(b.accuracy - b.confidence) for b in bins) / len(confidence_N)
  return error, bins
