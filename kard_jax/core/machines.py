"""Machines by name: their chips, what these hold, and devices to compile for.

A program is compiled for a mesh of devices, and the devices need not be there: libtpu describes
those of any TPU slice (`jax.experimental.topologies`), JAX's CUDA plugin hosts of GPUs (`gpus.py`),
and both compile for them on a CPU.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from kard_jax.core import gpus
from kard_jax.core.files import InputError

GIB = 1 << 30


class Chip(NamedTuple):
  """What one chip has; it is one JAX device.

  Attributes:
    name: as topologies call it.
    hbm: bytes of memory, as published; the runtime keeps some of it for itself.
    cores: of which libtpu makes one device; it has to be told where there are two.
    usable: bytes of it that a program may use, where its compiler does not see to that; else 0.
  """

  name: str
  hbm: int
  cores: int = 1
  usable: int = 0


# Google Cloud's pages on each TPU version (docs.cloud.google.com/tpu/docs/v4 and so on).
CHIPS = {
  chip.name: chip
  for chip in (
    Chip("v4", 32 * GIB, cores=2),
    Chip("v5e", 16 * GIB),
    Chip("v5p", 95 * GIB, cores=2),
    Chip("v6e", 32 * GIB),
    # JAX takes three quarters of a GPU's memory where XLA_PYTHON_CLIENT_MEM_FRACTION is not set.
    *(Chip(name, gpu.memory, usable=gpu.memory * 3 // 4) for name, gpu in gpus.GPUS.items()),
    Chip("cpu", 0),
  )
}

# The slices that have a file in gin_configs/hardware/. Google counts v4's and v5p's by cores, two a
# chip, and all others by chips.
SLICES = {
  "v4-8": "v4:2x2x1",
  "v5e-8": "v5e:2x4",
  "v5e-16": "v5e:4x4",
  "v5e-256": "v5e:16x16",
  "v5p-128": "v5p:4x4x4",
  "v6e-64": "v6e:8x8",
}


# libtpu asks a TPU's host for these; without one it complains on stderr. They reach no program.
_NO_TPU = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-16",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",  # no chip is taken: several may compile at a time
}


# Google Cloud's hosts have four chips but for these slices, whose eight are one host's.
_ONE_HOST = {"v5e:2x4": (2, 4, 1), "v6e:2x4": (2, 4, 1)}


class Machine(NamedTuple):
  """Devices to compile for.

  Attributes:
    name: `v5e:4x4`, `h100:4x8`, or `cpu:8`.
    chip: of which kind all are.
    shape: of the slice, in chips; of GPUs, how many a host has, behind how many hosts if several.
  """

  name: str
  chip: Chip
  shape: tuple[int, ...]

  @property
  def chips(self) -> int:
    """How many chips, which is how many devices."""
    return math.prod(self.shape)


def parse(topology: str) -> Machine:
  """A machine by its topology (`v5e:4x4`, `h100:4x8`, `cpu:8`) or by its slice's name (`v5e-16`).

  Raises:
    InputError: it is neither.
  """
  name = SLICES.get(topology, topology)
  found = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name)
  if not found or found[1] not in CHIPS:
    raise InputError(
      f"--topology={topology}: give a chip and a shape, such as v5e:4x4, v5p:4x4x4, h100:4x8 (four "
      f"hosts of eight) or cpu:8 (chips: {', '.join(CHIPS)}), or a slice: {', '.join(SLICES)}"
    )
  shape = tuple(map(int, found[2].split("x")))
  if min(shape) < 1:
    raise InputError(f"--topology={topology}: a shape has no side of 0")
  if found[1] in gpus.GPUS and len(shape) > 2:
    raise InputError(f"--topology={topology}: of GPUs give hosts and GPUs a host, {found[1]}:4x8")
  return Machine(name, CHIPS[found[1]], shape)


def devices(machine: Machine) -> Sequence[jax.Device]:
  """Its devices: this processor pretending to be several, or what a compiler says of others.

  Raises:
    InputError: the compiler is not installed, or knows no such machine; the processor is too few
      devices.
  """
  if machine.chip.name == "cpu":
    if len(jax.devices("cpu")) < machine.chips:
      raise InputError(
        f"--topology={machine.name}: this process has {len(jax.devices('cpu'))} CPU devices; start "
        "it before anything uses JAX"
      )
    return jax.devices("cpu")[: machine.chips]
  try:
    described = _gpus(machine) if machine.chip.name in gpus.GPUS else _tpus(machine)
  except InputError:
    raise
  except Exception as error:  # those of compilers have no class of their own
    reason = " ".join(str(error).split())
    raise InputError(
      f"--topology={machine.name}: its compiler describes no such machine: {reason}"
    ) from None
  if len(described) != machine.chips:
    raise InputError(
      f"--topology={machine.name}: its compiler has {len(described)} devices, not {machine.chips}"
    )
  return described


def _tpus(machine: Machine) -> Sequence[jax.Device]:
  if not (importlib.util.find_spec("libtpu") or os.environ.get("TPU_LIBRARY_PATH")):
    raise InputError(
      f"--topology={machine.name}: compiling for TPUs needs libtpu, which is not installed: "
      "pip install 'kard_jax[compile]', or use --topology=cpu:8"
    )
  for name, value in _NO_TPU.items():
    os.environ.setdefault(name, value)
  from jax.experimental import topologies

  options: dict[str, Any] = {}
  if machine.chip.cores == 2:
    options["chip_config_name"] = "megacore"
  if machine.name in _ONE_HOST:
    options["chips_per_host_bounds"] = _ONE_HOST[machine.name]
  return topologies.get_topology_desc(platform="tpu", topology_name=machine.name, **options).devices


def _gpus(machine: Machine) -> Sequence[jax.Device]:
  if not gpus.is_installed():
    raise InputError(
      f"--topology={machine.name}: compiling for GPUs needs JAX's CUDA plugin, which is not "
      "installed: pip install 'kard_jax[compile-gpu]', or use --topology=cpu:8"
    )
  hosts, each = machine.shape if len(machine.shape) == 2 else (1, machine.chips)
  return gpus.devices(gpus.GPUS[machine.chip.name], hosts, each)


def of_host(machine: Machine) -> Machine:
  """One of a machine's hosts, as a machine: each answers and searches by itself."""
  shape = (2, 2, 1)[: len(machine.shape)]
  if machine.chip.name in gpus.GPUS:
    shape = machine.shape[-1:]
  elif machine.chip.name == "cpu" or machine.name in _ONE_HOST or machine.chips <= 4:
    return machine
  return Machine(f"{machine.chip.name}:{'x'.join(map(str, shape))}", machine.chip, shape)
