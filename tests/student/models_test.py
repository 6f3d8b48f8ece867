"""Every model file of the student builds, with the published number of parameters."""

import dataclasses
import json
import pathlib

import gin
import jax
import jax.numpy as jnp
import pytest
from flax import traverse_util
from jax.sharding import PartitionSpec as P

from kard_jax.convert import huggingface
from kard_jax.core import config, gin_text
from kard_jax.student import t5

FILES = pathlib.Path(__file__).parents[2] / "gin_configs" / "models"
PUBLISHED = {  # parameters of google/t5-v1_1-* on the Hugging Face hub
  "t5_1_1_small": 76_961_152,
  "t5_1_1_base": 247_577_856,
  "t5_1_1_large": 783_150_080,
  "t5_1_1_xl": 2_849_757_184,
  "t5_1_1_xxl": 11_135_332_352,
}
DECODERS = {  # as published; a tied head is counted once
  "gpt2": 124_439_808,
  "opt_350m": 331_196_416,
  "opt_1_3b": 1_315_758_080,
  "llama_3_2_1b": 1_235_814_400,
  "llama_2_7b": 6_738_415_616,
  "smollm2_135m": 134_515_008,
  "qwen3_0_6b": 596_049_920,
}
_LLAMA = {"model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5}
CONFIGS = {  # what tells, of the config.json files on the Hugging Face hub
  "gpt2": {"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "vocab_size": 50_257},
  "opt_350m": {
    "model_type": "opt",
    "do_layer_norm_before": False,
    "ffn_dim": 4096,
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "pad_token_id": 1,
    "vocab_size": 50_272,
    "word_embed_proj_dim": 512,
  },
  "opt_1_3b": {
    "model_type": "opt",
    "ffn_dim": 8192,
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "num_hidden_layers": 24,
    "pad_token_id": 1,
    "vocab_size": 50_272,
    "word_embed_proj_dim": 2048,
  },
  "llama_3_2_1b": _LLAMA
  | {
    "head_dim": 64,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131_072,
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "rope_scaling": {
      "factor": 32.0,
      "high_freq_factor": 4.0,
      "low_freq_factor": 1.0,
      "original_max_position_embeddings": 8192,
      "rope_type": "llama3",
    },
    "rope_theta": 500_000.0,
    "tie_word_embeddings": True,
    "vocab_size": 128_256,
  },
  "llama_2_7b": _LLAMA | {"rope_scaling": None, "tie_word_embeddings": False},
  "smollm2_135m": _LLAMA
  | {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "rope_theta": 100_000,
    "tie_word_embeddings": True,
    "vocab_size": 49_152,
  },
  "qwen3_0_6b": {
    "model_type": "qwen3",
    "attention_bias": False,
    "head_dim": 128,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_window_layers": 28,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151_936,
  },
}
TINY = 1_050_368  # with a vocabulary of 1,024


def _network(name, *overrides):
  config.activate(gin_text.resolve_unchecked([f"gin_configs/models/{name}.gin"], overrides))
  return gin.query_parameter("NETWORK/gin.macro.value").scoped_configurable_fn()


def _boxed(network):
  tokens = [jax.ShapeDtypeStruct((1, 8), jnp.int32)] * (2 if isinstance(network, t5.T5) else 1)
  return jax.eval_shape(network.init, jax.random.key(0), *tokens)["params"]


def _count(network):
  shapes = _boxed(network)
  return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize("name", DECODERS)
def test_sizes_of_decoders_are_the_published_ones(name):
  network = _network(name, "SCAN_LAYERS=True")
  assert _count(network) == DECODERS[name]
  assert network.dtype == "bfloat16"


@pytest.mark.parametrize("name", CONFIGS)
def test_decoders_are_those_that_the_published_configurations_describe(name, tmp_path):
  (tmp_path / "config.json").write_text(json.dumps(CONFIGS[name]))
  network, described = _network(name), huggingface.network(tmp_path)
  free = {"dropout_rate", "attention_dropout_rate", "dtype", "remat", "scan_layers", "name"}
  if network.rope is not None:
    free |= {"max_positions", "norm_affine"}  # of no use to it
  for field in dataclasses.fields(network):
    if field.name not in {*free, "parent"}:
      assert getattr(network, field.name) == getattr(described, field.name), field.name


def test_a_7b_llama_lies_on_a_mesh_as_it_should():
  """Heads, hidden units and vocabulary over `tensor`, width over `fsdp`; gone over by hand."""
  with_mesh = ["gin_configs/models/llama_2_7b.gin", "gin_configs/hardware/mesh.gin"]
  split = ["DATA_AXIS=1", "FSDP_AXIS=2", "TENSOR_AXIS=4"]
  config.activate(gin_text.resolve_unchecked(with_mesh, split))
  network, partitioner = (
    gin.query_parameter(f"{name}/gin.macro.value").scoped_configurable_fn()
    for name in ("NETWORK", "PARTITIONER")
  )
  shardings = traverse_util.flatten_dict(partitioner.shardings(_boxed(network)), sep="/")
  layer = "decoder/layers"
  projection = P(None, "fsdp", "tensor", None)
  assert {path: sharding.spec for path, sharding in shardings.items()} == {
    "token_embedder/embedding": P("tensor", "fsdp"),
    f"{layer}/pre_attention_layer_norm/scale": P(None, "fsdp"),
    f"{layer}/attention/query/kernel": projection,
    f"{layer}/attention/key/kernel": projection,
    f"{layer}/attention/value/kernel": projection,
    f"{layer}/attention/out/kernel": P(None, "tensor", None, "fsdp"),
    f"{layer}/pre_mlp_layer_norm/scale": P(None, "fsdp"),
    f"{layer}/mlp/wi_0/kernel": P(None, "fsdp", "tensor"),
    f"{layer}/mlp/wi_1/kernel": P(None, "fsdp", "tensor"),
    f"{layer}/mlp/wo/kernel": P(None, "tensor", "fsdp"),
    "decoder/decoder_norm/scale": P("fsdp"),
    "logits_dense/kernel": P("fsdp", "tensor"),
  }


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_the_published_ones(name):
  network = _network(name)
  assert _count(network) == PUBLISHED[name]
  assert (network.dropout_rate, network.dtype) == (0.1, "bfloat16")


def test_macros_of_a_recipe_reach_the_network():
  overrides = ("VOCAB_SIZE=1_024", "DROPOUT=0.2", "DTYPE='bfloat16'", "REMAT='dots'")
  network = _network("t5_tiny", *overrides, "SCAN_LAYERS=True")
  assert (network.vocab_size, network.dropout_rate) == (1024, 0.2)
  assert (network.dtype, network.remat, network.scan_layers) == ("bfloat16", "dots", True)
  assert _count(network) == TINY


def test_every_student_file_is_tested():
  assert {path.stem for path in FILES.glob("t5_*.gin")} == {*PUBLISHED, "t5_tiny", "t5_memoriser"}
  assert {*CONFIGS} == {*DECODERS}
  students = {path.stem for path in FILES.glob("*.gin") if "NETWORK = " in path.read_text()}
  assert students == {
    *PUBLISHED,
    *DECODERS,
    "t5_tiny",
    "t5_memoriser",
    "gpt_tiny",
    "pretrained",
  }
