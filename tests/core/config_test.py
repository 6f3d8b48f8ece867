"""Configurations: what wins, what is misspelt, what decides the outputs; how a launcher ends."""

import subprocess
import sys
import types

import gin
import pytest

import launch
from kard_jax.core import config, gin_text
from kard_jax.core.files import InputError

FAKE = """\
from __gin__ import dynamic_registration
from launch import fake

TEXT = 'a'
COUNT = %gin.REQUIRED
fake.fake.text = %TEXT
fake.fake.count = %COUNT
"""


def fake(stage, *, text, count=1):
  """A stage that a launcher could run."""
  if text == "bad":
    raise InputError("questions.jsonl:3: no options\n  in two lines")
  if text == "bug":
    raise RuntimeError("a bug")
  stage.writes("out.txt").write_text(text * count)


_MODULE = types.ModuleType("launch.fake")
_MODULE.fake = fake
fake.__module__ = "launch.fake"


@pytest.fixture
def write(tmp_path, monkeypatch):
  """Writes gin files into an empty current directory."""
  monkeypatch.chdir(tmp_path)

  def call(**texts):
    for name, text in texts.items():
      (tmp_path / f"{name}.gin").write_text(text)

  return call


@pytest.fixture
def run(write, monkeypatch):
  """Runs the launcher of `fake` under a gin file of it; gives its exit status."""
  monkeypatch.setitem(sys.modules, "launch.fake", _MODULE)
  monkeypatch.setattr(launch, "fake", _MODULE, raising=False)
  write(stage=FAKE)
  given = ["--gin_file=stage.gin", "--gin.WORKDIR='work'"]
  return lambda *flags: config.launch("fake", "A fake.", [*given, *flags])


def values(*arguments):
  return {
    key: binding.value for key, binding in gin_text.resolve_unchecked(*arguments).bindings.items()
  }


def error_of(*arguments):
  with pytest.raises(InputError) as caught:
    gin_text.resolve(*arguments)
  return str(caught.value)


def test_what_comes_later_wins_and_an_include_stands_where_it_is(write):
  write(
    base="A = 1\nB = 1\nC = 1\n",
    recipe="A = 2\ninclude 'base.gin'\nB = 2\n",
    last="C = 4\n",
  )
  assert values(["recipe.gin"]) == {"A": "1", "B": "2", "C": "1"}
  assert values(["recipe.gin", "last.gin"])["C"] == "4"
  assert values(["recipe.gin", "last.gin"], ["C=5"])["C"] == "5"
  assert values(["recipe.gin"], ["C=5", "C = 6", "x.Y.z=%A"]) | {"A": 0} == {
    "A": 0,
    "B": "2",
    "C": "6",
    "x.Y.z": "%A",
  }


def test_gin_reads_the_files_as_the_text_says(run):
  assert run("--gin.COUNT=3", "--gin.TEXT='b'") == 0
  assert gin.query_parameter("launch.fake.fake.count").scoped_configurable_fn() == 3


def test_a_value_is_literal_or_follows_macros(write):
  write(a="A = %B\nB = ('x', 2)\nC = @f()\nf.a = %A\nf.c = %C\n")
  settings = gin_text.resolve(["a.gin"])
  assert settings.value("A") == ("x", 2)
  assert settings.value("NONE") is None
  with pytest.raises(InputError, match=r"a\.gin:3: a plain value is needed, this is @f\(\)"):
    settings.value("C")


def test_a_misspelt_macro_is_told_with_its_line_and_a_near_name(write):
  write(a="f.x = %LEARNING_RATE\nLEARNING_RATE = 1\n\nLERNING_RATE = 2\n")
  assert error_of(["a.gin"]) == (
    "a.gin:4: nothing uses the macro LERNING_RATE; did you mean LEARNING_RATE?"
  )


def test_a_misspelt_override_is_told(write):
  write(a="f.x = %STEPS\nSTEPS = 1\n")
  assert error_of(["a.gin"], ["STEP=2"]) == (
    "--gin.STEP=2: nothing uses the macro STEP; did you mean STEPS?"
  )
  assert error_of(["a.gin"], ["QQQQ=2"]) == "--gin.QQQQ=2: nothing uses the macro QQQQ"


def test_a_macro_that_is_used_but_not_bound_is_told(write):
  write(a="f.x = %STEP\nf.y = [1, {'a': %STEPS}]\nSTEPS = 1\n")
  assert error_of(["a.gin"]) == "a.gin:1: f.x uses %STEP, bound nowhere; did you mean STEPS?"


def test_a_required_macro_is_named(write):
  write(a="f.x = %STEPS\nSTEPS = %gin.REQUIRED\n")
  assert error_of(["a.gin"]) == "a.gin:2: set STEPS, in a recipe or as --gin.STEPS=..."
  assert gin_text.resolve(["a.gin"], ["STEPS=3"]).value("STEPS") == 3


def test_macros_shared_with_sibling_stages_are_fine_misspelt_ones_are_not(write):
  write(
    **{"1_a": "f.x = %A\ninclude 'recipe.gin'\n", "2_b": "f.x = %B\ninclude 'recipe.gin'\n"},
    recipe="A = 1\nB = 2\n",
  )
  assert gin_text.resolve(["1_a.gin"]).value("B") == 2
  write(recipe="A = 1\nB = 2\nBB = 3\n")
  assert error_of(["1_a.gin"]).startswith("recipe.gin:3: nothing uses the macro BB")
  write(recipe="A = 1\nB = 2\n")
  assert "nothing uses the macro BB" in error_of(["1_a.gin"], ["BB=3"])
  settings = gin_text.resolve(["1_a.gin"], ["B=3", "A=2", "WORKDIR='w'"])
  assert gin_text.idle_overrides(settings) == ["B"]  # which the launcher tells
  assert settings.fingerprint() == {"f.x": "%A", "A": "2"}


def test_includes_that_cannot_be_read(write):
  write(me="A = 1\ninclude 'you.gin'\n", you="include 'me.gin'\n", a="\ninclude 'none.gin'\n")
  assert error_of(["me.gin"]) == "you.gin:1: me.gin includes itself"
  assert error_of(["a.gin"]).startswith("a.gin:2: none.gin: no such gin file")
  assert error_of(["none.gin"]).startswith("none.gin: no such gin file")


@pytest.mark.parametrize(
  ("text", "said"),
  [
    ("A = 1\nB = \n", "a.gin:2: not a gin statement"),
    ("A = runs\n", "a.gin:1: not a gin statement"),
    ("A = [1,\n", "a bracket or quote stays open"),
    ("A = '''x\n", "a.gin:1: a bracket or quote stays open"),
    ("A = '\udcff'\n", "a.gin: not UTF-8"),
  ],
)
def test_what_is_not_gin_is_told_in_one_line(write, tmp_path, text, said):
  (tmp_path / "a.gin").write_bytes(text.encode(errors="surrogateescape"))
  message = error_of(["a.gin"])
  assert said in message
  assert "\n" not in message


def test_an_unquoted_text_gets_the_hint(write):
  write(a="f.x = %FOLDER\nFOLDER = ''\n")
  for value in ("runs/mine", "[1"):
    assert error_of(["a.gin"], [f"FOLDER={value}"]) == (
      f"--gin.FOLDER={value}: not a gin value. Text needs quotes inside quotes: "
      f"--gin.FOLDER=\"'{value}'\""
    )
  assert error_of(["a.gin"], ["FOLDER"]) == "--gin.FOLDER: needs =value"


@pytest.mark.parametrize(
  ("line", "said"),
  [
    ("t5.T5.embed_dims = 3", "embed_dims"),
    ("t5.T6.embed_dim = 3", "T6"),
    ("from kard_jax.student import t6", "t6"),
    ("from kard_jax.studnt import t5", "studnt"),
    ("objective.TokenCrossEntropy.z_loss = 0", "objective"),
  ],
)
def test_what_gin_does_not_know_is_bad_input(write, line, said):
  header = "from __gin__ import dynamic_registration\nfrom kard_jax.student import t5\n"
  write(a=f"{header}{line}\n")
  with pytest.raises(InputError, match=said) as caught:
    config.activate(gin_text.resolve(["a.gin"]))
  assert "\n" not in str(caught.value)


def test_the_fingerprint_holds_what_reaches_a_parameter_and_not_the_workdir(write):
  write(
    **{"1_a": "f.x = [%A, %WORKDIR]\ninclude 'r.gin'\n", "2_b": "f.x = %C\n"},
    r="A = %B\nB = 2\nC = 3\nWORKDIR = 'w'\n",
  )
  assert gin_text.resolve(["1_a.gin"]).fingerprint() == {
    "f.x": "[%A, %WORKDIR]",
    "A": "%B",
    "B": "2",
  }


def test_stages_are_in_the_order_of_their_numbers(write, tmp_path):
  write(**{"10_score": "", "2_index": "", "1_prepare": "", "recipe": ""})
  names = [path.name for path in gin_text.stage_files(tmp_path)]
  assert names == ["1_prepare.gin", "2_index.gin", "10_score.gin"]
  assert gin_text.stage_name(gin_text.resolve(["10_score.gin"])) == "score"


def test_the_workdir_must_be_a_text(write):
  write(a="WORKDIR = 3\n", b="")
  for name in ("a.gin", "b.gin"):
    with pytest.raises(InputError, match=f"{name}: set WORKDIR"):
      gin_text.workdir(gin_text.resolve([name]))


def test_overrides_take_their_value_after_a_space_too():
  flags = config.parser("")
  arguments, overrides = config.parse_arguments(
    flags,
    ["--gin.A", "1", "--gin_file", "x.gin", "--gin.f.b=[1, 2]", "--gin_file=y.gin", "--gin.C"],
  )
  assert overrides == ["A=1", "f.b=[1, 2]", "C="]
  assert arguments.gin_file == ["x.gin", "y.gin"]


def test_a_stage_runs_once_and_again_when_told(run, capsys, tmp_path):
  assert run("--gin.COUNT", "2") == 0
  out = tmp_path / "work" / "out.txt"
  assert out.read_text() == "aa"
  before = out.stat().st_mtime_ns
  assert run("--gin.COUNT=2") == 0
  assert out.stat().st_mtime_ns == before
  assert "stage: done before" in capsys.readouterr().out
  assert run("--gin.COUNT=3") == 2
  assert "COUNT = 2, now 3" in capsys.readouterr().err
  assert run("--gin.COUNT=3", "--redo") == 0
  assert out.read_text() == "aaa"
  assert '"operative_config": "' in (tmp_path / "work" / "stage.meta.json").read_text()


@pytest.mark.parametrize(
  ("flag", "said"),
  [
    ("--gin.COUNTS=2", "did you mean COUNT?"),
    ("--gin.TEXT='bad'", "questions.jsonl:3: no options in two lines"),
    ("--gin.fake.fake.size=2", "size"),
    ("--gin.WORKDIR=''", "set WORKDIR"),
  ],
)
def test_bad_input_ends_with_status_2_and_one_line(run, capsys, flag, said):
  assert run("--gin.COUNT=1", flag) == 2
  message = capsys.readouterr().err
  assert message.startswith("error: ")
  assert said in message
  assert message.count("\n") == 1


def test_a_bug_is_no_bad_input(run):
  with pytest.raises(RuntimeError, match="a bug"):
    run("--gin.COUNT=1", "--gin.TEXT='bug'")


def test_without_a_gin_file_the_usage_is_shown(capsys):
  with pytest.raises(SystemExit) as ended:
    config.launch("fake", "", [])
  assert ended.value.code == 2
  assert "--gin_file is needed" in capsys.readouterr().err


def test_a_launcher_tells_bad_input_without_a_traceback():
  gin_file = "--gin_file=gin_configs/recipes/quickstart/9_score.gin"
  done = subprocess.run(
    [sys.executable, "launch/score.py", gin_file, "--gin.TITEL='x'"],
    capture_output=True,
    text=True,
    cwd=gin_text.ROOT,
    check=False,
  )
  assert done.returncode == 2
  assert done.stderr == (
    "error: --gin.TITEL='x': nothing uses the macro TITEL; did you mean TITLE?\n"
  )


def test_a_stage_alone_takes_what_the_whole_recipe_takes(tmp_path):
  done = subprocess.run(
    [
      sys.executable,
      "launch/score.py",
      "--gin_file=gin_configs/methods/9_score.gin",
      "--gin_file=gin_configs/recipes/openbookqa_tiny/recipe.gin",
      "--gin.SOURCE='x'",
      f"--gin.WORKDIR='{tmp_path}'",
    ],
    capture_output=True,
    text=True,
    cwd=gin_text.ROOT,
    check=False,
  )
  assert done.stdout.startswith("note: --gin.SOURCE changes nothing here; other stages use it\n")
  assert "questions/test.jsonl: no such file" in done.stderr


_T5X_FILES = {
  **dict.fromkeys([f"t5x/{place}__init__.py" for place in ("", "configs/", "configs/runs/")], ""),
  "t5x/configs/runs/run.gin": """\
from __gin__ import dynamic_registration
import __main__ as faked_script
BATCH_SIZE = 128
MODEL = %gin.REQUIRED
faked_script.train.model = %MODEL
faked_script.train.batch_size = %BATCH_SIZE
""",
}
LAYER = """\
from __gin__ import dynamic_registration
from launch import fake
from t5x import train as faked_train
include 't5x/configs/runs/run.gin'
MODEL = None
fake.fake.text = @faked_train.train
"""


def faked_train(model=None, batch_size=0):
  """T5X's `train`; gin keeps the first that it has seen."""
  return batch_size


_TRAIN = types.ModuleType("t5x.train")
_TRAIN.train = faked_train


@pytest.fixture
def t5x(tmp_path, monkeypatch):
  """A package in T5X's place, whether it is installed or not."""
  for name in [name for name in sys.modules if name.split(".")[0] == "t5x"]:
    monkeypatch.delitem(sys.modules, name)
  for name, text in _T5X_FILES.items():
    path = tmp_path / "site" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
  monkeypatch.syspath_prepend(str(tmp_path / "site"))
  monkeypatch.setitem(sys.modules, "t5x.train", _TRAIN)
  monkeypatch.setattr(sys.modules["__main__"], "train", None, raising=False)
  yield
  for name in [name for name in sys.modules if name.split(".")[0] == "t5x"]:
    del sys.modules[name]


@pytest.mark.parametrize("files", [["layer.gin", "1_stage.gin"], ["1_stage.gin", "layer.gin"]])
def test_what_t5x_sets_is_a_default_wherever_its_file_is_given(run, write, t5x, files):
  write(layer=LAYER, **{"1_stage": "BATCH_SIZE = 8\n"})
  settings = gin_text.resolve(files)
  assert settings.value("BATCH_SIZE") == 8
  assert gin_text.resolve(["layer.gin"]).value("BATCH_SIZE") == 128
  assert gin_text.resolve(files, ["BATCH_SIZE=4"]).value("BATCH_SIZE") == 4
  assert gin_text.stage_name(settings) == "stage"
  config.activate(settings)
  train = gin.query_parameter("launch.fake.fake.text").configurable.wrapper
  assert train() == 8  # T5X's own `train`, by its run file's `__main__`


def test_what_t5x_requires_must_be_bound(write, t5x):
  write(layer=LAYER.replace("MODEL = None\n", ""))
  with pytest.raises(InputError, match=r"t5x/configs/runs/run.gin:4: set MODEL"):
    gin_text.resolve(["layer.gin"])


def test_a_missing_t5x_is_told_with_the_command(run, write, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "t5x", None)
  write(layer=LAYER)
  assert run("--gin_file=layer.gin") == 2
  error = capsys.readouterr().err
  assert error.startswith("error: layer.gin:4: T5X is not installed.")
  assert "pip install --no-deps -r requirements-t5x.txt (docs/t5x.md)" in error


def test_a_t5x_without_its_needs_is_told_with_the_command(
  run, write, t5x, tmp_path, monkeypatch, capsys
):
  monkeypatch.delitem(sys.modules, "t5x.train")
  (tmp_path / "site" / "t5x" / "train.py").write_text("import no_such_airio\n")
  write(layer=LAYER)
  assert run("--gin_file=layer.gin", "--gin.COUNT=1") == 2
  error = capsys.readouterr().err
  assert "T5X cannot be imported (No module named 'no_such_airio')" in error
  assert "requirements-t5x.txt" in error
