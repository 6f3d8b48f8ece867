"""The largest T5 builds by shape alone, and each parameter is split as it was meant to be."""

import json
import math
import pathlib
import re

import flax.linen as nn
import gin
import jax
import jax.numpy as jnp
import pytest

from kard_jax.core import config, gin_text

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
CASES = {"t5_xxl": "SCAN_LAYERS=False", "t5_xxl_scanned": "SCAN_LAYERS=True"}
HARDWARE = ("DATA_AXIS=1", "FSDP_AXIS=2", "TENSOR_AXIS=4")


def specs(name):
  """Path of a parameter, layers' numbers left out -> its shape, and the mesh axis of each axis."""
  files = ["gin_configs/models/t5_1_1_xxl.gin", "gin_configs/hardware/mesh.gin"]
  config.activate(gin_text.resolve_unchecked(files, (*HARDWARE, CASES[name])))
  network = gin.query_parameter("NETWORK/gin.macro.value").scoped_configurable_fn()
  partitioner = gin.query_parameter("PARTITIONER/gin.macro.value").scoped_configurable_fn()
  tokens = jax.ShapeDtypeStruct((2, 8), jnp.int32)
  boxed = jax.eval_shape(network.init, jax.random.key(0), tokens, tokens)["params"]
  shardings = partitioner.shardings(boxed)
  found, count = {}, 0
  leaves = jax.tree_util.tree_leaves_with_path(nn.meta.unbox(boxed))
  for (path, leaf), sharding in zip(leaves, jax.tree.leaves(shardings), strict=True):
    key = re.sub(r"layers_\d+", "layers_*", "/".join(entry.key for entry in path))
    spec = [*sharding.spec, *[None] * (leaf.ndim - len(sharding.spec))]
    row = [list(leaf.shape), spec]
    assert found.setdefault(key, row) == row  # all layers alike
    count += math.prod(leaf.shape)
  return {"parameters": count, **found}


@pytest.mark.parametrize("name", CASES)
def test_parameters_of_xxl_are_split_as_they_were_meant_to_be(name):
  found = specs(name)
  assert found["parameters"] == 11_135_332_352  # google/flan-t5-xxl's
  assert found == json.loads((GOLDEN / f"specs_{name}.json").read_text())
