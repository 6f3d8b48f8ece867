"""Runs side by side: read back from work directories, compared, and shown in a browser."""

import itertools
import json

import pytest

from kard_jax import comparison, measures, report, statistics
from kard_jax import questions as questions_lib
from kard_jax.core import files
from kard_jax.core.files import InputError
from kard_jax.retrieval.passages import write as write_passages
from launch import compare
from tests import browser, score_runs


def store(folder, run):
  """A run as the stages leave it, with the SHA-256 of what its card was made from."""
  questions_lib.write(folder / "questions/test.jsonl", run.questions)
  for method, rows in run.predictions.items():
    files.write_jsonl(folder / f"predictions/{method}.jsonl", rows)
  files.write_jsonl(folder / "silver.jsonl", run.silver)
  ids = {id for q in run.questions for id in q.gold}
  write_passages([run.passage(id) for id in sorted(ids)], folder / "knowledge/passages")
  names = ["questions/test.jsonl", *(f"predictions/{m}.jsonl" for m in run.predictions)]
  names.append("silver.jsonl")
  provenance = run.card["provenance"] | {
    "inputs": {name: files.sha256(folder / name) for name in names}
  }
  files.write_json(folder / "scorecard/scorecard.json", run.card | {"provenance": provenance})
  return folder


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
  """Three work directories of a sweep; the second lacks a method."""
  place = tmp_path_factory.mktemp("sweep")
  methods = ("kaft", "kard_bm25"), ("kaft",), ("kaft", "kard_bm25")
  return [
    store(
      place / f"k{value}",
      score_runs.run(
        24, f"world {value}", ("passages", value), methods=some, seed=value, gain=0.1 * value
      ),
    )
    for value, some in zip((1, 2, 10), methods, strict=True)
  ]


def test_a_run_is_read_back(sweep):
  run = comparison.read(sweep[0])
  assert run.name == "passages 1"
  assert comparison.read(sweep[0], "mine").name == "mine"
  assert set(run.predictions) == {"kaft", "kard_bm25"}
  assert run.passage(run.questions[0].gold[0]).title
  assert len(run.silver) == 24


def test_what_has_changed_since_or_is_not_there_is_told(tmp_path):
  run = score_runs.run(4, methods=("rd",))
  folder = store(tmp_path / "a", run)
  with pytest.raises(InputError, match=r"b/scorecard/scorecard.json: not there; launch/score"):
    comparison.read(tmp_path / "b")
  rows = [row | {"answer": None} for row in run.predictions["rd"]]
  files.write_jsonl(folder / "predictions/rd.jsonl", rows)
  with pytest.raises(InputError, match=r"rd\.jsonl: not what .* score the run again"):
    comparison.read(folder)
  (folder / "scorecard/scorecard.json").write_text('{"methods": {}}')
  with pytest.raises(InputError, match="not a score card"):
    comparison.read(folder)


def test_each_method_is_compared_with_the_first_run_that_has_it(sweep):
  runs = [comparison.read(place) for place in sweep]
  found = comparison.across(runs)["differences"]
  assert found["kaft"][0] is found["kard_bm25"][0] is found["kard_bm25"][1] is None
  right = [[r["answer"] == r["label"] for r in run.predictions["kaft"]] for run in runs]
  for r in (1, 2):
    row = measures.compare(right[0], right[r], seed=0)
    assert {key: found["kaft"][r][key] for key in row} == row
    assert row["difference"] == pytest.approx((sum(right[r]) - sum(right[0])) / 24)
  rows = [row for some in found.values() for row in some if row]
  assert [row["p_holm"] for row in rows] == statistics.holm([row["p"] for row in rows])
  # Rows in another order are the same questions; other questions are not compared.
  turned = runs[1]._replace(
    questions=runs[1].questions[::-1],
    predictions={m: rows[::-1] for m, rows in runs[1].predictions.items()},
  )
  assert comparison.across([runs[0], turned, runs[2]])["differences"] == found
  assert comparison.across([runs[0], score_runs.run(20)]) is None


def test_the_launcher_writes_page_and_figures(sweep, tmp_path, capsys):
  out = tmp_path / "out"
  assert compare.main([*map(str, sweep), f"--out={out}"]) == 0
  card = json.loads((out / "comparison.json").read_text())
  assert [run["name"] for run in card["runs"]] == ["passages 1", "passages 2", "passages 10"]
  assert list(card["runs"][1]["methods"]) == ["kaft"]
  assert "3 runs side by side" in capsys.readouterr().out
  for wrong, said in (
    ([sweep[0], sweep[0]], "each once"),
    ([sweep[0], tmp_path / "no"], "not there"),
    ([*sweep, "--names=a,b"], "2 names for 3"),
  ):
    assert compare.main([*map(str, wrong), f"--out={tmp_path / 'other'}"]) == 2
    assert said in capsys.readouterr().err
  assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("width", [1280, 375])
def test_the_page_has_table_and_curves(sweep, tmp_path, width):
  path = tmp_path / "report.html"
  runs = [comparison.read(place) for place in sweep]
  report.write_runs(path, runs, comparison.across(runs))
  with browser.opened(tmp_path / "profile") as page:
    page.size(width, phone=width < 500)
    page.open(path)
    page.run("new Promise((done) => setTimeout(done, 300))")
    cells = page.run("[...document.querySelectorAll('#runs td')].map((cell) => cell.innerText)")
    assert len(cells) == 2 * 3
    assert cells[4] == "not run"
    change = 100 * comparison.across(runs)["differences"]["kaft"][2]["difference"]
    assert cells[2].endswith(f"{change:+.1f}")
    assert page.run("document.querySelectorAll('#sweeps svg circle').length") == 5
    # Labels of the axis do not touch, and none is cut.
    boxes = page.run(
      "[...document.querySelectorAll('#sweeps .tick.middle')].map((t) => t.getBoundingClientRect())"
      ".map((b) => [b.left, b.right, Math.round(b.top)])"
    )
    ticks = sorted(box for box in boxes if box[2] == boxes[0][2])
    assert len(ticks) == 3
    assert all(first[1] < second[0] for first, second in itertools.pairwise(ticks))
    percents = page.run(
      "[...document.querySelectorAll('#sweeps .tick.end')].map((t) => t.textContent)"
    )
    assert percents in (
      ["0%", "25%", "50%", "75%", "100%"],
      ["0%", "10%", "20%", "30%", "40%", "50%"],
    )
    assert all(0 < left < right < width for left, right, _ in boxes)
    page.run("document.querySelector('#run').value = '2'")
    page.run("document.querySelector('#run').dispatchEvent(new Event('change'))")
    assert page.run("document.getElementById('title').textContent") == "world 10"
    assert page.run("document.documentElement.scrollWidth") == width
    assert page.console == []
    assert page.requests == [path.as_uri()]
