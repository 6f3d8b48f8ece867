"""Every file of gin_configs/hardware/ on the devices of its machine, none of which is here."""

import gin
import jax
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AbstractMesh, AxisType

from kard_jax.core import config, gin_text
from kard_jax.student.t5 import T5

FILES = sorted((gin_text.ROOT / "gin_configs" / "hardware").glob("*.gin"))
# File -> devices of its machine, and the axes that they make.
MACHINES = {
  "cpu": (1, (1, 1, 1)),
  "cpu_8_devices": (8, (2, 2, 2)),
  "mesh": (6, (6, 1, 1)),
  "gpu_1": (1, (1, 1, 1)),
  "gpu_8": (8, (1, 8, 1)),
  "gpu_hosts": (32, (4, 8, 1)),
  "v4_8": (4, (1, 4, 1)),
  "v5e_8": (8, (1, 8, 1)),
  "v5e_16": (16, (1, 16, 1)),
  "v5e_256": (256, (16, 16, 1)),
  "v5p_128": (64, (4, 16, 1)),
  "v6e_64": (64, (8, 8, 1)),
}
STAGE = "gin_configs/recipes/quickstart/6_student_kard.gin"
NETWORK = T5(
  vocab_size=512, embed_dim=256, num_heads=2, mlp_dim=64, num_encoder_layers=1, num_decoder_layers=1
)


def made(macro):
  return gin.query_parameter(f"{macro}/gin.macro.value").scoped_configurable_fn()


def abstract(partitioner, count):
  """The partitioner on so many devices that only have places."""
  sizes = partitioner.sizes(count)
  mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))
  partitioner.__dict__["mesh"] = mesh
  return partitioner


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_a_hardware_file_splits_batches_and_parameters_over_its_machine(path):
  count, axes = MACHINES[path.stem]
  gin_text.resolve([STAGE, str(path)])  # a macro that no stage has is an error
  settings = gin_text.resolve_unchecked(["gin_configs/models/t5_1_1_small.gin", str(path)])
  config.activate(settings)
  partitioner = made("PARTITIONER")
  assert partitioner.devices in (0, count)
  assert tuple(partitioner.sizes(count).items()) == tuple(
    zip(("data", "fsdp", "tensor"), axes, strict=True)
  )
  partitioner = abstract(partitioner, count)
  data, fsdp, tensor = axes
  rows = np.lcm(256, data * fsdp)
  assert partitioner.batch_sharding.shard_shape((rows,)) == (rows // (data * fsdp),)
  tokens = jax.ShapeDtypeStruct((2, 8), np.int32)
  boxed = jax.eval_shape(NETWORK.init, jax.random.key(0), tokens, tokens)["params"]
  shardings = partitioner.shardings(boxed)
  table = shardings["token_embedder"]["embedding"]
  assert table.shard_shape((512, 256)) == (512 // tensor, 256 // fsdp)
  whole = [
    leaf.shape
    for leaf, sharding in zip(
      jax.tree.leaves(nn.meta.unbox(boxed)), jax.tree.leaves(shardings), strict=True
    )
    if sharding.is_fully_replicated and leaf.size > 1000
  ]
  assert not whole or fsdp == tensor == 1  # only small arrays are on every device
  assert partitioner.microbatches == settings.value("MICROBATCHES")
  if path.stem not in ("cpu", "cpu_8_devices", "mesh"):
    network = made("NETWORK")
    assert (network.dtype, network.remat) == ("bfloat16", settings.value("REMAT"))


def test_another_machine_is_no_other_experiment():
  hardware = "gin_configs/hardware/{}.gin"
  one, other = (
    gin_text.resolve([STAGE, hardware.format(name)], ["DTYPE='float32'", f"REMAT='{remat}'"])
    for name, remat in (("v5e_16", "full"), ("v5p_128", "minimal"))
  )
  assert one.value("REMAT") != other.value("REMAT")
  assert one.fingerprint() == other.fingerprint()
