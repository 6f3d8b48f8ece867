"""Figures of one method and of two, counted by hand on a few rows."""

import pytest

from kard_jax import measures, statistics


def row(number, label, votes, answer=..., **fields):
  """A row whose samples gave these answers; the answer is the first of the most frequent."""
  if answer is ...:
    parsed = [vote for vote in votes if vote is not None]
    answer = max(parsed, key=parsed.count) if parsed else None
  samples = [{"rationale": "r", "answer": vote} for vote in votes]
  return {
    "question_id": f"q{number}",
    "label": label,
    "answer": answer,
    "samples": samples,
  } | fields


ROWS = [
  row(0, 1, [1, 1, 1, 1]),
  row(1, 1, [1, 1, 0, None]),
  row(2, 1, [0, 0, 0, 1]),
  row(3, 0, [None, None, None, None]),
]


def test_unparsed_stands_apart_from_wrong():
  figures = measures.accuracy(ROWS)
  assert (figures["accuracy"], figures["wrong"], figures["unparsed"]) == (0.5, 0.25, 0.25)
  assert figures["unparsed_samples"] == 5 / 16


def test_votes_by_hand():
  votes = measures.votes(ROWS, seed=0)
  assert votes["samples"] == 4
  assert votes["agreement"] == pytest.approx((1 + 0.5 + 0.75) / 3)  # of those with an answer
  assert votes["unanimous"] == 1 / 4  # four samples without an answer do not agree on one
  assert votes["single"]["value"] == pytest.approx((1 + 0.5 + 0.25 + 0) / 4)
  assert votes["gain"]["value"] == pytest.approx(0.5 - 1.75 / 4)
  low, high = votes["gain"]["interval"]
  assert low < votes["gain"]["value"] < high


def test_one_sample_is_no_vote():
  rows = [row(0, 1, [1]), row(1, 1, [0])]
  assert measures.votes(rows, seed=0) is None
  assert measures.calibration(rows) is None
  assert measures.calibration([row(0, 1, [None, None])]) is None


def test_calibration_takes_the_share_of_all_samples():
  figures = measures.calibration(ROWS)
  assert figures["n"] == 3
  assert [(b["confidence"], b["accuracy"], b["n"]) for b in figures["bins"]] == [
    (0.5, 1, 1),
    (0.75, 0, 1),
    (1, 1, 1),
  ]
  assert figures["ece"] == pytest.approx((0.5 + 0.75 + 0) / 3)
  assert figures["bins"][0]["interval"] == list(statistics.wilson(1, 1))
  # An answer that no sample gave has no share: it is left out, not taken for one of confidence 0.
  assert measures.calibration([*ROWS, row(4, 1, [0, 0], answer=1)])["n"] == 3


def test_costs_are_means_of_what_all_rows_record():
  some = [
    row(0, 1, [1], seconds=0.5, prompt_tokens=100, cut_tokens=0),
    row(1, 1, [1], seconds=1.5, prompt_tokens=50, cut_tokens=30),
  ]
  for each in some:
    each["samples"] = [{"rationale": "", "answer": 1, "tokens": 7}] * 2
  assert measures.cost(some) == {
    "seconds": 1.0,
    "prompt_tokens": 75.0,
    "cut_tokens": 15.0,
    "cut": 0.5,
    "written_tokens": 14.0,
  }
  # The mean of some rows would pass for that of all.
  none = dict.fromkeys(measures.cost(some))
  assert measures.cost(ROWS) == none
  assert measures.cost([*some, *ROWS]) == none
  assert measures.cost([some[0] | {"seconds": "fast"}])["seconds"] is None


def test_every_two_methods_are_compared():
  answers = {"a": [0, 0, 0, 0, 0, 0], "b": [0, 0, 0, 0, 1, 1], "c": [None, 1, 1, 1, 1, 0]}
  predictions = {
    name: [row(i, 0, [answer]) for i, answer in enumerate(given)] for name, given in answers.items()
  }
  predictions["c"].reverse()  # rows are matched by question, not by place
  first, second, third = measures.comparisons(predictions, seed=0)
  assert (first["a"], first["b"], third["a"], third["b"]) == ("a", "b", "b", "c")
  assert [second[key] for key in ("both", "only_a", "only_b", "neither")] == [1, 5, 0, 0]
  assert second["difference"] == pytest.approx(1 / 6 - 1)
  assert second["p"] == statistics.mcnemar(5, 0)
  assert second["p_holm"] == pytest.approx(3 * second["p"])
  assert [third[key] for key in ("both", "only_a", "only_b", "neither")] == [0, 4, 1, 1]
  low, high = second["interval"]
  assert low < second["difference"] < high < 0
