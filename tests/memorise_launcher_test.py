"""launch/memorise.py: worlds, students that are not trained twice, and the gap that they show."""

import json
import shutil

import pytest

from kard_jax.core import config, gin_text
from kard_jax.core import train as loop
from launch import memorise, run

RECIPE = gin_text.ROOT / "gin_configs" / "recipes" / "memorisation"
STUDENTS = "2_memorise_width_8"
SIZE = 32  # of a world
TINY = {"FACTS": (16,), "STEPS": 2, "EXPOSURES": 3, "BATCH_SIZE": 16, "WIDTH": 4, "MLP_DIM": 4}


def launch(stage, workdir, *flags, **macros):
  overrides = [f"--gin.{name}={value!r}" for name, value in macros.items()]
  given = [f"--gin_file={RECIPE / stage}.gin", f"--gin.WORKDIR={str(workdir)!r}", "--gin.SEEDS=2"]
  return config.launch("memorise", "", [*given, *overrides, *flags])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """Worlds of two seeds, and a size of student that was hardly trained."""
  folder = tmp_path_factory.mktemp("memorise")
  assert launch("1_memorise_worlds", folder, WORLD_SIZE=SIZE) == 0
  assert launch(STUDENTS, folder, **TINY) == 0
  return folder


def points(folder):
  return json.loads((folder / "points/memorise_width_8.json").read_text())


def test_bm25_finds_every_fact_by_the_question(made):
  for seed in range(2):
    world = memorise.World.read(stage_of(made), seed)
    assert len(world.questions) == 4 * SIZE
    assert all(world.passages[q.id].id == q.gold[0] for q in world.questions)


def stage_of(folder):
  from kard_jax.core.provenance import Stage

  return Stage("memorise_width_8", folder, {})


def test_there_is_a_point_for_each_number_of_facts_seed_and_kind(made):
  rows = points(made)
  assert [(row["facts"], row["knowledge"], row["seed"]) for row in rows] == [
    (facts, knowledge, seed) for facts in (16,) for knowledge in (False, True) for seed in range(2)
  ]
  assert {row["parameters"] for row in rows} == {rows[0]["parameters"]}
  assert [row["steps"] for row in rows] == [3, 3, 2, 2]  # 3 exposures of 16 facts
  for row in rows:
    assert row["questions"] == row["facts"]
    assert row["options"] == 8
    assert row["new_questions"] == SIZE - 16
    assert row["found"] == (1.0 if row["knowledge"] else None)
    assert 0 <= row["right"] + row["unparsed"] <= row["questions"]


def test_a_point_that_is_there_is_not_trained_again(made, tmp_path, monkeypatch):
  folder = tmp_path / "work"
  shutil.copytree(made, folder)
  (folder / "memorise_width_8.meta.json").unlink()  # killed before the end ...
  (folder / "points/memorise_width_8.json").unlink()
  lost = folder / "students/memorise_width_8/16_facts_without"
  shutil.rmtree(lost)  # ... when one point was not begun
  trained = []
  train = loop.train

  def watched(objective, batches, folder, **settings):
    trained.append(folder.name)
    return train(objective, batches, folder, **settings)

  monkeypatch.setattr(loop, "train", watched)
  assert launch(STUDENTS, folder, **TINY) == 0
  assert trained == ["16_facts_without"]
  assert points(folder) == points(made)  # the same bits


def test_other_settings_do_not_go_on_with_what_was_trained(made, tmp_path, capsys):
  folder = tmp_path / "work"
  shutil.copytree(made, folder)
  assert launch(STUDENTS, folder, **TINY | {"STEPS": 3}) == 2
  assert "STEPS = 2, now 3" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("macros", "message"),
  [
    ({"FACTS": (8, 33)}, "FACTS = [8, 33]: numbers from 1 to 32"),
    ({"FACTS": ()}, "FACTS = []: numbers from 1 to 32"),
    ({"VOCAB_SIZE": 50}, "VOCAB_SIZE: the vocabulary has 179 words"),
    ({"INPUT_LENGTH": 5}, "INPUT_LENGTH = 5"),
  ],
)
def test_what_cannot_be_is_told_before_anything_is_begun(macros, message, made, tmp_path, capsys):
  for name in ("worlds", "vocabulary"):
    (tmp_path / name).symlink_to(made / name)
  assert launch(STUDENTS, tmp_path, **TINY | macros) == 2
  assert message in capsys.readouterr().err
  assert not (tmp_path / "students").exists()


def test_the_chart_is_of_all_points(made, tmp_path, capsys):
  shutil.copytree(made / "points", tmp_path / "points")
  given = {"POINTS": ("memorise_width_8",)}
  overrides = [f"--gin.{name}={value!r}" for name, value in given.items()]
  gin_file = f"--gin_file={RECIPE / '3_memorise_chart'}.gin"
  workdir = f"--gin.WORKDIR={str(tmp_path)!r}"
  assert config.launch("memorise", "", [gin_file, workdir, *overrides]) == 0
  card = json.loads((tmp_path / "memorisation.json").read_text())
  assert len(card["points"]) == 4
  assert {"accuracy", "interval", "bits_shown", "bits_a_parameter"} <= set(card["points"][0])
  assert len(card["means"]) == len(card["needed"]) == 2
  assert "<svg" in (tmp_path / "memorisation.html").read_text()
  assert "without" in capsys.readouterr().out


@pytest.mark.slow
def test_the_gap(tmp_path):
  """The recipe, cut down: a small student cannot hold 1,024 facts, and reads them with ease."""
  macros = ["SEEDS=2", "FACTS=(64, 1024)", "STEPS=1500", "EXPOSURES=300"]
  macros += ["POINTS=('memorise_width_8', 'memorise_width_16', 'memorise_width_32')"]
  flags = [f"--gin.{macro}" for macro in (*macros, f"WORKDIR={str(tmp_path)!r}")]
  assert run.main([f"--recipe={RECIPE}", *flags]) == 0
  card = json.loads((tmp_path / "memorisation.json").read_text())
  accuracy = {(m["student"], m["facts"], m["knowledge"]): m["accuracy"] for m in card["means"]}
  small, large = "memorise_width_8", "memorise_width_32"
  assert accuracy[small, 1024, True] > 0.97
  assert accuracy[small, 1024, False] < 0.9
  assert accuracy[large, 1024, False] > accuracy[small, 1024, False] + 0.1
  assert accuracy[small, 64, False] > accuracy[small, 1024, False] + 0.1
  many = [p for p in card["points"] if p["facts"] == 1024]
  new = lambda knowledge: [p["new_right"] / 256 for p in many if p["knowledge"] == knowledge]
  assert min(new(True)) > 0.9  # read in a passage, never trained on
  assert max(new(False)) < 0.25
