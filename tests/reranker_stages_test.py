"""The reranker from training to ranking: a T5 encoder, adapters on a BERT, stored vectors."""

import copy
import json
import pathlib

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kard_jax import questions
from kard_jax.convert import huggingface, initial
from kard_jax.core import config, files, gin_text
from kard_jax.core.provenance import Stage
from kard_jax.reranker import network, store
from launch import answer, convert, rerank
from tests import planets

ROOT = pathlib.Path(__file__).resolve().parents[1]
QUICKSTART = ROOT / "gin_configs" / "recipes" / "quickstart"
STEPS = 20
LENGTHS = {"QUERY_LENGTH": 24, "PASSAGE_LENGTH": 24}
BERT = {"vocab_size": 1024, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT |= {"intermediate_size": 24, "max_position_embeddings": 32}
MODEL = {
  "bert": """
network.LateInteraction.encoder = @bert.Bert()
network.LateInteraction.projection_dim = 8
bert.Bert.vocab_size = 1_024
bert.Bert.embed_dim = 16
bert.Bert.num_layers = 2
bert.Bert.num_heads = 2
bert.Bert.mlp_dim = 24
bert.Bert.max_positions = 32
RERANKER = @network.LateInteraction()
""",
  "t5": f"include '{ROOT}/gin_configs/models/reranker_tiny.gin'\n",
}
IMPORTS = """from __gin__ import dynamic_registration
from kard_jax.reranker import bert, network, objective
"""


@pytest.fixture(autouse=True)
def _forget_planets():
  yield
  planets.forget()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """A work directory with all that comes before the reranker, and the module of its dataset."""
  folder = tmp_path_factory.mktemp("prepared")
  module = planets.write(folder / "planets")
  for stage in ("1_prepare", "2_index", "3_teach", "4_ground"):
    assert launch(stage.split("_")[1], f"{QUICKSTART / stage}.gin", folder / "work", module) == 0
  planets.forget()
  return folder / "work", module


def macros_of(workdir, module, **macros):
  macros = {"DATASET": "planets", "MODULE": str(module), "WORKDIR": str(workdir)} | macros
  return [f"--gin.{name}={value!r}" for name, value in macros.items()]


def launch(launcher, gin_file, workdir, module, **macros):
  """Runs a stage and returns its exit status."""
  planets.forget()
  argv = [f"--gin_file={gin_file}", *macros_of(workdir, module, **macros)]
  return config.launch(launcher, "", argv)


def copied(prepared, tmp_path):
  base, module = prepared
  workdir = tmp_path / "work"
  workdir.mkdir()
  for path in base.iterdir():
    (workdir / path.name).symlink_to(path)
  return workdir, module


def recipe(folder, model, more=""):
  """The stages that train and use a reranker."""
  folder.mkdir()
  hardware = "include 'gin_configs/hardware/cpu.gin'\n"
  lengths = "".join(f"{name} = {value}\n" for name, value in LENGTHS.items())
  head = (
    IMPORTS.replace(
      "bert, network, objective",
      "bert\nfrom kard_jax.reranker import network\nfrom kard_jax.reranker import objective",
    )
    + MODEL[model]
  )
  training = f"""{head}include 'gin_configs/runs/reranker.gin'
{hardware}{lengths}SEED = 0
FOLDER = 'reranker'
STEPS = {STEPS}
BATCH_SIZE = 8
LEARNING_RATE = 2e-3
WARMUP = 0.0
LOG_EVERY = 1
SAVE_EVERY = {STEPS}
EVALUATE_EVERY = {STEPS}
RATIONALE_TAU = 2.0
{more}"""
  ranking = f"""{head}include 'gin_configs/runs/rerank_lists.gin'
{hardware}{lengths}SPLIT = 'test'
CHECKPOINT = 'latest'
"""
  (folder / "5_reranker.gin").write_text(training)
  (folder / "6_rerank.gin").write_text(ranking)
  return folder


def losses(workdir):
  rows = map(json.loads, (workdir / "reranker/metrics.jsonl").read_text().splitlines())
  return [row["train/loss"] for row in rows if "train/loss" in row]


@pytest.mark.slow
def test_a_t5_encoder_trains_stores_and_ranks(prepared, tmp_path, capsys):
  workdir, module = copied(prepared, tmp_path)
  recipe_of = recipe(tmp_path / "recipe", "t5")
  assert launch("train", recipe_of / "5_reranker.gin", workdir, module) == 0
  assert np.mean(losses(workdir)[-5:]) < np.mean(losses(workdir)[:5])
  assert launch("rerank", recipe_of / "6_rerank.gin", workdir, module) == 0
  rows = [row for _, row in files.read_jsonl(workdir / "reranking.jsonl")]
  assert len(rows) == 20
  assert {row["reference"] for row in rows} == {"rationale"}
  # The same lists by itself: with texts, then by vectors, twice.
  texts = {row["id"]: row for row in planets_passages(module)}
  lists = [
    {"question": f"Which metal would a miner dig up on {id.split('/')[0]}?", "passages": some}
    for id, some in ((row["passages"][0], [texts[id] for id in row["passages"]]) for row in rows)
  ]
  files.write_jsonl(tmp_path / "lists.jsonl", lists)
  files.write_jsonl(
    tmp_path / "ids.jsonl",
    [row | {"passages": [{"id": p["id"]} for p in row["passages"]]} for row in lists],
  )

  def alone(name, *flags):
    planets.forget()
    out = tmp_path / f"out_{name}"
    given = [f"--gin_file={recipe_of / '6_rerank.gin'}", *macros_of(workdir, module)]
    given += [f"--lists={tmp_path / name}.jsonl", f"--out={out}", *flags]
    assert rerank.main(given) == 0
    return [row["passages"] for _, row in files.read_jsonl(out)]

  by_text = alone("lists")
  capsys.readouterr()
  vectors = f"--vectors={tmp_path / 'vectors'}"
  by_vectors = alone("ids", vectors)
  assert "80 passages encoded" in capsys.readouterr().out
  assert alone("ids", vectors) == by_vectors
  assert "encoded" not in capsys.readouterr().out
  want = [{p["id"]: p["score"] for p in row} for row in by_text]
  mine = [{p["id"]: p["score"] for p in row} for row in by_vectors]
  assert [row.keys() for row in mine] == [row.keys() for row in want]
  pairs = [(row[id], like[id]) for row, like in zip(mine, want, strict=True) for id in like]
  scores, exact = np.array(pairs).T
  np.testing.assert_allclose(scores, exact, atol=0.02 * np.abs(exact).max())
  assert np.std(exact) > 0.05
  assert all(row == sorted(row, key=lambda p: -p["score"]) for row in by_vectors)
  check_answering(workdir)


def check_answering(workdir):
  """Answering reranks alike with vectors and without; of the stage that gin has active."""
  value = lambda name: copy.deepcopy(gin.query_parameter(f"launch.rerank.rerank.{name}"))
  data, stage = value("dataset").locate(workdir), Stage("answer", workdir, {})
  asked = questions.read(workdir / "questions/test.jsonl")
  names = ("network", "folder", "partitioner", "query_length", "passage_length", "checkpoint")
  options = {name: value(name) for name in names}
  lists = answer.bm25(stage, data, asked)(asked, 9)
  ranked = [
    answer.neural(stage, data, vectors=vectors, **options)(asked, lists)
    for vectors in (None, "reranker_vectors")
  ]
  assert store.Store(workdir / "reranker_vectors").header["passages"] == 80
  for live, stored, before in zip(*ranked, lists, strict=True):
    want, mine = ({s.passage.id: s.score for s in some} for some in (live, stored))
    assert want.keys() == {s.passage.id for s in before}
    np.testing.assert_allclose([mine[id] for id in want], list(want.values()), rtol=0.02, atol=0.02)


def planets_passages(module):
  return [row for _, row in files.read_jsonl(module.parent / "passages.jsonl")]


def bert_folder(tmp_path):
  """A BERT of random weights as a Hugging Face folder, by our own export: no torch."""
  like = tmp_path / "like"
  like.mkdir()
  (like / "config.json").write_text(json.dumps({"model_type": "bert"} | BERT))
  encoder = huggingface.network(like)
  params = jax.jit(encoder.init)(jax.random.key(3), jnp.zeros((1, 8), jnp.int32))["params"]
  huggingface.export(params, encoder, tmp_path / "bert", like=like)
  return tmp_path / "bert"


@pytest.mark.slow
def test_adapters_alone_are_trained_and_merge_into_what_is_exported(prepared, tmp_path):
  workdir, module = copied(prepared, tmp_path)
  source = bert_folder(tmp_path)
  recipe_of = recipe(
    tmp_path / "recipe",
    "bert",
    "include 'gin_configs/runs/lora.gin'\nLORA_RANK = 4\nTRAINED = ['projection']\n"
    f"INITIAL = '{source}'\n",
  )
  assert launch("train", recipe_of / "5_reranker.gin", workdir, module) == 0
  assert np.mean(losses(workdir)[-5:]) < np.mean(losses(workdir)[:5])
  place = initial.find(workdir / "reranker", which="latest")
  stored = huggingface.flatten(initial.checkpoints.restore_all_params(place.folder, place.step))
  assert {path.split("/")[-1] for path in stored if path.startswith("encoder")} == {
    "lora_a", "lora_b",
  }  # fmt: skip
  assert {path for path in stored if not path.startswith("encoder")} == {"projection/kernel"}
  scorer = network.LateInteraction(huggingface.network(source), projection_dim=8)
  tokens = [np.zeros((1, 8), np.int32), np.zeros((1, 1, 8), np.int32)]
  params = initial.load(place, scorer, inputs=tokens)
  before = huggingface.flatten(huggingface.load(source, scorer.encoder))
  after = huggingface.flatten(params["encoder"])
  changed = {path.split("/")[-2] for path in after if (after[path] != before[path]).any()}
  assert changed == {"query", "value"}
  exported = ["export", str(workdir / "reranker"), str(tmp_path / "out"), f"--like={source}"]
  assert convert.main([*exported, "--checkpoint=latest"]) == 0
  again = huggingface.flatten(huggingface.load(tmp_path / "out", scorer.encoder))
  assert again.keys() == after.keys()
  for path, leaf in after.items():
    np.testing.assert_array_equal(again[path], leaf)


def test_the_ablation_is_one_line(tmp_path):
  gin_file = recipe(tmp_path / "recipe", "bert") / "5_reranker.gin"
  line = "OBJECTIVE=@objective.TopCrossEntropy()"
  macros = ["DATASET='planets'", "MODULE=None", "WORKDIR='work'", "TAU=0.5"]
  for overrides, kind in (([], "ListwiseKL"), ([line], "TopCrossEntropy")):
    config.activate(gin_text.resolve([str(gin_file)], [*macros, *overrides]))
    built = copy.deepcopy(gin.query_parameter("launch.train.train.objective"))
    assert type(built).__name__ == kind
    assert isinstance(built.network, network.LateInteraction)
    assert built.tau == 0.5
