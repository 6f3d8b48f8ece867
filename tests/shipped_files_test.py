"""Everything that ships works: modules compile, launchers answer, every gin file builds."""

import concurrent.futures
import copy
import inspect
import itertools
import os
import pathlib
import re
import subprocess
import sys

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kard_jax.core import config
from tasks import features
from tests.convert import folders

ROOT = config.ROOT
GIN = ROOT / "gin_configs"
LAUNCHERS = sorted(path for path in (ROOT / "launch").glob("*.py") if path.stem != "__init__")
MODELS = sorted((GIN / "models").glob("*.gin"))
RECIPES = sorted(path for path in (GIN / "recipes").iterdir() if path.is_dir())
STAGES = [path for recipe in RECIPES for path in config.stage_files(recipe)]
TRAINING = [path for path in STAGES if re.match(r"\d+_(student|reranker)", path.name)]
ANSWERS = [path for path in STAGES if re.match(r"\d+_answer", path.name)]
# Run with --help, then says whether something heavy was imported for it.
HELP = """
import runpy, sys
sys.argv = [sys.argv[1], "--help"]
status = None
try:
  runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as ended:
  status = ended.code
heavy = [name for name in ("jax", "tensorflow", "seqio") if name in sys.modules]
sys.exit(f"status {status}, imported {heavy}" if status or heavy else 0)
"""


def shown(path):
  return str(path.relative_to(GIN).with_suffix(""))


def activate(path):
  config.activate(config.resolve([str(path)]))


def value(parameter):
  """What gin would pass as a parameter: references are called, macros followed."""
  return copy.deepcopy(gin.query_parameter(parameter))


def macro(name):
  return value(f"{name}/gin.macro.value")


def int32(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.int32)


def float32(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def batch_of(lengths, draw, network, pack, rows=2):
  """A batch as the feature converters make it, in shapes alone."""
  if draw is None:
    decoder_only = features.is_decoder_only(network)
    return features.student_shapes(lengths, rows, decoder_only=decoder_only, pack=pack)
  lists = (rows, sum(draw))
  return {
    "query_tokens": int32(rows, lengths["query"]),
    "passage_tokens": int32(*lists, lengths["passages"]),
    "passage_scores": float32(*lists),
    "passage_mask": jax.ShapeDtypeStruct(lists, jnp.bool_),
  }


def build(network, *inputs):
  return jax.eval_shape(network.init, jax.random.key(0), *inputs)["params"]


def test_every_module_compiles():
  for folder in ("kard_jax", "tasks", "launch", "tests", "benchmarks"):
    for path in sorted((ROOT / folder).rglob("*.py")):
      compile(path.read_text(), path, "exec")


def test_every_launcher_answers_help_at_once():
  def ask(path):
    return subprocess.run(
      [sys.executable, "-c", HELP, str(path)], capture_output=True, text=True, check=False
    )

  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    for path, done in zip(LAUNCHERS, pool.map(ask, LAUNCHERS), strict=True):
      assert done.returncode == 0, f"{path.name}: {done.stderr}"
      assert f"python launch/{path.name} " in done.stdout  # an example to copy
      # Those that are no stage of a recipe take no gin.
      assert ("--gin.NAME" in done.stdout) == (path.stem not in ("search", "convert"))


def test_every_example_in_a_launcher_is_of_files_that_exist():
  for path in LAUNCHERS:
    for gin_file in re.findall(r"--gin_file=(\S+)", path.read_text().split('"""')[1]):
      assert (ROOT / gin_file).is_file(), f"{path.name}: {gin_file}"


@pytest.mark.parametrize("path", STAGES, ids=shown)
def test_every_stage_resolves(path):
  settings = config.resolve([str(path)])
  assert config.workdir(settings)
  assert settings.fingerprint()


def test_every_gin_file_is_part_of_some_recipe_or_model():
  """No file below runs/ or in a recipe is left over."""
  text = "\n".join(path.read_text() for path in GIN.rglob("*.gin"))
  included = set(re.findall(r"^include '(.+)'", text, re.MULTILINE))
  assert all((ROOT / name).is_file() for name in included)
  shared = {*(GIN / "runs").glob("*.gin"), *(GIN / "recipes").rglob("*.gin")} - set(STAGES)
  assert {str(path.relative_to(ROOT)) for path in shared} <= included


@pytest.mark.parametrize("path", MODELS, ids=shown)
def test_every_model_builds(path, tmp_path):
  text = path.read_text()
  overrides = []
  if path.stem == "pretrained":  # some model's folder
    overrides = [f"PRETRAINED={str(folders.t5(tmp_path / 't5'))!r}"]
  config.activate(config.resolve_unchecked([str(path.relative_to(ROOT))], overrides))
  if re.search("^NETWORK = ", text, re.MULTILINE):
    network = macro("NETWORK")
    params = build(network, *[int32(1, 8)] * (2 if hasattr(network, "encode") else 1))
  else:
    params = build(macro("RERANKER"), int32(1, 8), int32(1, 2, 8))
  assert jax.tree.leaves(params)


@pytest.mark.parametrize("path", sorted((GIN / "hardware").glob("*.gin")), ids=shown)
def test_every_hardware_file_builds_its_mesh(path):
  config.activate(config.resolve_unchecked([str(path.relative_to(ROOT))]))
  partitioner = macro("PARTITIONER")
  if path.stem == "cpu":  # the tests have eight devices
    partitioner = type(partitioner)(partitioner.axes, partitioner.rules, devices=1)
  assert {axis for _, axis in partitioner.rules} <= set(partitioner.mesh.axis_names)
  assert partitioner.rows(8) == slice(0, 8)


def check_all_parameters_are_bound(name):
  function = gin.get_configurable(name)
  for parameter in list(inspect.signature(function).parameters.values())[1:]:
    if parameter.default is inspect.Parameter.empty:
      gin.query_parameter(f"{name}.{parameter.name}")


@pytest.mark.parametrize("path", STAGES, ids=shown)
def test_every_stage_activates_and_binds_what_its_launcher_needs(path):
  from launch import run

  settings = config.resolve([str(path)])
  config.activate(settings)
  launcher = run.LAUNCHERS[config.stage_name(settings).split("_")[0]]
  check_all_parameters_are_bound(f"launch.{launcher}.{launcher}")


@pytest.mark.parametrize("path", TRAINING, ids=shown)
def test_every_training_stage_builds_its_loss(path):
  activate(path)
  objective, trainer = value("launch.train.train.objective"), value("launch.train.train.trainer")
  lengths = value("launch.train.train.lengths")
  draw = value("launch.train.train.draw") if "reranker" in path.name else None
  pack = draw is None and value("launch.train.train.pack")
  batch = batch_of(lengths, draw, objective.network, pack)
  if draw is not None:  # the objective also reads the scores' and masks' real values
    batch |= {"passage_scores": np.ones((2, sum(draw)), np.float32)}
    batch |= {"passage_mask": np.ones((2, sum(draw)), bool)}

  def loss_and_state(batch):
    params = objective.init(jax.random.key(0), batch)
    state = trainer.optimizer(trainer.steps).init(params)
    unboxed = jax.tree.map(
      lambda box: box.value, params, is_leaf=lambda leaf: hasattr(leaf, "names")
    )
    return objective.loss(unboxed, batch, jax.random.key(1)), state

  abstract = {k: v for k, v in batch.items() if isinstance(v, jax.ShapeDtypeStruct)}
  fixed = {k: v for k, v in batch.items() if k not in abstract}
  loss, _ = jax.eval_shape(lambda some: loss_and_state(some | fixed), abstract)
  assert loss.total.shape == loss.weight.shape == ()
  assert value("launch.train.train.batch_size") % trainer.partitioner.microbatches == 0


@pytest.mark.parametrize("path", ANSWERS, ids=shown)
def test_every_answering_stage_builds_its_networks(path):
  activate(path)
  student = value("launch.answer.answer.student")
  tokens = int32(1, student.input_length), int32(1, student.target_length)
  build(student.network, *(tokens[:1] if features.is_decoder_only(student.network) else tokens))
  assert student.sampler.temperature > 0
  stages = [config.resolve([str(stage)]) for stage in TRAINING if stage.parent == path.parent]
  folders = {stage.value("FOLDER") for stage in stages}
  assert student.folder in folders  # some stage trains it
  if gin.query_parameter("RERANK/gin.macro.value") is not None:
    assert value("launch.answer.neural.folder") in folders
    query, passage = (value(f"launch.answer.neural.{n}_length") for n in ("query", "passage"))
    build(value("launch.answer.neural.network"), int32(1, query), int32(1, 1, passage))


def test_an_answering_stage_has_the_network_and_lengths_that_were_trained():
  settings = {path: config.resolve([str(path)]) for path in [*ANSWERS, *TRAINING]}
  for answer_path, path in itertools.product(ANSWERS, TRAINING):
    if answer_path.parent != path.parent:
      continue
    answer, trained = settings[answer_path], settings[path]
    if trained.value("FOLDER") == answer.value("STUDENT"):
      network, same = ("t5.T5.", "gpt.GPT."), {"VOCAB_SIZE", "TARGET_LENGTH"}
      # More may be read: positions are relative.
      assert answer.value("INPUT_LENGTH") >= trained.value("INPUT_LENGTH"), answer_path
    elif trained.value("FOLDER") == answer.value("RERANKER_FOLDER"):
      network, same = "network.", {"VOCAB_SIZE", "QUERY_LENGTH", "PASSAGE_LENGTH"}
    else:
      continue
    same |= {key for key in trained.bindings if key.startswith(network)}
    trained_values = {key: trained.bindings[key].value for key in same}
    assert trained_values == {key: answer.bindings[key].value for key in same}, answer_path


def test_no_gin_file_names_a_place_on_some_machine():
  for path in GIN.rglob("*.gin"):
    code = "\n".join(line.split("#")[0] for line in path.read_text().splitlines())
    assert not re.search(r"'(/|~)", code), path


def test_what_is_packaged_is_what_is_there():
  text = (ROOT / "pyproject.toml").read_text()
  listed = set(re.search(r"packages = (\[.+\])", text)[1].strip("[]").replace('"', "").split(", "))
  packages = {
    ".".join(path.parent.relative_to(ROOT).parts)
    for folder in ("kard_jax", "tasks", "launch")
    for path in (ROOT / folder).rglob("__init__.py")
  }
  assert listed == packages
  assert pathlib.Path(ROOT / "kard_jax" / "report.html").is_file()
