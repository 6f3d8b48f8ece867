"""Figures of rankings against their definitions, ties and empty lists included."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kard_jax import ranking
from kard_jax.core import files
from kard_jax.core.files import InputError

numbers = st.integers(0, 3)
lists = st.lists(st.tuples(numbers, numbers), min_size=1, max_size=5)


def orders(scores):
  """All orders that a sort by score may give."""
  for order in itertools.permutations(range(len(scores))):
    if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order)):
      yield list(order)


@given(lists, st.integers(1, 4))
def test_ties_are_the_mean_over_all_orders(pairs, k):
  scores, gains = np.array(pairs, float).T
  hits, shares = [], []
  best = np.sort(gains)[::-1]
  discount = 1 / np.log2(np.arange(2, len(gains) + 2))
  for order in orders(scores):
    hits.append(gains.max() > 0 and gains.max() in gains[order][:k])
    ideal = (best * discount)[:k].sum()
    shares.append((gains[order] * discount)[:k].sum() / ideal if ideal else 0.0)
  assert ranking.hit(scores, gains, k) == pytest.approx(np.mean(hits))
  assert ranking.ndcg(scores, gains, k) == pytest.approx(np.mean(shares))


def test_no_candidate_and_no_gain_count_nothing():
  for gains in ([], [0.0, 0.0]):
    scores = np.arange(len(gains), dtype=float)
    assert ranking.hit(scores, np.array(gains), 1) == 0
    assert ranking.ndcg(scores, np.array(gains)) == 0


def test_kl_is_that_of_the_objective():
  rng = np.random.default_rng(0)
  scores, gains = rng.normal(size=5), rng.gamma(2.0, 9.0, 5)
  q, p = np.exp(gains / 5.0), np.exp(scores / 0.5)
  q, p = q / q.sum(), p / p.sum()
  want = (q * np.log(q / p)).sum()
  assert ranking.kl(scores, gains, tau=0.5, rationale_tau=5.0) == pytest.approx(want)


def rows_of(seed, questions=30, samples=4, skill=3.0):
  """Rows whose ranking "reranker" follows the gains, with `samples` equal lists a question."""
  rng = np.random.default_rng(seed)
  rows = []
  for number in range(questions):
    gains = rng.gamma(2.0, 1.0, 12)
    scores = {"reranker": gains * skill + rng.normal(size=12), "bm25": rng.normal(size=12)}
    row = {"question_id": f"q{number}", "reference": "rationale", "gains": gains.tolist()}
    row["scores"] = {name: value.tolist() for name, value in scores.items()}
    rows += [row | {"sample": sample} for sample in range(samples)]
  return rows


def test_figures_have_intervals_by_question():
  rows = rows_of(0)
  card = ranking.summarise(rows, {"reranker": 1.0}, 1.0)["rationale"]
  assert (card["lists"], card["questions"]) == (120, 30)
  one = ranking.summarise(rows[::4], {"reranker": 1.0}, 1.0)["rationale"]
  for name, figures in one["rankings"].items():  # more lists of the same say nothing more
    for figure, both in figures.items():
      again = card["rankings"][name][figure]
      np.testing.assert_allclose(
        [both["value"], *both["interval"]], [again["value"], *again["interval"]]
      )
  figure = card["rankings"]["reranker"]["ndcg@10"]
  assert figure["interval"][0] < figure["value"] < figure["interval"][1]
  assert figure["value"] == pytest.approx(
    np.mean(
      [ranking.ndcg(np.array(row["scores"]["reranker"]), np.array(row["gains"])) for row in rows]
    )
  )
  assert set(card["rankings"]["bm25"]) == {"hit@1", "hit@3", "hit@10", "ndcg@10"}
  assert card["rankings"]["reranker"]["kl"]["value"] > 0
  assert card["differences"]["reranker"]["ndcg@10"]["interval"][0] > 0


def test_no_difference_is_within_its_interval():
  inside = 0
  for seed in range(20):
    rows = rows_of(seed, skill=0.0)
    difference = ranking.summarise(rows)["rationale"]["differences"]["reranker"]["ndcg@10"]
    low, high = difference["interval"]
    inside += low <= 0 <= high
  assert inside >= 16  # 19 are expected


def test_references_are_apart():
  rows = rows_of(0, 3) + [row | {"reference": "gold"} for row in rows_of(1, 2)]
  card = ranking.summarise(rows, {"reranker": 1.0}, 1.0)
  assert card["gold"]["questions"] == 2
  assert "kl" not in card["gold"]["rankings"]["reranker"]


@pytest.mark.parametrize(
  ("change", "complaint"),
  [
    ({"reference": "silver"}, '"reference"'),
    ({"gains": None}, '"gains" are needed'),
    ({"gains": [1.0]}, "each as long as its gains"),
    ({"scores": {"other": [1.0] * 12}}, "the same rankings"),
  ],
)
def test_broken_rows_are_told_by_line(change, complaint, tmp_path):
  rows = rows_of(0, 1, 2)
  files.write_jsonl(tmp_path / "rows.jsonl", rows)
  assert ranking.read(tmp_path / "rows.jsonl") == rows
  files.write_jsonl(tmp_path / "rows.jsonl", [rows[0], rows[1] | change])
  with pytest.raises(InputError, match=rf"rows.jsonl:2: .*{complaint}"):
    ranking.read(tmp_path / "rows.jsonl")
