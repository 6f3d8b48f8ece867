"""GPUs to compile for that are not there, as XLA wants them described.

JAX's CUDA plugin compiles on a CPU too, once it is told of each kind of GPU what it would have
asked the driver. The figures are NVIDIA's: data sheets, and the technical specifications of each
compute capability in the CUDA C++ Programming Guide. Kernels are not tuned, as that needs a GPU to
try them on: memory and collectives are those of a program that runs, speed is not.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import NamedTuple

import jax

_MB = 1 << 20


class Gpu(NamedTuple):
  """What XLA is told of one kind of GPU; memory in bytes.

  Attributes:
    kind: as its driver names it, and `jax.Device.device_kind` then has it.
    capability: compute capability, major and minor.
    multiprocessors: of the whole GPU.
    fp32_lanes: of a multiprocessor.
    memory: of the device.
    bandwidth: of that memory, bytes/s.
    l2: cache.
    shared: memory of a multiprocessor that its blocks share.
    clock: GHz, boosted.
  """

  kind: str
  capability: tuple[int, int]
  multiprocessors: int
  fp32_lanes: int
  memory: int
  bandwidth: int
  l2: int
  shared: int
  clock: float


GPUS = {
  "a100": Gpu(
    "NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 80 << 30, int(2.039e12), 40 * _MB, 164 << 10, 1.41
  ),
  "h100": Gpu(
    "NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 80 << 30, int(3.35e12), 50 * _MB, 228 << 10, 1.98
  ),
}

# Alike on all of them.
_ALIKE = {
  "threads_per_block_limit": 1024,
  "threads_per_warp": 32,
  "threads_per_core_limit": 2048,
  "registers_per_block_limit": 65_536,
  "registers_per_core_limit": 65_536,
  "block_dim_limit_x": 2**31 - 1,
  "block_dim_limit_y": 65_535,
  "block_dim_limit_z": 65_535,
  "shared_memory_per_block": 48 << 10,
}
_KEPT = 1 << 10  # of a multiprocessor's shared memory, for the system: no block can have it


def is_installed() -> bool:
  """Whether JAX's CUDA plugin is there; no GPU and none of CUDA's libraries is needed."""
  return importlib.util.find_spec("jax_cuda12_plugin") is not None


def devices(gpu: Gpu, hosts: int, each: int) -> Sequence[jax.Device]:
  """Hosts with some GPUs each, none of which are there.

  Raises:
    Exception: of the plugin, which has no class for its errors.
  """
  from jax.experimental import topologies

  described = topologies.get_topology_desc(
    platform="cuda", target_config=target(gpu), topology=f"1x{hosts}x{each}"
  )
  return described.devices


def target(gpu: Gpu) -> str:
  """A GPU as XLA's `GpuTargetConfigProto`, in protobuf's text format."""
  figures = _ALIKE | {
    "core_count": gpu.multiprocessors,
    "fpus_per_core": gpu.fp32_lanes,
    "device_memory_size": gpu.memory,
    "memory_bandwidth": gpu.bandwidth,
    "l2_cache_size": gpu.l2,
    "shared_memory_per_core": gpu.shared,
    "shared_memory_per_block_optin": gpu.shared - _KEPT,
    "clock_rate_ghz": gpu.clock,
  }
  major, minor = gpu.capability
  lines = "\n".join(f"{name}: {value}" for name, value in figures.items())
  return (
    f'platform_name: "CUDA"\ndevice_description_str: "{gpu.kind}"\n'
    "dnn_version_info { major: 9 minor: 8 }\nruntime_version { major: 12 minor: 9 }\n"
    f"gpu_device_info {{\n{lines}\n"
    f"cuda_compute_capability {{ major: {major} minor: {minor} }}\n}}\n"
  )
