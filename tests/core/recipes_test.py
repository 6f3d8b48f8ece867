"""A recipe as a plan: shared stages, some methods alone, sweeps."""

import pytest

from kard_jax.core import gin_text, recipes
from kard_jax.core.files import InputError

FILES = {
  "stages/1_prepare": "x.prepare.data = %DATASET\nDATASET = %gin.REQUIRED\n",
  "stages/5_student_dapt": "train.train.initial = %INITIAL\nINITIAL = None\n"
  "FOLDER = 'student/dapt'\nx.f = %FOLDER\n",
  "stages/5_student_kard": "train.train.initial = %INITIAL\nINITIAL = None\n"
  "FOLDER = 'student/kard'\nx.f = %FOLDER\nPASSAGES = 1\nx.k = %PASSAGES\n",
  "stages/6_student_rd": "train.train.initial = 'student/dapt'\n"
  "FOLDER = 'student/rd'\nx.f = %FOLDER\n",
  "stages/7_reranker": "train.train.initial = None\nFOLDER = 'reranker'\nx.f = %FOLDER\n",
  "stages/8_answer_bm25": "STUDENT = 'student/kard'\nx.s = %STUDENT\nPASSAGES = 1\n"
  "x.k = %PASSAGES\n",
  "stages/8_answer_neural": "STUDENT = 'student/kard'\nx.s = %STUDENT\n"
  "RERANKER_FOLDER = 'reranker'\nx.r = %RERANKER_FOLDER\n",
  "stages/8_answer_rd": "STUDENT = 'student/rd'\nx.s = %STUDENT\n",
  "stages/9_score": "x.m = %METHODS\nMETHODS = []\nx.s = %SWEEP\nSWEEP = None\nx.v = %SWEEP_VALUE\n"
  "SWEEP_VALUE = None\n",
  "mine/recipe": "STAGES = 'stages'\nWORKDIR = 'runs/mine'\nDATASET = 'planets'\n",
  "sweep": "SWEEP = 'passages'\nSWEEP_VALUES = [1, 2, 'all of them']\nPASSAGES = %SWEEP_VALUE\n"
  "METHODS = ['bm25']\n",
}


@pytest.fixture
def mine(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for name, text in FILES.items():
    path = tmp_path / f"{name}.gin"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
  return tmp_path / "mine"


def names(planned):
  return [stage.name for stage in planned]


def test_a_recipe_may_say_where_its_stages_are(mine):
  planned = recipes.plan(mine)
  assert names(planned) == [
    "prepare", "student_dapt", "student_kard", "student_rd", "reranker", "answer_bm25",
    "answer_neural", "answer_rd", "score",
  ]  # fmt: skip
  assert planned[0].settings.value("DATASET") == "planets"
  assert str(planned[0].stage().workdir) == "runs/mine"


def test_stages_of_later_folders_and_of_its_own_take_the_place_of_others(mine):
  (mine.parent / "judged").mkdir()
  (mine.parent / "judged/5_student_kard.gin").write_text("x.judged = %MINE\nMINE = 1\n")
  recipe = mine / "recipe.gin"
  recipe.write_text(recipe.read_text().replace("'stages'", "['stages', 'judged']"))
  (mine / "2_student_rd.gin").write_text("x.own = %DATASET\n")
  (mine / "4_teach.gin").write_text("x.own = 1\n")
  planned = recipes.plan(mine, ["MINE=3"])
  assert names(planned) == [
    "prepare", "student_rd", "teach", "student_dapt", "student_kard", "reranker", "answer_bm25",
    "answer_neural", "answer_rd", "score",
  ]  # fmt: skip
  settings = {stage.name: stage.settings for stage in planned}
  assert settings["student_kard"].value("x.judged") == 3
  assert settings["student_kard"].value("x.k") is None
  assert settings["student_rd"].value("x.own") == "planets"


def test_a_recipe_without_stages_says_so(mine):
  recipe = mine / "recipe.gin"
  recipe.write_text("STAGES = 'nowhere'\nWORKDIR = 'a'\n")
  with pytest.raises(InputError, match=r"recipe\.gin:1: 'nowhere' is no folder with stages"):
    recipes.plan(mine)
  recipe.write_text("WORKDIR = 'a'\n")
  with pytest.raises(InputError, match="no numbered gin files"):
    recipes.plan(mine)


def test_overrides_go_to_the_stages_that_know_them(mine):
  planned = recipes.plan(mine, ["PASSAGES=3"])
  assert [s.name for s in planned if s.overrides] == ["student_kard", "answer_bm25"]
  plain = {stage.name: stage.settings.fingerprint() for stage in recipes.plan(mine)}
  changed = {s.name for s in planned if s.settings.fingerprint() != plain[s.name]}
  assert changed == {"student_kard", "answer_bm25"}
  with pytest.raises(InputError, match=r"--gin\.PASAGES=3: no stage uses PASAGES; did you mean"):
    recipes.plan(mine, ["PASAGES=3"])


@pytest.mark.parametrize(
  ("methods", "without"),
  [
    (["bm25"], {"student_dapt", "student_rd", "reranker", "answer_neural", "answer_rd"}),
    (["rd"], {"student_kard", "reranker", "answer_bm25", "answer_neural"}),
    (["neural", "rd"], {"answer_bm25"}),
    (["bm25", "neural", "rd"], set()),
  ],
)
def test_some_methods_need_some_stages(mine, methods, without):
  planned = recipes.plan(mine)
  kept = names(recipes.for_methods(planned, methods))
  assert kept == [name for name in names(planned) if name not in without]


def test_an_unknown_method_is_told(mine):
  with pytest.raises(InputError, match="method 'kard'; there are bm25, neural, rd"):
    recipes.for_methods(recipes.plan(mine), ["rd", "kard"])


def test_a_reranker_that_no_method_reads_is_kept(mine):
  (mine.parent / "stages/8_answer_neural.gin").unlink()
  assert "reranker" in names(recipes.for_methods(recipes.plan(mine), ["rd"]))


def test_each_value_of_a_sweep_is_a_run_of_its_own(mine):
  points = recipes.sweep(mine, "sweep.gin", ["DATASET='moons'"])
  assert [point.value for point in points] == [1, 2, "all of them"]
  assert [point.workdir for point in points] == [
    f"runs/mine/sweeps/passages/{name}" for name in ("1", "2", "all_of_them")
  ]
  assert points[1].methods == ["bm25"]
  planned = {s.name: s.settings for s in recipes.plan(mine, points[1].overrides)}
  assert planned["student_kard"].value("PASSAGES") == 2
  assert planned["prepare"].value("DATASET") == "moons"
  assert planned["score"].value("SWEEP_VALUE") == 2
  assert planned["score"].value("SWEEP") == "passages"
  assert gin_text.workdir(planned["score"]) == points[1].workdir
  # A value that is the recipe's own changes nothing but the score card.
  plain = {s.name: s.settings.fingerprint() for s in recipes.plan(mine, ["DATASET='moons'"])}
  same = recipes.plan(mine, points[0].overrides)
  assert {s.name for s in same if s.settings.fingerprint() != plain[s.name]} == {"score"}


def test_a_sweep_takes_other_values_and_places(mine):
  others = ["SWEEP_VALUES=[4]", "WORKDIR='elsewhere'"]
  (point,) = recipes.sweep(mine, "sweep.gin", others)
  assert (point.value, point.workdir) == (4, "elsewhere/sweeps/passages/4")
  assert recipes.plan(mine, point.overrides)[2].settings.value("PASSAGES") == 4


@pytest.mark.parametrize(
  ("text", "said"),
  [
    ("SWEEP_VALUES = [1]\nPASSAGES = %SWEEP_VALUE\n", "SWEEP = 'a name' and SWEEP_VALUES"),
    ("SWEEP = 'a'\nSWEEP_VALUES = []\nPASSAGES = %SWEEP_VALUE\n", "are needed"),
    ("SWEEP = 'a'\nSWEEP_VALUES = [1]\nPASSAGES = 2\n", "all runs would be alike"),
    ("SWEEP = 'a'\nSWEEP_VALUES = ['x/y', 'x:y']\nPASSAGES = %SWEEP_VALUE\n", "nearly"),
  ],
)
def test_a_sweep_that_is_none(mine, text, said):
  (mine.parent / "sweep.gin").write_text(text)
  with pytest.raises(InputError, match=said):
    recipes.sweep(mine, "sweep.gin")
