"""Everything that ships works: modules compile, launchers answer, every gin file builds."""

import concurrent.futures
import copy
import dataclasses
import importlib.util
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

from kard_jax.core import config, gin_text, recipes
from launch import answer as answer_launcher
from tasks import features
from tests.convert import folders

ROOT = gin_text.ROOT
GIN = ROOT / "gin_configs"
LAUNCHERS = sorted(path for path in (ROOT / "launch").glob("*.py") if path.stem != "__init__")
MODELS = sorted((GIN / "models").glob("*.gin"))
RECIPES = sorted(path for path in (GIN / "recipes").iterdir() if path.is_dir())
SWEEPS = sorted((GIN / "sweeps").glob("*.gin"))
# What the Hub says of the models that recipes name, for tests without a network.
_T5 = {"model_type": "t5", "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
_OPT = {"model_type": "opt", "num_hidden_layers": 24}
HUB = {
  "google/flan-t5-base": _T5 | {"d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12},
  "google/flan-t5-large": _T5 | {"d_model": 1024, "d_ff": 2816, "num_layers": 24, "num_heads": 16},
  "google/flan-t5-xl": _T5 | {"d_model": 2048, "d_ff": 5120, "num_layers": 24, "num_heads": 32},
  "facebook/opt-350m": _OPT
  | {"hidden_size": 1024, "word_embed_proj_dim": 512, "num_attention_heads": 16, "ffn_dim": 4096}
  | {"do_layer_norm_before": False},
  "facebook/opt-1.3b": _OPT | {"hidden_size": 2048, "num_attention_heads": 32, "ffn_dim": 8192},
  "michiyasunaga/LinkBERT-base": {"model_type": "bert", "vocab_size": 28_996},
  "michiyasunaga/BioLinkBERT-base": {"model_type": "bert", "vocab_size": 28_895},
}
PARAMETERS = {  # millions, as published
  "google/flan-t5-base": 248,
  "google/flan-t5-large": 783,
  "google/flan-t5-xl": 2850,
  "facebook/opt-350m": 331,
  "facebook/opt-1.3b": 1316,
}


def shown(of):
  if isinstance(of, Shipped):
    return f"{of.recipe.name}/{of.name.removesuffix('.gin')}"
  return str(of.relative_to(GIN).with_suffix(""))


@dataclasses.dataclass(frozen=True)
class Shipped:
  """A stage of a recipe."""

  recipe: pathlib.Path
  files: tuple[str, ...]

  @property
  def name(self):
    return pathlib.Path(self.files[0]).name

  @property
  def is_shared(self):
    """Whether other recipes have the stage too."""
    return len(self.files) > 1

  def settings(self):
    return gin_text.resolve(self.files)


STAGES = [Shipped(recipe, tuple(files)) for recipe in RECIPES for files in gin_text.stages(recipe)]
# Recipes of the paper differ in two files, dataset and model: these stages have seen all of both.
EVERY_MODEL = (
  "student_dapt",
  "student_kard",
  "answer_fewshot_cot_passages",
  "answer_kard_reranker",
)
EVERY_DATASET = ("reranker", "student_kard")


def seldom(stages):
  """The stages; slow are those of the paper whose network and settings others have too."""

  def is_slow(stage):
    dataset, _, model = stage.recipe.name.partition("_")
    name = stage.name.partition("_")[2].removesuffix(".gin")
    mine = {"medqa": EVERY_MODEL}.get(dataset, EVERY_DATASET if model == "flan_t5_base" else ())
    all_of_it = model.startswith("tiny") or stage.recipe.name == "medqa_flan_t5_base"
    return stage.is_shared and not all_of_it and name not in mine

  slow = pytest.mark.slow
  return [pytest.param(one, marks=[slow] * is_slow(one), id=shown(one)) for one in stages]


TRAINING = [stage for stage in STAGES if re.match(r"\d+_(student|reranker)", stage.name)]
ANSWERS = [stage for stage in STAGES if re.match(r"\d+_answer", stage.name)]
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


def activate(stage):
  settings = gin_text.resolve_unchecked(stage.files)
  overrides = [
    f"{name}={HUB[settings.value(name)]!r}"
    for name in ("PRETRAINED", "ENCODER")
    if stage.is_shared
    and name in settings.mentioned
    and settings.bindings[name].value.strip("'") in HUB
  ]
  config.activate(gin_text.resolve(stage.files, overrides))


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
      assert ("--gin.NAME" in done.stdout) == (path.stem not in ("search", "convert", "compare"))


def test_every_example_in_a_launcher_is_of_files_that_exist():
  for path in LAUNCHERS:
    for gin_file in re.findall(r"--gin_file=(\S+)", path.read_text().split('"""')[1]):
      assert (ROOT / gin_file).is_file(), f"{path.name}: {gin_file}"


@pytest.mark.parametrize("recipe", RECIPES, ids=shown)
def test_every_stage_of_a_recipe_resolves(recipe):
  plan = recipes.plan(recipe)
  assert all(gin_text.workdir(planned.settings) for planned in plan)
  assert all(planned.settings.fingerprint() for planned in plan)
  assert len({planned.name for planned in plan}) == len(plan)


def test_every_gin_file_is_part_of_some_recipe_or_model():
  """No file below runs/ or in a recipe is left over."""
  text = "\n".join(path.read_text() for path in GIN.rglob("*.gin"))
  included = set(re.findall(r"^include '(.+)'", text, re.MULTILINE))
  of_t5x = {name for name in included if name.startswith("t5x/")}  # in its package, if anywhere
  assert all((ROOT / name).is_file() for name in included - of_t5x)
  shared = {
    *(GIN / "runs").glob("*.gin"),
    *(GIN / "methods").glob("*.gin"),
    *(GIN / "recipes").rglob("*.gin"),
    *(GIN / "t5x").glob("*.gin"),
  }
  given = {ROOT / file for stage in STAGES for file in stage.files}  # to a launcher
  given |= {GIN / "t5x" / "student.gin", GIN / "t5x" / "reranker.gin"}
  assert {str(path.relative_to(ROOT)) for path in shared - given} <= included


def test_the_recipe_of_t5x_changes_who_trains_and_nothing_else():
  if importlib.util.find_spec("t5x") is None:
    pytest.skip("T5X is not installed (docs/t5x.md)")
  plain, t5x = (
    {planned.name: planned.settings.fingerprint() for planned in recipes.plan(GIN / folder)}
    for folder in ("recipes/quickstart", "t5x/quickstart")
  )
  assert plain.keys() == t5x.keys()
  for name, settings in plain.items():
    if not name.startswith(("student", "reranker")):
      assert t5x[name] == settings
      continue
    assert settings.items() < t5x[name].items()
    assert t5x[name]["train.train.by"] == "@t5x_loop.Loop()"


@pytest.mark.parametrize("path", SWEEPS, ids=shown)
def test_every_sweep_changes_some_stages_and_not_others(path):
  """Each value gives other settings to the methods it is about; the knowledge base is made once."""
  is_tiny = path.stem not in ("flan_t5", "opt")
  recipe = GIN / "recipes" / ("openbookqa_tiny" if is_tiny else "openbookqa_flan_t5_base")
  seen = []
  for point in recipes.sweep(recipe, path):
    plan = recipes.for_methods(recipes.plan(recipe, point.overrides), point.methods)
    settings = {planned.name: planned.settings.fingerprint() for planned in plan}
    assert all(settings["index"] == other["index"] for other in seen)
    assert all(settings != other for other in seen)
    seen.append(settings | {"score": {}})
    score = plan[-1].settings
    assert (score.value("SWEEP"), score.value("SWEEP_VALUE")) == (path.stem, point.value) or (
      score.value("SWEEP") == "model" and score.value("SWEEP_VALUE") == point.value
    )
    assert list(score.value("METHODS")) == list(point.methods)
  assert len(seen) > 1


@pytest.mark.parametrize("path", MODELS, ids=shown)
def test_every_model_builds(path, tmp_path):
  text = path.read_text()
  overrides = []
  if path.stem == "pretrained":  # some model's folder
    overrides = [f"PRETRAINED={str(folders.t5(tmp_path / 't5'))!r}"]
  if path.stem == "reranker_pretrained":
    overrides = [f"ENCODER={HUB['michiyasunaga/LinkBERT-base']}"]
  config.activate(gin_text.resolve_unchecked([str(path.relative_to(ROOT))], overrides))
  if re.search("^NETWORK = ", text, re.MULTILINE):
    network = macro("NETWORK")
    params = build(network, *[int32(1, 8)] * (2 if hasattr(network, "encode") else 1))
  else:
    params = build(macro("RERANKER"), int32(1, 8), int32(1, 2, 8))
  assert jax.tree.leaves(params)


FITTING = {"cpu": 1, "cpu_8_devices": 8, "mesh": 8, "gpu_1": 1, "gpu_8": 8, "v4_8": 4, "v5e_8": 8}


@pytest.mark.parametrize(("stem", "count"), FITTING.items())
def test_a_hardware_file_builds_its_mesh(stem, count):
  """Of the machines as large as what the tests have; hardware_test.py looks at all."""
  config.activate(gin_text.resolve_unchecked([f"gin_configs/hardware/{stem}.gin"]))
  partitioner = macro("PARTITIONER").on(jax.devices()[:count])
  names = [names for _, names in partitioner.rules]
  axes = {name for some in names for name in ((some,) if isinstance(some, str) else some)}
  assert axes <= set(partitioner.mesh.axis_names)
  assert partitioner.rows(8) == slice(0, 8)


def check_all_parameters_are_bound(name):
  function = gin.get_configurable(name)
  for parameter in list(inspect.signature(function).parameters.values())[1:]:
    if parameter.default is inspect.Parameter.empty:
      gin.query_parameter(f"{name}.{parameter.name}")


@pytest.mark.parametrize("stage", seldom(STAGES))
def test_every_stage_activates_and_binds_what_its_launcher_needs(stage):
  from launch import run

  activate(stage)
  launcher = run.LAUNCHERS[gin_text.stage_name(stage.settings()).split("_")[0]]
  check_all_parameters_are_bound(f"launch.{launcher}.{launcher}")


@pytest.mark.parametrize("stage", seldom(TRAINING))
def test_every_training_stage_builds_its_loss(stage):
  activate(stage)
  objective, trainer = value("launch.train.train.objective"), value("launch.train.train.trainer")
  lengths = value("launch.train.train.lengths")
  draw = value("launch.train.train.draw") if "reranker" in stage.name else None
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
  model = stage.settings().bindings.get("PRETRAINED")
  if draw is None and model and (published := PARAMETERS.get(model.value.strip("'"))):
    params = jax.eval_shape(lambda some: objective.init(jax.random.key(0), some), abstract)
    assert round(sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6) == published
  assert value("launch.train.train.batch_size") % trainer.partitioner.microbatches == 0


@pytest.mark.parametrize("stage", seldom(ANSWERS))
def test_every_answering_stage_builds_its_networks(stage):
  activate(stage)
  student = value("launch.answer.answer.student")
  if isinstance(student, answer_launcher.Asked):  # its network is elsewhere
    assert student.endpoint.model
    return
  tokens = int32(1, student.input_length), int32(1, student.target_length)
  build(student.network, *(tokens[:1] if features.is_decoder_only(student.network) else tokens))
  positions = getattr(student.network, "max_positions", None)
  if positions and features.is_decoder_only(student.network):
    assert student.input_length + student.target_length <= positions
  assert student.sampler.temperature > 0
  folders = {other.settings().value("FOLDER") for other in TRAINING if other.recipe == stage.recipe}
  # Some stage trains it, or nobody does.
  pretrained = "fewshot" in stage.name and student.folder in HUB.values()
  assert pretrained or student.folder in folders
  if gin.query_parameter("RERANK/gin.macro.value") is not None:
    assert value("launch.answer.neural.folder") in folders
    query, passage = (value(f"launch.answer.neural.{n}_length") for n in ("query", "passage"))
    build(value("launch.answer.neural.network"), int32(1, query), int32(1, 1, passage))


@pytest.mark.parametrize("recipe", RECIPES, ids=shown)
def test_an_answering_stage_has_the_network_and_lengths_that_were_trained(recipe):
  mine = {stage: stage.settings() for stage in STAGES if stage.recipe == recipe}
  answers, training = ({s: mine[s] for s in mine if s in some} for some in (ANSWERS, TRAINING))
  for (stage, answer), trained in itertools.product(answers.items(), training.values()):
    if trained.value("FOLDER") == answer.value("STUDENT"):
      network = ("t5.T5.", "gpt.GPT.", "student/huggingface.")
      same = {"VOCAB_SIZE", "PRETRAINED", "VOCABULARY", "TARGET_LENGTH"}
      # More may be read: positions are relative, or there are more than training needs.
      read = answer.value("answer.Student.input_length")
      assert read >= trained.value("INPUT_LENGTH") or "dapt" in answer.value("STUDENT"), stage
    elif trained.value("FOLDER") == answer.value("RERANKER_FOLDER"):
      network = ("network.", "encoder/huggingface.")
      same = {"VOCAB_SIZE", "ENCODER", "QUERY_LENGTH", "PASSAGE_LENGTH", "RERANKER_VOCABULARY"}
    else:
      continue
    same |= {key for key in trained.bindings if key.startswith(network)}
    if trained.value("TASK") == "dapt":
      same -= {"TARGET_LENGTH"}  # of spans
    values = [{key: settings.bindings.get(key) for key in same} for settings in (trained, answer)]
    trained_values, answer_values = (
      {key: binding.value if binding else "None" for key, binding in some.items()}
      for some in values
    )
    assert trained_values == answer_values, stage


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
