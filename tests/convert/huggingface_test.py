"""Folders in and out: the same numbers, the same bytes, sharded or not."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from kard_jax.convert import huggingface
from kard_jax.core import partitioning
from kard_jax.core.files import InputError
from tests.convert import folders

RULES = (
  ("batch", "data"),
  ("vocab", "tensor"),
  ("heads", "tensor"),
  ("mlp", "tensor"),
  ("embed", None),
)
models = pytest.mark.parametrize("name", folders.T5)


def content(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


@models
@pytest.mark.parametrize("shards", [1, 3])
def test_logits_are_those_of_hugging_face(name, shards, tmp_path):
  folder = folders.t5(tmp_path / "hf", name, shards=shards)
  arrays, _ = folders.golden(name)
  network = huggingface.network(folder)
  params = huggingface.load(folder, network)
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
  logits = jax.jit(network.apply)(
    {"params": params}, arrays["encoder_input_tokens"], arrays["decoder_input_tokens"]
  )
  want = arrays["logits"]
  assert want.std() > 0.5
  assert np.max(np.abs(logits - want)) <= 1e-5 * np.max(np.abs(want))


@models
@pytest.mark.parametrize("dtype", [np.float32, np.float16, folders.BFLOAT16], ids=str)
@pytest.mark.parametrize("shards", [1, 3])
def test_a_round_trip_gives_the_same_bytes(name, dtype, shards, tmp_path):
  folder = folders.t5(tmp_path / "hf", name, dtype=dtype, shards=shards)
  folders.tokenizer(folder)
  network = huggingface.network(folder)
  huggingface.export(huggingface.load(folder, network), network, tmp_path / "out", like=folder)
  assert content(tmp_path / "out") == content(folder)
  assert len(content(folder)) == 4 + (shards > 1) + shards


def test_names_under_which_tied_tables_were_stored_stay(tmp_path):
  _, weights = folders.golden("t5_1_0")
  table = weights.pop("shared.weight")
  old = weights | {
    "encoder.embed_tokens.weight": table,
    "decoder.embed_tokens.weight": table,
    "lm_head.weight": table,
    "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": table[:2],
  }
  folder = folders.write(tmp_path / "hf", folders.T5["t5_1_0"], old)
  network = huggingface.network(folder)
  assert network.tied_embeddings
  huggingface.export(huggingface.load(folder, network), network, tmp_path / "out", like=folder)
  assert content(tmp_path / "out") == content(folder)


def test_a_head_of_its_own_is_told_by_the_weights(tmp_path):
  """transformers 5 says tie_word_embeddings in every T5's config.json and lets the file decide."""
  folder = folders.t5(tmp_path / "hf")
  assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"]
  assert not huggingface.network(folder).tied_embeddings
  weights = load_file(folder / "model.safetensors")
  save_file(weights | {"lm_head.weight": weights["shared.weight"]}, folder / "model.safetensors")
  assert huggingface.network(folder).tied_embeddings


def test_another_element_type_and_small_files_can_be_asked_for(tmp_path):
  folder = folders.t5(tmp_path / "hf")
  network = huggingface.network(folder)
  params = huggingface.load(folder, network)
  huggingface.export(
    params, network, tmp_path / "out", like=folder, dtype="bfloat16", shard_bytes=20_000
  )
  files = sorted((tmp_path / "out").glob("model-*"))
  assert len(files) > 1
  assert all(file.stat().st_size < 25_000 for file in files)
  again = huggingface.load(tmp_path / "out", network)
  expected = jax.tree.map(lambda x: np.asarray(x).astype(folders.BFLOAT16).astype("f4"), params)
  jax.tree.map(np.testing.assert_array_equal, again, expected)
  assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_sharded_loading_equals_unsharded(tmp_path):
  _, weights = folders.golden("t5_1_1")
  folder = folders.t5(tmp_path / "hf")
  network = huggingface.network(folder)
  whole = huggingface.load(folder, network)
  partitioner = partitioning.Partitioner({"data": 2, "tensor": 4}, RULES)
  parts = huggingface.load(folder, network, partitioner)
  assert "tensor" in str(parts["logits_dense"]["kernel"].sharding.spec)
  assert parts["logits_dense"]["kernel"].addressable_shards[0].data.shape == (20, 10)
  jax.tree.map(np.testing.assert_array_equal, parts, whole)
  huggingface.export(parts, network, tmp_path / "out", like=folder)
  assert content(tmp_path / "out") == content(folder)
  assert weights


def test_only_what_a_device_holds_is_read(tmp_path, monkeypatch):
  folder = folders.t5(tmp_path / "hf")
  network = huggingface.network(folder)
  read = []
  real = huggingface.tensors.Tensors.read

  def spy(self, name, part=()):
    array = real(self, name, part)
    read.append((name, array.shape))
    return array

  monkeypatch.setattr(huggingface.tensors.Tensors, "read", spy)
  huggingface.load(folder, network, partitioning.Partitioner({"data": 2, "tensor": 4}, RULES))
  compared, *parts = [shape for name, shape in read if name == "lm_head.weight"]
  assert compared == (40, 20)  # a block of it, with the table of the tokens
  assert parts == [(10, 20)] * 4


@pytest.mark.parametrize(
  ("change", "complaint"),
  [
    ({"embed_dim": 24}, "asks for embed_dim = 20, the network has 24"),
    ({"mlp_activations": ("relu",)}, r"asks for mlp_activations = \('gelu', 'linear'\)"),
  ],
)
def test_weights_of_another_network_are_refused(change, complaint, tmp_path):
  folder = folders.t5(tmp_path / "hf")
  network = dataclasses.replace(huggingface.network(folder), **change)
  with pytest.raises(InputError, match=f"config.json: {complaint}"):
    huggingface.load(folder, network)
