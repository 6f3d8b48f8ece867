"""What the rows of one method say, and those of two: the figures of the score card's table.

A row is one question's, as `answer.read` gives them. All rates are fractions between 0 and 1.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np

from kard_jax import statistics

Row = dict[str, Any]


def accuracy(rows: Sequence[Row]) -> Row:
  """How many are right, how many wrong, and how many state no answer that can be parsed.

  Returns:
    `accuracy` with its Wilson `interval`, `n`, `wrong`, `unparsed`, the three fractions being 1
    together; and `unparsed_samples`, of all samples.
  """
  right = sum(row["answer"] == row["label"] for row in rows)
  unparsed = sum(row["answer"] is None for row in rows)
  samples = [sample["answer"] for row in rows for sample in row["samples"]]
  return {
    "accuracy": right / len(rows),
    "interval": list(statistics.wilson(right, len(rows))),
    "n": len(rows),
    "wrong": (len(rows) - right - unparsed) / len(rows),
    "unparsed": unparsed / len(rows),
    "unparsed_samples": samples.count(None) / max(1, len(samples)),
  }


def _share(row: Row) -> float:
  """The share of all samples, unparsed ones too, that gave the answer that won."""
  return _fraction(row, row["answer"])


def _fraction(row: Row, answer: int | None) -> float:
  answers = [sample["answer"] for sample in row["samples"]]
  return answers.count(answer) / max(1, len(answers))


def votes(rows: Sequence[Row], *, seed: int) -> Row | None:
  """Self-consistency (Wang et al. 2022): what a vote of several samples is worth.

  Returns:
    `samples`, how many a question; `agreement`, the mean share of votes that the answer has, of the
    questions that have one; `unanimous`, the fraction of all whose samples all give one answer;
    `single`, the expected accuracy of one sample; `gain`, the vote's accuracy less that. The last
    two are `{"value", "interval"}`, questions drawn anew. None where questions have one sample.
  """
  sizes = {len(row["samples"]) for row in rows}
  if max(sizes) < 2:
    return None
  answered = [row for row in rows if row["answer"] is not None]
  single_N = np.array([_fraction(row, row["label"]) for row in rows])
  voted_N = np.array([row["answer"] == row["label"] for row in rows], np.float64)
  return {
    "samples": max(sizes),
    "agreement": float(np.mean([_share(row) for row in answered])) if answered else None,
    "unanimous": sum(_share(row) == 1 for row in answered) / len(rows),
    "single": _mean(single_N, seed),
    "gain": _mean(voted_N - single_N, seed),
  }


def _mean(values_N: np.ndarray, seed: int) -> Row:
  return {
    "value": float(values_N.mean()),
    "interval": list(statistics.bootstrap(values_N, seed=seed)),
  }


def calibration(rows: Sequence[Row]) -> Row | None:
  """The share of the votes as a confidence: is an answer as often right as its share says?

  Returns:
    `ece`, `n` and `bins`, `statistics.Bin` as objects with the Wilson `interval` of the accuracy;
    questions without an answer have no confidence and are left out. None where there is one sample
    a question, or no answer at all.
  """
  answered = [row for row in rows if row["answer"] is not None and _share(row) > 0]
  if not answered or max(len(row["samples"]) for row in rows) < 2:
    return None
  right_N = np.array([row["answer"] == row["label"] for row in answered])
  error, bins = statistics.calibration(np.array([_share(row) for row in answered]), right_N)
  intervals = [statistics.wilson(round(b.accuracy * b.n), b.n) for b in bins]
  return {
    "ece": error,
    "n": len(answered),
    "bins": [b._asdict() | {"interval": list(i)} for b, i in zip(bins, intervals, strict=True)],
  }


def cost(rows: Sequence[Row]) -> Row:
  """What a question costs, as means over those that all have the field recorded.

  Returns:
    `seconds` (retrieval, reranking and writing), `prompt_tokens` that were read, `written_tokens`
    (of all samples), `cut_tokens` that the length limit took, and `cut`, the fraction of questions
    that lost any.
  """
  written = None
  if all(_number(sample.get("tokens")) for row in rows for sample in row["samples"]):
    written = [sum(sample["tokens"] for sample in row["samples"]) for row in rows]
  cut = _field(rows, "cut_tokens")
  mean = lambda values: None if values is None else float(np.mean(values))
  return {
    "seconds": mean(_field(rows, "seconds")),
    "prompt_tokens": mean(_field(rows, "prompt_tokens")),
    "written_tokens": mean(written),
    "cut_tokens": mean(cut),
    "cut": mean(None if cut is None else [tokens > 0 for tokens in cut]),
  }


def _field(rows: Sequence[Row], name: str) -> list[int | float] | None:
  """A field of all rows; None if one lacks it: the mean of some would pass for that of all."""
  values = [row.get(name) for row in rows]
  return [value for value in values if _number(value)] if all(map(_number, values)) else None


def _number(value: Any) -> TypeGuard[int | float]:
  return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def comparisons(predictions: Mapping[str, Sequence[Row]], *, seed: int) -> list[Row]:
  """Every two methods, question by question, in the order of the table.

  Returns:
    Rows `{"a", "b", "both", "only_a", "only_b", "neither", "difference", "interval", "p",
    "p_holm"}`: how many questions which of them has right; the accuracy of `b` less that of `a`,
    with its paired-bootstrap interval; the exact p of McNemar's test, and that corrected for the
    number of comparisons.
  """
  right = {
    method: {row["question_id"]: row["answer"] == row["label"] for row in rows}
    for method, rows in predictions.items()
  }
  card: list[Row] = [
    {"a": a, "b": b} | compare(list(right[a].values()), [right[b][i] for i in right[a]], seed=seed)
    for a, b in itertools.combinations(right, 2)
  ]
  for row, p in zip(card, statistics.holm([row["p"] for row in card]), strict=True):
    row["p_holm"] = p
  return card


def compare(a_N: Sequence[bool], b_N: Sequence[bool], *, seed: int) -> Row:
  """Two methods on the same questions, from whether each has each right; see `comparisons`."""
  first, second = np.array(a_N, np.float64), np.array(b_N, np.float64)
  only_a, only_b = int((first > second).sum()), int((second > first).sum())
  both = int((first * second).sum())
  return {
    "both": both,
    "only_a": only_a,
    "only_b": only_b,
    "neither": len(first) - both - only_a - only_b,
    "difference": float((second - first).mean()),
    "interval": list(statistics.bootstrap(second - first, seed=seed)),
    "p": statistics.mcnemar(only_a, only_b),
  }
