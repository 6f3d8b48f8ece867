"""How well rankings of candidates follow a reference: the rationale's, or a gold passage.

For each ranking hit@k of the reference's best candidate, nDCG@10 with the reference's scores as
gains and, against rationales, the mean KL that the reranker is trained for; every figure with a
95 % interval, and the difference of each ranking to BM25 by the question. Rationales of one
question are not independent, so intervals come from drawing questions, not lists (the bootstrap of
Efron 1979). Nothing here needs JAX.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float64

from kard_jax.core import files
from kard_jax.core.files import InputError

Row = dict[str, Any]

HITS = (1, 3, 10)
DEPTH = 10  # of nDCG
REFERENCES = ("rationale", "gold")
BASELINE = "bm25"
_RESAMPLES = 2000


def ndcg(
  scores_C: Float[np.ndarray, " C"], gains_C: Float[np.ndarray, " C"], depth: int = DEPTH
) -> float:
  """Discounted gain of the first `depth` by score, as a share of the best there can be.

  Candidates of equal score stand for their mean gain: the expectation over all orders of them. A
  list without any gain counts 0 (Jarvelin and Kekalainen 2002, logarithm of base 2).
  """
  gains = np.asarray(gains_C, np.float64)
  discounts = 1.0 / np.log2(np.arange(2, min(depth, len(gains)) + 2))
  best = float(np.sort(gains)[::-1][: len(discounts)] @ discounts)
  if best <= 0:
    return 0.0
  _, group_C, sizes = np.unique(-np.asarray(scores_C), return_inverse=True, return_counts=True)
  means = np.bincount(group_C, weights=gains) / sizes
  return float(np.repeat(means, sizes)[: len(discounts)] @ discounts) / best


def hit(scores_C: Float[np.ndarray, " C"], gains_C: Float[np.ndarray, " C"], k: int) -> float:
  """Whether a candidate of the highest gain is among the first k by score.

  Where scores tie at the k-th place it is the chance, over all orders of those that tie. A list
  without any gain counts 0.
  """
  scores, gains = np.asarray(scores_C), np.asarray(gains_C)
  if not len(gains) or gains.max() <= 0:
    return 0.0
  wanted = gains == gains.max()
  above = int(max((scores > s).sum() for s in [scores[wanted].max()]))
  tied = scores == scores[wanted].max()
  places = k - above  # left for those that tie with the best wanted one
  if places <= 0:
    return 0.0
  n, good = int(tied.sum()), int((tied & wanted).sum())
  missed = 1.0
  for i in range(min(places, n)):  # none of the first `places` is a wanted one
    missed *= max(n - good - i, 0) / (n - i)
  return 1.0 - missed


def kl(
  scores_C: Float[np.ndarray, " C"],
  gains_C: Float[np.ndarray, " C"],
  *,
  tau: float,
  rationale_tau: float,
) -> float:
  """KL(Q || P) of the softmaxes of gains and scores, in float64 (`reranker.objective`)."""
  log_q, log_p = (
    z - np.logaddexp.reduce(z)
    for z in (
      np.asarray(gains_C, np.float64) / rationale_tau,
      np.asarray(scores_C, np.float64) / tau,
    )
  )
  return float(np.sum(np.exp(log_q) * (log_q - log_p)))


def summarise(
  rows: Sequence[Row],
  taus: Mapping[str, float] | None = None,
  rationale_tau: float | None = None,
  *,
  seed: int = 0,
) -> dict[str, dict[str, Any]]:
  """The figures of every ranking.

  Args:
    rows: `{"question_id", "sample", "reference", "gains": [C], "scores": {ranking: [C]}}`: the
      same rankings in all, and perhaps lists of no candidate.
    taus: temperature of each ranking's softmax; one without has no KL.
    rationale_tau: that of the rationales' scores; None: no KL.
    seed: of the questions drawn.

  Returns:
    For each reference `{"lists", "questions", "rankings": {name: {figure: {"value", "interval"}}},
    "differences": {name: {figure: {"value", "interval"}}}}`, differences being to BM25.
  """
  result = {}
  for reference in REFERENCES:
    some = [row for row in rows if row["reference"] == reference]
    if some:
      with_kl = reference == "rationale" and rationale_tau is not None
      result[reference] = _summary(some, (taus or {}) if with_kl else {}, rationale_tau, seed)
  return result


def _summary(
  rows: Sequence[Row], taus: Mapping[str, float], rationale_tau: float | None, seed: int
) -> dict[str, Any]:
  names = list(rows[0]["scores"])
  ids = {id: at for at, id in enumerate(dict.fromkeys(row["question_id"] for row in rows))}
  of_N = np.array([ids[row["question_id"]] for row in rows])
  values = {name: _figures(rows, name, taus.get(name), rationale_tau) for name in names}
  rng = np.random.default_rng(seed)
  draws_RxQ = rng.multinomial(len(ids), np.full(len(ids), 1 / len(ids)), _RESAMPLES)
  counts_Q = np.bincount(of_N, minlength=len(ids))

  def interval(value_N: Float64[np.ndarray, " N"]) -> dict[str, Any]:
    sums_Q = np.bincount(of_N, weights=value_N, minlength=len(ids))
    means_R = (draws_RxQ @ sums_Q) / (draws_RxQ @ counts_Q)
    low, high = np.quantile(means_R, [0.025, 0.975])
    return {"value": float(value_N.mean()), "interval": [float(low), float(high)]}

  return {
    "lists": len(rows),
    "questions": len(ids),
    "rankings": {
      name: {figure: interval(value_N) for figure, value_N in figures.items()}
      for name, figures in values.items()
    },
    "differences": {
      name: {
        figure: interval(value_N - values[BASELINE][figure])
        for figure, value_N in values[name].items()
        if figure in values[BASELINE]
      }
      for name in names
      if BASELINE in values and name != BASELINE
    },
  }


def _figures(
  rows: Sequence[Row], name: str, tau: float | None, rationale_tau: float | None
) -> dict[str, np.ndarray]:
  lists = [
    (np.array(row["scores"][name], np.float64), np.array(row["gains"], np.float64)) for row in rows
  ]
  found = {f"hit@{k}": np.array([hit(*both, k) for both in lists]) for k in HITS}
  found[f"ndcg@{DEPTH}"] = np.array([ndcg(*both) for both in lists])
  if tau is not None and rationale_tau is not None:
    found["kl"] = np.array(
      [
        kl(scores, gains, tau=tau, rationale_tau=rationale_tau) if len(scores) else 0.0
        for scores, gains in lists
      ]
    )
  return found


def read(path: files.PathLike) -> list[Row]:
  """Reads rows as `launch/rerank.py` writes them.

  Raises:
    InputError: the file is missing, or a row is broken.
  """
  rows, names = [], None
  for line, row in files.read_jsonl(path):
    where = f"{path}:{line}"
    scores, gains = row.get("scores"), row.get("gains")
    if not isinstance(scores, dict) or not isinstance(gains, list):
      raise InputError(f'{where}: "scores" (of each ranking) and "gains" are needed')
    if row.get("reference") not in REFERENCES or not isinstance(row.get("question_id"), str):
      raise InputError(f'{where}: "question_id" and a "reference" of {REFERENCES} are needed')
    names = names or set(scores)
    if set(scores) != names or any(len(some) != len(gains) for some in scores.values()):
      raise InputError(f"{where}: every row has the same rankings, each as long as its gains")
    rows.append(row)
  return rows
