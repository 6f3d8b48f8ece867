"""From a release and imported completions to a score card of all methods; some alone; a sweep."""

import json
import pathlib

import pytest

from kard_jax.core import gin_text
from tests import own_dataset_test

DATA = gin_text.ROOT.parent / "shared" / "data" / "openbookqa"
METHODS = [
  "fewshot", "fewshot_passages", "fewshot_cot", "fewshot_cot_passages", "ft", "kaft", "rd",
  "dapt_rd", "kard_bm25", "kard_reranker", "kard_silver",
]  # fmt: skip
SMALL = {
  "TRAIN_QUESTIONS": 40, "TEST_QUESTIONS": 12, "RATIONALES": 1, "STEPS": 2, "BATCH_SIZE": 4,
  "RERANKER_BATCH_SIZE": 4, "WIDTH": 16, "VOCABULARY_SIZE": 1_024, "INPUT_LENGTH": 64,
  "TARGET_LENGTH": 24, "FEW_SHOT_LENGTH": 160, "EXEMPLARS": 2, "PASSAGE_LENGTH": 24,
  "QUERY_LENGTH": 32, "CANDIDATES": 8, "CANDIDATES_A_SIDE": 8,
}  # fmt: skip


@pytest.fixture
def run(tmp_path, monkeypatch):
  if not DATA.is_dir():
    pytest.skip(f"{DATA} is not here: the release of OpenBookQA and ChatGPT's completions")

  def go(*flags, **macros):
    values = SMALL | {"SOURCE": str(DATA), "WORKDIR": str(tmp_path / "work")} | macros
    overrides = [f"--gin.{name}={value!r}" for name, value in values.items()]
    argv = ["--recipe=openbookqa_tiny", *flags, *overrides]
    return own_dataset_test.in_this_process(monkeypatch, argv)

  return go


def card_of(workdir):
  return json.loads((workdir / "scorecard" / "scorecard.json").read_text())


@pytest.mark.slow
def test_every_method_some_alone_and_a_sweep(run, tmp_path, capsys):
  work = tmp_path / "work"
  # Two methods first: what the others need is not made.
  assert run("--methods=ft,kard_bm25") == [
    "prepare", "index", "teach", "ground", "train", "train", "answer", "answer", "score",
  ]  # fmt: skip
  assert list(card_of(work)["methods"]) == ["ft", "kard_bm25"]
  rest = run()
  assert rest == ["train"] * 5 + ["answer"] * 9 + ["score"]
  card = card_of(work)
  assert list(card["methods"]) == METHODS
  assert {row["n"] for row in card["methods"].values()} == {12}
  assert run() == []
  check_rows(work)

  # In a sweep, a value of the recipe's own changes nothing; another one, what reads passages.
  capsys.readouterr()
  sweep = "--sweep=passages", "--methods=rd,kard_bm25"
  assert run(*sweep, SWEEP_VALUES=[1, 2]) == ["score", "train", "answer", "score"]
  assert f"[1/9] prepare: as in {work}" in capsys.readouterr().out
  cards = [card_of(work / "sweeps" / "passages" / str(value)) for value in (1, 2)]
  together = json.loads((work / "sweeps/passages/comparison.json").read_text())
  assert [run["name"] for run in together["runs"]] == ["passages 1", "passages 2"]
  assert (work / "sweeps/passages/report.html").exists()
  assert [card["sweep"] for card in cards] == [
    {"name": "passages", "value": 1},
    {"name": "passages", "value": 2},
  ]
  assert cards[0]["methods"]["rd"]["accuracy"] == cards[1]["methods"]["rd"]["accuracy"]
  rows = read(work / "sweeps/passages/2", "kard_bm25")
  assert {len(row["passages"]) for row in rows} == {2}
  assert run(*sweep, SWEEP_VALUES=[1, 2]) == []


def read(work: pathlib.Path, method):
  return [json.loads(line) for line in (work / f"predictions/{method}.jsonl").open()]


def check_rows(work):
  """What each method read."""
  for method in METHODS:
    for row in read(work, method):
      assert row["seconds"] > 0
      assert 0 < row["prompt_tokens"] <= (160 if "fewshot" in method else 64)
      knows = "passages" in method or method.startswith(("ka", "kard"))
      assert len(row["passages"]) == int(knows), method
      assert ("exemplars" in row) == ("fewshot" in method)
      assert ("retrieved_before" in row) == (method == "kard_reranker")
  before = [row["retrieved"] for row in read(work, "kard_bm25")]
  shorter = [row["retrieved_before"] for row in read(work, "kard_reranker")]
  assert shorter == [row[:8] for row in before]
