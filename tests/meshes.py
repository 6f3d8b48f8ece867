"""The mesh that sharded equals unsharded is tested on, with the rules that ship."""

from kard_jax.core import gin_text

AXES = {"data": 2, "fsdp": 2, "tensor": 2}  # of the eight devices of conftest.py
RULES = gin_text.resolve_unchecked(["gin_configs/hardware/mesh.gin"]).value(
  "partitioning.Partitioner.rules"
)
