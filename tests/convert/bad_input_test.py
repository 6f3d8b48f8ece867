"""What a folder can have wrong: each one clear error that names the file and what to do."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from kard_jax.convert import huggingface, tensors
from kard_jax.core.files import InputError
from tests.convert import folders

NORM = "encoder.final_layer_norm.weight"


@pytest.fixture
def folder(tmp_path):
  return folders.t5(tmp_path / "hf")


def load(folder):
  return huggingface.load(folder, huggingface.network(folder))


def refused(folder, complaint):
  with pytest.raises(InputError, match=complaint) as caught:
    load(folder)
  assert "\n" not in str(caught.value)


def with_weights(folder, change):
  weights = load_file(folder / "model.safetensors")
  change(weights)
  save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def with_config(folder, **changes):
  file = folder / "config.json"
  values = json.loads(file.read_text()) | changes
  file.write_text(json.dumps({k: v for k, v in values.items() if v != "left out"}))


def test_a_missing_tensor(folder):
  with_weights(folder, lambda weights: weights.pop(NORM))
  refused(folder, f"hf: no tensor {NORM}, which the architecture needs")


def test_an_extra_tensor(folder):
  with_weights(folder, lambda weights: weights.update({"pooler.weight": np.zeros((2, 2), "f4")}))
  refused(folder, "model.safetensors: has a tensor pooler.weight that the architecture in config")


def test_a_wrong_shape(folder):
  with_weights(folder, lambda weights: weights.update({NORM: np.ones(21, "f4")}))
  refused(folder, rf"model.safetensors: {NORM} has shape \[21\], and by config.json it is \[20\]")


def test_a_config_that_makes_other_shapes(folder):
  with_config(folder, d_ff=29)
  refused(folder, r"wi_0.weight has shape \[28, 20\], and by config.json it is \[29, 20\]")


@pytest.mark.parametrize("kept", [4, 3_000, -1])
def test_a_half_downloaded_file(folder, kept):
  file = folder / "model.safetensors"
  file.write_bytes(file.read_bytes()[:kept])
  refused(folder, "model.safetensors: not a whole safetensors file .*; download it again")


def test_a_git_lfs_pointer(folder):
  (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\nsize 9\n")
  refused(folder, "a Git LFS pointer, not the weights; run `git lfs pull`")


def test_a_missing_shard(tmp_path):
  folder = folders.t5(tmp_path / "hf", shards=3)
  (folder / "model-00002-of-00003.safetensors").unlink()
  refused(folder, "index.json: names model-00002-of-00003.safetensors, which is not here; download")


def test_a_shard_without_a_tensor_that_the_index_names(tmp_path):
  folder = folders.t5(tmp_path / "hf", shards=3)
  file = folder / "model-00001-of-00003.safetensors"
  weights = load_file(file)
  name = sorted(weights)[0]
  weights.pop(name)
  save_file(weights, file)
  refused(folder, f"model-00001-of-00003.safetensors: lacks {name}, which model.safetensors.index")


def test_shards_without_their_index(tmp_path):
  folder = folders.t5(tmp_path / "hf", shards=3)
  (folder / tensors.INDEX).unlink()
  refused(folder, "hf: has model-00001-of-00003.safetensors but no model.safetensors.index.json")


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": {"a": "../secret"}}'])
def test_an_index_that_is_none(tmp_path, text):
  folder = folders.t5(tmp_path / "hf", shards=3)
  (folder / tensors.INDEX).write_text(text)
  refused(folder, r"index.json: no weight_map of tensors to files \(.*\); download it again")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "flax_model.msgpack"])
def test_pickles_are_never_read(folder, name):
  (folder / "model.safetensors").rename(folder / name)
  refused(folder, rf"hf: only {name}, and safetensors alone are read .*save_pretrained\('.*hf'\)")


def test_no_weights(folder):
  (folder / "model.safetensors").unlink()
  refused(folder, "hf: no weights, and safetensors alone are read")


def test_an_element_type_that_is_not_read(folder):
  with_weights(folder, lambda weights: weights.update({NORM: np.ones(20, "f8")}))
  refused(folder, f"{NORM} has elements of type F64; float32, float16 and bfloat16 can be read")


def test_an_unknown_architecture(folder):
  with_config(folder, model_type="longt5")
  refused(folder, "config.json: model_type 'longt5' is not supported; it may be .*t5")


@pytest.mark.parametrize(
  ("changes", "complaint"),
  [
    ({"feed_forward_proj": "gated-gelu-new"}, "feed_forward_proj = .* is not supported"),
    ({"dense_act_fn": "xielu"}, "feed_forward_proj names the activation 'xielu'; known are"),
    ({"d_model": "20"}, "d_model = '20' should be of type int"),
    ({"num_heads": 0}, "num_heads = 0 must be at least 1"),
    ({"is_gated_act": 1}, "is_gated_act = 1 should be of type bool"),
    ({"is_encoder_decoder": False}, "is_encoder_decoder = False is not supported"),
    ({"decoder_start_token_id": 3}, "decoder_start_token_id = 3 is not supported"),
  ],
)
def test_settings_that_no_network_has(folder, changes, complaint):
  with_config(folder, **changes)
  refused(folder, f"config.json: {complaint}")


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_a_config_that_is_none(folder, text):
  (folder / "config.json").write_text(text)
  refused(folder, "config.json: (not JSON|a JSON object is needed)")


def test_no_config(folder):
  (folder / "config.json").unlink()
  refused(folder, "hf: holds no config.json")


def test_tables_that_should_be_one_and_are_not(folder):
  def change(weights):
    weights["encoder.embed_tokens.weight"] = weights["shared.weight"] + 1

  with_weights(folder, change)
  refused(folder, "encoder.embed_tokens.weight and shared.weight differ, and must be one table")


def test_a_tokenizer_with_more_ids_than_the_table_has_rows(folder):
  folders.tokenizer(folder, ids=40)
  load(folder)
  folders.tokenizer(folder, ids=41)
  refused(folder, "tokenizer.json: has ids up to 40, and config.json a vocab_size of 40; it is ano")


@pytest.mark.parametrize(
  ("name", "text"),
  [
    ("vocab.json", json.dumps({"a": 40})),
    ("added_tokens.json", json.dumps({"a": 40})),
    ("vocab.txt", "token\n" * 41),
  ],
)
def test_other_vocabularies_with_more_ids(folder, name, text):
  (folder / name).write_text(text)
  refused(folder, f"{name}: has ids up to 40")


def test_a_tokenizer_that_cannot_be_read(folder):
  (folder / "tokenizer.json").write_text('{"model": {}}')
  refused(folder, r"tokenizer.json: not a tokenizer that can be read \(KeyError: 'vocab'\)")
  (folder / "tokenizer.json").unlink()
  (folder / "spiece.model").write_bytes(b"no model")
  refused(folder, r"spiece.model: not a tokenizer that can be read")


def test_a_name_that_is_neither_here_nor_to_be_had():
  """The tests have no network: huggingface_hub is told to be offline."""
  complaint = "some/name: no such folder; not in the local cache, and the Hugging Face Hub cannot"
  with pytest.raises(InputError, match=complaint):
    huggingface.network("some/name")
  with pytest.raises(InputError, match=r"no such folder$"):
    huggingface.network("./some/name")


def test_a_name_in_the_local_cache_needs_no_network(folder, tmp_path, monkeypatch):
  cache = tmp_path / "cache"
  snapshot = cache / "models--some--name" / "snapshots" / "0123"
  snapshot.parent.mkdir(parents=True)
  folder.rename(snapshot)
  refs = cache / "models--some--name" / "refs"
  refs.mkdir()
  (refs / "main").write_text("0123")
  monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
  assert huggingface.network("some/name").vocab_size == 40


def test_an_export_that_fails_leaves_what_was_there(folder, tmp_path):
  network = huggingface.network(folder)
  params = load(folder)
  out = tmp_path / "out"
  huggingface.export(params, network, out, like=folder)
  before = (out / "model.safetensors").read_bytes()
  params["encoder"]["encoder_norm"]["scale"] *= 1e5
  with pytest.raises(InputError, match=f"{NORM}: has numbers beyond float16's; export as bfloat16"):
    huggingface.export(params, network, out, like=folder, dtype="float16")
  assert (out / "model.safetensors").read_bytes() == before
  assert not [path for path in tmp_path.iterdir() if path.name.startswith(".tmp")]


@pytest.mark.parametrize(
  ("where", "dtype", "complaint"),
  [
    ("hf", None, "hf: is the folder to be like; write to another"),
    ("out", "float8", "dtype 'float8': choose one of float32, float16, bfloat16"),
  ],
)
def test_an_export_that_cannot_be(folder, tmp_path, where, dtype, complaint):
  network = huggingface.network(folder)
  with pytest.raises(InputError, match=complaint):
    huggingface.export(load(folder), network, tmp_path / where, like=folder, dtype=dtype)


def test_parameters_that_are_not_the_networks(folder, tmp_path):
  network, params = huggingface.network(folder), load(folder)
  params["encoder"]["encoder_norm"]["lora_a"] = np.zeros(3)
  with pytest.raises(InputError, match="encoder/encoder_norm/lora_a differs"):
    huggingface.export(params, network, tmp_path / "out", like=folder)
