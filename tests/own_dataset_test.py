"""A dataset that nobody here has seen goes through the quickstart recipe, which is not changed."""

import contextlib
import json
import pathlib
import subprocess
import sys
import types

import jax
import pytest

from kard_jax import questions as questions_lib
from kard_jax import scorecard
from kard_jax.core import config, files
from launch import run
from tests import planets

ROOT = pathlib.Path(__file__).resolve().parents[1]
METHODS = {"rd", "kard_bm25", "kard_reranker", "kard_silver"}

SMALL = (
  "--gin.BATCH_SIZE=8",
  "--gin.SAMPLES=1",
  "--gin.t5.T5.num_encoder_layers=1",
  "--gin.t5.T5.num_decoder_layers=1",
)  # less to compile


@pytest.fixture(autouse=True)
def _forget_planets():
  yield
  planets.forget()


def recipe(module, workdir, steps, *more):
  """The command of the README, without its first two words."""
  return [
    "--recipe=quickstart",
    "--gin.DATASET='planets'",
    f"--gin.MODULE='{module}'",
    f"--gin.WORKDIR='{workdir}'",
    f"--gin.STEPS={steps}",
    *more,
  ]


def in_this_process(monkeypatch, argv):
  """`launch/run.py` whose stages are calls, not processes: each process imports for seconds."""
  stages = []

  class Called(contextlib.nullcontext):
    def __init__(self, command, env):
      super().__init__(self)
      stages.append(pathlib.Path(command[1]).stem)
      self._status = config.launch(stages[-1], "", command[2:])

    def wait(self):
      return self._status

  devices = jax.devices
  monkeypatch.setattr(jax, "devices", lambda *args: devices(*args)[:1])  # tests have eight
  monkeypatch.setattr(run, "subprocess", types.SimpleNamespace(Popen=Called))
  assert run.main(argv) == 0
  return stages


def snapshot(folder):
  return {
    str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_ino)
    for path in folder.rglob("*")
  }


def card_of(workdir):
  return json.loads((workdir / "scorecard" / "scorecard.json").read_text())


def check_card(card, methods=METHODS):
  assert set(card["methods"]) == methods
  assert all(row["n"] == 20 for row in card["methods"].values())
  assert card["questions"]["options"] == [3, 4]
  assert card["title"] == "KARD on planets"


def test_the_recipe_runs_on_a_folder_and_a_module(tmp_path, monkeypatch, capsys):
  module = planets.write(tmp_path / "planets")
  argv = recipe(module, tmp_path / "work", 2, *SMALL)
  stages = in_this_process(monkeypatch, argv)
  assert len(stages) == 12
  assert "6 of the training questions are held out" in capsys.readouterr().out
  card = card_of(tmp_path / "work")
  check_card(card)
  assert {name: row["reference"] for name, row in card["retrieval"].items()} == {
    "bm25": "silver",  # no question names a gold passage
    "reranker": "silver",
  }
  assert all(row["n"] == 20 for row in card["retrieval"].values())
  before = snapshot(tmp_path)
  assert in_this_process(monkeypatch, argv) == []
  assert snapshot(tmp_path) == before
  assert "KARD, reranker" in capsys.readouterr().out


def stages(names, module, workdir):
  """Some stages of the recipe, one after the other."""
  settings = recipe(module, workdir, 1)[1:-1]
  for name in names:
    (path,) = (ROOT / "gin_configs/recipes/quickstart").glob(f"*_{name}.gin")
    argv = [f"--gin_file={path}", *(s for s in settings if name != "score" or "MODULE" not in s)]
    assert config.launch(run.LAUNCHERS[name.split("_")[0]], "", argv) == 0, name


@pytest.mark.parametrize("splits", [("train", "test"), ("train",)])
def test_rationales_from_a_file(tmp_path, splits):
  module, work = planets.write(tmp_path / "planets", rationales_of=splits), tmp_path / "work"
  stages(["prepare", "index", "teach", "ground"], module, work)
  rows = {row["question_id"]: row for _, row in files.read_jsonl(work / "rationales.jsonl")}
  assert len(rows) == (80 if "test" in splits else 60)
  assert all(row["kept"] for row in rows.values())
  silver = {
    row["question_id"]: row["passages"] for row in scorecard.read_silver(work / "silver.jsonl")
  }
  assert set(silver) == set(rows)
  for name in silver:
    planet, topic = name.split("-")[1:]
    assert silver[name][0]["id"] == f"{planet}/{topic}", "the passage that the rationale repeats"


def test_without_rationales_for_test_questions_silver_is_left_out(tmp_path, capsys):
  module, work = planets.write(tmp_path / "planets", rationales_of=("train",)), tmp_path / "work"
  stages(["prepare", "index", "teach", "ground"], module, work)
  questions = questions_lib.read(work / "questions/test.jsonl")
  row = {"passages": [], "retrieved": [], "samples": [], "answer": 0}
  rows = [row | {"question_id": q.id, "label": q.label} for q in questions]
  (work / "predictions").mkdir()
  planets.write_rows(work / "predictions/rd.jsonl", rows)
  # As when the test questions had rationales before: what it held must not be scored any more.
  planets.write_rows(work / "predictions/kard_silver.jsonl", rows)
  capsys.readouterr()
  stages(["answer_kard_silver", "score"], module, work)
  out = capsys.readouterr().out
  assert "no passage for any question of test: kard_silver is left out" in out
  assert "no passages to read, so not in the table: kard_silver" in out
  assert (work / "predictions/kard_silver.jsonl").read_text() == ""
  card = card_of(work)
  check_card(card, {"rd"})
  assert card["retrieval"] == {}, "there is neither gold nor silver to compare with"


@pytest.mark.slow
def test_the_command_of_the_readme(tmp_path):
  module = planets.write(tmp_path / "planets")
  argv = [sys.executable, str(ROOT / "launch" / "run.py"), *recipe(module, tmp_path / "work", 4)]
  subprocess.run(argv, cwd=tmp_path, check=True, timeout=600)
  card = card_of(tmp_path / "work")
  check_card(card)
  assert {row["reference"] for row in card["retrieval"].values()} == {"silver"}
  before = snapshot(tmp_path / "work")
  done = subprocess.run(argv, cwd=tmp_path, check=True, timeout=60, capture_output=True, text=True)
  assert "[1/12]" not in done.stdout
  assert "KARD, reranker" in done.stdout
  assert snapshot(tmp_path / "work") == before


def test_the_readme_shows_the_module_that_is_tested():
  readme = ROOT / "README.md"
  if not readme.exists():
    pytest.skip("there is no README.md yet")
  assert planets.MODULE in readme.read_text()
