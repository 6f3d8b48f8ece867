"""Every model file of the student builds, with the published number of parameters."""

import pathlib

import gin
import jax
import jax.numpy as jnp
import pytest

from kard_jax.core import config

FILES = pathlib.Path(__file__).parents[2] / "gin_configs" / "models"
PUBLISHED = {  # parameters of google/t5-v1_1-* on the Hugging Face hub
  "t5_1_1_small": 76_961_152,
  "t5_1_1_base": 247_577_856,
  "t5_1_1_large": 783_150_080,
  "t5_1_1_xl": 2_849_757_184,
  "t5_1_1_xxl": 11_135_332_352,
}
TINY = 1_050_368  # with a vocabulary of 1,024


def _network(name, *overrides):
  config.activate(config.resolve_unchecked([f"gin_configs/models/{name}.gin"], overrides))
  return gin.query_parameter("NETWORK/gin.macro.value").scoped_configurable_fn()


def _count(network):
  tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
  shapes = jax.eval_shape(network.init, jax.random.key(0), tokens, tokens)
  return sum(leaf.size for leaf in jax.tree.leaves(shapes))


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
  assert {path.stem for path in FILES.glob("t5_*.gin")} == {*PUBLISHED, "t5_tiny"}
