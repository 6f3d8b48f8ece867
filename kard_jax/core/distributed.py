"""Which processes make up a run: found where they were started, and joined before JAX starts.

A run on one host is one process, and nothing here does anything. Of several, each is told its
number and the address of process 0 by flags, by Kubernetes, by SLURM, or by a TPU's metadata.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from kard_jax.core import exits, hosts
from kard_jax.core.files import InputError

_FLAGS = ("coordinator_address", "num_processes", "process_id")
_PORT = 8476  # where process 0 listens, if nothing says otherwise: JAX's on TPUs
_METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"


class Cluster(NamedTuple):
  """The processes of a run, as one of them sees it.

  Attributes:
    source: who told.
    coordinator: `host:port` of process 0; None: JAX asks the TPU's metadata for all of these.
    processes: how many.
    process: this one's number, from 0.
    devices: which of the host's devices are this process's; None: all.
  """

  source: str
  coordinator: str | None = None
  processes: int | None = None
  process: int | None = None
  devices: list[int] | None = None


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags by which several processes are started by hand; `find` reads them."""
  group = parser.add_argument_group(
    "several processes", "found by themselves on TPU slices, under SLURM and Kubernetes"
  )
  group.add_argument("--coordinator_address", metavar="HOST:PORT", help="of process 0")
  group.add_argument("--num_processes", type=int, metavar="N", help="in all")
  group.add_argument("--process_id", type=int, metavar="I", help="this one's number, from 0")


def export(arguments: argparse.Namespace) -> None:
  """Puts the flags where `find` sees them in processes that this one starts one after another.

  Raises:
    InputError: a part of them is missing.
  """
  if cluster := _by_flags(arguments):
    os.environ["JAX_COORDINATOR_ADDRESS"] = str(cluster.coordinator)
    os.environ["JAX_NUM_PROCESSES"] = str(cluster.processes)
    os.environ["JAX_PROCESS_ID"] = str(cluster.process)


def find(
  arguments: argparse.Namespace | None = None,
  environ: Mapping[str, str] = os.environ,
  metadata: Callable[[str], str] | None = None,
) -> Cluster | None:
  """The processes that this one belongs to; None if it is the only one.

  Args:
    arguments: with the flags of `add_flags`; they win over all else.
    environ: environment variables.
    metadata: gives an attribute of a TPU's host by name, or "".

  Raises:
    InputError: a part of what is needed is not given, or cannot be.
  """
  for found in (_by_flags(arguments), _by_kubernetes(environ), _by_slurm(environ)):
    if found is not None:
      return _checked(found) if found.processes != 1 else None
  return _by_tpu(environ, metadata)


def start(cluster: Cluster | None, times: hosts.Times) -> None:
  """Joins the processes of a run, once, before JAX has looked at any device.

  Args:
    cluster: from `find`; None leaves this process alone.
    times: how long is waited for others.

  Raises:
    exits.Lost: not all processes came in time.
    RuntimeError: it was called before, or JAX has started already.
  """
  if cluster is None:
    return
  import jax

  # Without this SIGTERM would be swallowed by JAX's own service; `stopping` answers it.
  jax.config.update("jax_enable_preemption_service", False)
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  # A process of one CPU device may else begin a step and the sum behind it in any order, and wait
  # in the one for a process that waits in the other. (Accelerators keep the order of programs.)
  jax.config.update("jax_cpu_enable_async_dispatch", False)
  given: dict[str, Any] = {}
  if cluster.coordinator is not None:
    given = {
      "coordinator_address": cluster.coordinator,
      "num_processes": cluster.processes,
      "process_id": cluster.process,
      "local_device_ids": cluster.devices,
      "cluster_detection_method": "deactivate",  # it would give a SLURM task one device alone
    }
  try:
    jax.distributed.initialize(
      **given,
      initialization_timeout=round(times.start),
      # The watchdog tells more, and sooner; this is for hosts that it cannot run on.
      heartbeat_timeout_seconds=round(max(100, 2 * times.step)),
      shutdown_timeout_seconds=60,
    )
  except jax.errors.JaxRuntimeError as error:
    raise exits.Lost(
      f"{cluster.source}: the processes did not all come within {times.start:.0f} s "
      f"(START_TIMEOUT): {' '.join(str(error).split())[:200]}"
    ) from error
  hosts.join(times)
  if hosts.is_lead():
    print(f"{hosts.count():>7,} processes, found by {cluster.source}", flush=True)


def _by_flags(arguments: argparse.Namespace | None) -> Cluster | None:
  values = {name: getattr(arguments, name, None) for name in _FLAGS}
  lacking = [f"--{name}" for name, value in values.items() if value is None]
  if len(lacking) == len(values):
    return None
  if lacking:
    raise InputError(f"several processes: give {' and '.join(lacking)} too, or none of the three")
  return Cluster("flags", *values.values())


def _by_kubernetes(environ: Mapping[str, str]) -> Cluster | None:
  """By JAX's own variables; in a JobSet the first pod and the index follow from what pods know."""
  address, count = environ.get("JAX_COORDINATOR_ADDRESS"), environ.get("JAX_NUM_PROCESSES")
  index = environ.get("JAX_PROCESS_ID", environ.get("JOB_COMPLETION_INDEX"))
  job = environ.get("JOBSET_NAME"), environ.get("REPLICATED_JOB_NAME")
  if address is None and count is not None and all(job):
    address = f"{job[0]}-{job[1]}-0-0.{job[0]}:{_PORT}"
  if address is None and count is None:
    return None
  needed = {
    "JAX_COORDINATOR_ADDRESS": address,
    "JAX_NUM_PROCESSES": count,
    "JAX_PROCESS_ID (or JOB_COMPLETION_INDEX)": index,
  }
  if lacking := [name for name, value in needed.items() if value is None]:
    raise InputError(f"several processes by environment: set {' and '.join(lacking)} too")
  assert address is not None
  address = address if ":" in address else f"{address}:{_PORT}"
  return Cluster(
    "environment", address, _number(count, "JAX_NUM_PROCESSES"), _number(index, "its index")
  )


def _by_slurm(environ: Mapping[str, str]) -> Cluster | None:
  """Inside `srun`, with more than one task."""
  nodes, index = environ.get("SLURM_STEP_NODELIST"), environ.get("SLURM_PROCID")
  count = environ.get("SLURM_STEP_NUM_TASKS")
  if nodes is None or index is None or count is None:
    return None
  job, step = (_number(environ.get(f"SLURM_{name}", "0"), name) for name in ("JOB_ID", "STEP_ID"))
  port = 10_000 + (31 * job + step) % 20_000  # below the ports that systems hand out themselves
  here = _number(re.split(r"[,(]", environ.get("SLURM_STEP_TASKS_PER_NODE", "1"))[0], "tasks")
  devices = None
  if here > 1:  # several processes share a node: each has one of its devices
    devices = [_number(environ.get("SLURM_LOCALID", "0"), "SLURM_LOCALID")]
  number = _number(index, "SLURM_PROCID")
  count_N = _number(count, "SLURM_STEP_NUM_TASKS")
  return Cluster("SLURM", f"{_first_node(nodes)}:{port}", count_N, number, devices)


def _first_node(nodes: str) -> str:
  """`node7` of `node7`, `node7,x` and `node[7-9],x`; `node03` of `node[03,7]`."""
  found = re.match(r"([^,\[]+)(?:\[([^,\]-]+))?", nodes)
  assert found is not None
  return found[1] + (found[2] or "")


def _by_tpu(
  environ: Mapping[str, str], metadata: Callable[[str], str] | None = None
) -> Cluster | None:
  """On a slice of several hosts; JAX itself then finds the rest."""
  if environ.get("JAX_PLATFORMS", "tpu").split(",")[0] not in ("tpu", ""):
    return None
  named = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES")
  slices = environ.get("MEGASCALE_NUM_SLICES", "1")
  if named is not None or slices != "1":  # GKE
    return Cluster("TPU") if "," in (named or "") or slices != "1" else None
  if metadata is None:
    if "TPU_SKIP_MDS_QUERY" in environ or not _has_tpu():
      return None
    metadata = _attribute
  if "," in metadata("worker-network-endpoints") or "MEGASCALE_NUM_SLICES" in metadata("tpu-env"):
    return Cluster("TPU")
  return None


def _has_tpu() -> bool:
  return any(pathlib.Path("/dev").glob("accel[0-9]*")) or (
    any(pathlib.Path("/dev/vfio").glob("[0-9]*")) and not pathlib.Path("/dev/nvidiactl").exists()
  )


def _attribute(name: str) -> str:
  """An attribute of a Google Cloud machine; "" where there is none."""
  request = urllib.request.Request(_METADATA + name, headers={"Metadata-Flavor": "Google"})
  try:
    with urllib.request.urlopen(request, timeout=5) as answer:
      return str(answer.read().decode())
  except (urllib.error.URLError, TimeoutError, OSError):
    return ""


def _number(text: str | None, name: str) -> int:
  try:
    return int(text or "")
  except ValueError:
    raise InputError(f"several processes: {name} = {text!r} is not a number") from None


def _checked(cluster: Cluster) -> Cluster:
  count, index = cluster.processes or 0, -1 if cluster.process is None else cluster.process
  if not 0 <= index < count:
    raise InputError(
      f"{cluster.source}: process {cluster.process} of {cluster.processes}: numbers are 0 to N - 1"
    )
  if not re.fullmatch(r".+:\d+", cluster.coordinator or ""):
    raise InputError(f"{cluster.source}: coordinator {cluster.coordinator!r} is not HOST:PORT")
  return cluster
