"""From a Hugging Face folder to one: trained wholly or by adapters, answered with, exported."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kard_jax.convert import huggingface, initial
from kard_jax.core import config
from tests import planets
from tests.convert import folders

ROOT = pathlib.Path(__file__).resolve().parents[1]
RECIPE = ROOT / "gin_configs" / "recipes" / "quickstart"
STEPS = 12
T5 = folders.T5["t5_1_1"] | {"vocab_size": 1024, "d_model": 32, "d_kv": 8, "d_ff": 64}
GPT2 = {"model_type": "gpt2", "vocab_size": 1024, "n_positions": 128, "n_embd": 32}
GPT2 |= {"n_layer": 2, "n_head": 4, "tie_word_embeddings": True}
MODELS = {"t5": T5, "gpt2": GPT2}


@pytest.fixture(autouse=True)
def _forget_planets():
  yield
  planets.forget()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """A work directory with all that comes before students, and the module of its dataset."""
  folder = tmp_path_factory.mktemp("prepared")
  module = planets.write(folder / "planets")
  for stage in ("1_prepare", "2_index", "3_teach", "4_ground"):
    launch(stage, f"{RECIPE / stage}.gin", folder / "work", module)
  planets.forget()
  return folder / "work", module


def launch(stage, gin_file, workdir, module, **macros):
  """Runs a stage and returns its exit status."""
  macros = {"DATASET": "planets", "MODULE": str(module), "WORKDIR": str(workdir)} | macros
  overrides = [f"--gin.{name}={value!r}" for name, value in macros.items()]
  return config.launch(stage.split("_")[1], "", [f"--gin_file={gin_file}", *overrides])


def model(folder, name):
  """A Hugging Face folder of random weights, by our own export: no torch."""
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(MODELS[name]))
  network = huggingface.network(folder)
  tokens = [jnp.zeros((1, 8), jnp.int32)] * (2 if name == "t5" else 1)
  params = jax.jit(lambda: network.init(jax.random.key(3), *tokens)["params"])()
  huggingface.export(params, network, folder.parent / "model", like=folder)
  return folder.parent / "model"


def recipe(folder, lora):
  """A student stage and an answering one, as docs/finetuning.md shows them."""
  folder.mkdir()
  (folder / "recipe.gin").write_text("INPUT_LENGTH = 56\nTARGET_LENGTH = 36\nSEED = 0\n")
  stages = {
    "6_student_kard": ("student", "TASK = 'kard'\nFOLDER = 'student/kard'\nLEARNING_RATE = 2e-3\n"),
    "8_answer_kard_bm25": (
      "answer",
      "STUDENT = 'student/kard'\nRETRIEVE = @answer.bm25\nSAMPLES = 2\n",
    ),
  }
  for stage, (run, macros) in stages.items():
    files = ["models/pretrained", f"runs/{run}", "hardware/cpu"]
    files += ["runs/lora"] if lora and run == "student" else []
    text = "from __gin__ import dynamic_registration\nfrom launch import answer\n"
    text += "".join(f"include 'gin_configs/{file}.gin'\n" for file in files)
    text += f"include '{folder}/recipe.gin'\n{macros}"
    (folder / f"{stage}.gin").write_text(text)
  return folder


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
@pytest.mark.parametrize("name", MODELS)
def test_from_a_hugging_face_folder_to_one(prepared, tmp_path, name, lora, capfd):
  base, module = prepared
  workdir = tmp_path / "work"
  workdir.mkdir()
  for path in base.iterdir():  # what earlier stages made
    (workdir / path.name).symlink_to(path)
  source = model(tmp_path / "like", name)
  gin = recipe(tmp_path / "recipe", lora)
  macros = {"PRETRAINED": str(source), "DTYPE": "float32"}
  training = macros | {"INITIAL": str(source), "STEPS": STEPS, "BATCH_SIZE": 8, "SAVE_EVERY": 6}
  training |= {"EVALUATE_EVERY": 6, "LOG_EVERY": 1, "WARMUP": 0.0}
  student = ("student", gin / "6_student_kard.gin", workdir, module)

  def train(**changes):
    planets.forget()
    return launch("6_train", *student[1:], **(training | changes))

  assert train() == 0
  rows = (workdir / "student/kard/metrics.jsonl").read_text().splitlines()
  losses = [json.loads(row)["train/loss"] for row in rows if "train/loss" in row]
  assert len(losses) == STEPS
  assert np.mean(losses[-3:]) < np.mean(losses[:3])
  out, _ = capfd.readouterr()
  assert ("parameters are trained" in out) == lora
  record = json.loads((workdir / "student_kard.meta.json").read_text())
  assert f"{source}/model.safetensors" in record["origins"]
  assert train() == 0
  assert "done before" in capfd.readouterr().out
  planets.forget()
  assert launch("8_answer", gin / "8_answer_kard_bm25.gin", workdir, module, **macros) == 0
  answers = (workdir / "predictions/kard_bm25.jsonl").read_text().splitlines()
  assert len(answers) == 20  # of the planets' test questions
  network = huggingface.network(source)
  params = initial.load(initial.find(workdir / "student/kard"), network)
  huggingface.export(params, network, tmp_path / "out", like=source)
  again = huggingface.load(tmp_path / "out", network)
  jax.tree.map(np.testing.assert_array_equal, again, params)
  before = huggingface.load(source, network)
  changed = [
    path
    for path, leaf in huggingface.flatten(before).items()
    if (leaf != huggingface.flatten(params)[path]).any()
  ]
  assert changed
  if lora:
    assert {path.split("/")[-2] for path in changed} == {"query", "value"}
    return
  # A whole run goes on, and counts as done, without the model that it began from.
  source.rename(tmp_path / "gone")
  planets.forget()
  assert train(PRETRAINED=str(tmp_path / "gone")) == 2  # other settings
  (workdir / "student_kard.meta.json").unlink()
  (tmp_path / "gone").rename(source)
  (source / "model.safetensors").rename(tmp_path / "weights")
  assert train() == 0
  assert "student_kard: " in capfd.readouterr().out
