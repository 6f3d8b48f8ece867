"""Parameters from a Hugging Face folder, from a run, from adapters on either; and what is wrong."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kard_jax.convert import huggingface, initial
from kard_jax.core import lora as lora_lib
from kard_jax.core import selection
from kard_jax.core import train as loop
from kard_jax.core.files import InputError
from kard_jax.core.lora import Adapted, Lora
from kard_jax.core.optimizers import AdamW, Schedule
from kard_jax.core.partitioning import Partitioner
from kard_jax.student.objective import TokenCrossEntropy
from tests.convert import folders

RULES = [("batch", "data"), ("vocab", "tensor"), ("heads", "tensor"), ("mlp", "tensor")]
LORA = Lora(rank=2, alpha=4.0, dropout=0.0, targets=("query", "value", "wi_0"))


class Batches:
  batch_size = 8

  def __call__(self, step, rows=None):
    tokens = np.random.default_rng(step).integers(2, 40, (8, 9)).astype(np.int32)
    target = tokens[:, 5:]
    batch = {
      "encoder_input_tokens": tokens[:, :5],
      "decoder_input_tokens": np.pad(target[:, :-1], ((0, 0), (1, 0))),
      "decoder_target_tokens": target,
      "decoder_loss_weights": np.ones((8, 4), np.int32),
    }
    return {name: feature[rows or slice(None)] for name, feature in batch.items()}

  def names(self, step):
    return [str(row) for row in range(8)]


def mesh(data=1, tensor=1):
  return Partitioner({"data": data, "tensor": tensor}, RULES, devices=data * tensor)


def train(folder, place, network, partitioner=None, lora=None, trained=None):
  """Six steps from a place, with the record that the launcher writes."""
  partitioner = partitioner or mesh()
  objective = TokenCrossEntropy(network)
  if lora:
    objective, trained = Adapted(objective, lora), list(lora_lib.NAMES)
  trainer = loop.Trainer(
    steps=6,
    optimizer=AdamW(Schedule(1e-3)),
    partitioner=partitioner,
    log_every=1,
    save_every=6,
    trained=trained,
  )
  run = loop.train(
    objective,
    Batches(),
    folder,
    trainer=trainer,
    validation=[Batches()(99)],
    initial=lambda: initial.load(place, network, partitioner),
  )
  initial.Origin(
    given=place.given,
    beside=initial.beside(place, folder, folder.parent),
    step=place.step,
    hashes=place.hashes(),
    lora=lora,
    trained=trained,
  ).write(folder)
  rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  return run, np.array([row["train/loss"] for row in rows if "train/loss" in row])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  folder = folders.t5(tmp_path_factory.mktemp("models") / "t5")
  return folder, huggingface.network(folder, dropout_rate=0.0)


def validation_loss(network, params):
  batch = Batches()(99)
  loss = jax.jit(lambda params: TokenCrossEntropy(network).loss(params, batch, None))(params)
  return float(loss.total / loss.weight)


@pytest.mark.slow
def test_adapters_on_adapters_on_a_hugging_face_model(model, tmp_path):
  folder, network = model
  place = initial.find(folder)
  before = validation_loss(network, initial.load(place, network))
  first, _ = train(tmp_path / "first", place, network, lora=LORA)
  assert {path.rpartition("/")[2] for path in selection.flatten(first.state.params)} == {
    "lora_a",
    "lora_b",
  }
  below = initial.find("first", tmp_path)
  assert (below.step, below.folder) == (6, tmp_path / "first")
  merged = initial.load(below, network)
  loss = validation_loss(network, merged)
  np.testing.assert_allclose(loss, first.metrics["loss"], rtol=1e-5)
  assert loss < before - 1e-3  # the adapters do something
  # A whole run on top of it, moved elsewhere with it.
  second, _ = train(tmp_path / "second", below, network, lora=LORA)
  (tmp_path / "moved").mkdir()
  for name in ("first", "second"):
    (tmp_path / name).rename(tmp_path / "moved" / name)
  params = initial.load(initial.find(tmp_path / "moved" / "second"), network)
  np.testing.assert_allclose(validation_loss(network, params), second.metrics["loss"], rtol=1e-5)
  huggingface.export(params, network, tmp_path / "out", like=folder)
  again = initial.load(initial.find(tmp_path / "out"), network)
  jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.mark.parametrize("kind", ["lora", pytest.param("whole", marks=pytest.mark.slow)])
def test_eight_devices_from_a_checkpoint_equal_one(model, tmp_path, kind):
  folder, network = model
  network = network.clone(scan_layers=kind == "lora")
  place = initial.find(folder)
  lora = LORA if kind == "lora" else None
  _, one = train(tmp_path / "one", place, network, lora=lora)
  run, eight = train(tmp_path / "eight", place, network, mesh(data=2, tensor=4), lora=lora)
  assert len(np.unique(one)) == 6  # it does train
  np.testing.assert_allclose(eight, one, rtol=1e-5)
  loaded = initial.load(initial.find(tmp_path / "eight"), network, mesh(data=2, tensor=4))
  np.testing.assert_allclose(validation_loss(network, loaded), run.metrics["loss"], rtol=1e-5)
  if kind == "lora":
    b = run.state.params["encoder"]["layers"]["mlp"]["wi_0"]["lora_b"]
    assert b.addressable_shards[0].data.shape == (2, 2, 7)  # 28 over "tensor", in each of 2 layers


def test_a_named_part_on_a_frozen_rest(model, tmp_path):
  folder, network = model
  run, _ = train(tmp_path / "run", initial.find(folder), network, trained=["decoder"])
  assert set(run.state.params) == {"decoder"}
  params = initial.load(initial.find(tmp_path / "run"), network)
  np.testing.assert_allclose(validation_loss(network, params), run.metrics["loss"], rtol=1e-5)
  base = initial.load(initial.find(folder), network)
  jax.tree.map(np.testing.assert_array_equal, params["encoder"], base["encoder"])
  # Frozen parameters come back as they were while training.
  origin = initial.Origin.read(tmp_path / "run")
  dataclasses.replace(origin, frozen_dtype="bfloat16").write(tmp_path / "run")
  params = initial.load(initial.find(tmp_path / "run"), network)
  kernel, got = (tree["encoder"]["layers_0"]["mlp"]["wo"]["kernel"] for tree in (base, params))
  rounded = kernel.astype(jnp.bfloat16).astype(jnp.float32)
  assert (rounded != kernel).any()
  np.testing.assert_array_equal(got, rounded)


def test_a_base_that_changed_or_is_gone(model, tmp_path):
  _, network = model
  base = folders.t5(tmp_path / "base")
  train(tmp_path / "run", initial.find(base), network, lora=LORA)
  (base / "config.json").write_text((base / "config.json").read_text() + "\n")
  with pytest.raises(InputError, match=r"trained on top of .*base, and .*config.json is not what"):
    initial.load(initial.find(tmp_path / "run"), network)
  base.rename(tmp_path / "elsewhere")
  with pytest.raises(
    InputError, match=r"holds a part alone and builds on .*base: .*no such folder"
  ):
    initial.load(initial.find(tmp_path / "run"), network)
  (tmp_path / "run" / "origin.json").write_text("[]")
  with pytest.raises(InputError, match=r"origin.json: not the record of a run's origin"):
    initial.load(initial.find(tmp_path / "run"), network)


def test_places_that_are_none(tmp_path):
  (tmp_path / "empty").mkdir()
  with pytest.raises(InputError, match=r"holds neither a config.json nor checkpoints"):
    initial.find("empty", tmp_path)
  with pytest.raises(InputError, match="no such folder"):
    initial.find(tmp_path / "absent")
