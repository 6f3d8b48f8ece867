"""Who else is in the run: told by flags, the environment, SLURM, or a TPU's metadata."""

import argparse
import pathlib
import subprocess
import sys

import pytest

from kard_jax.core import distributed
from kard_jax.core.files import InputError

ROOT = pathlib.Path(__file__).resolve().parents[2]
SLURM = {
  "SLURM_JOB_ID": "77",
  "SLURM_STEP_ID": "0",
  "SLURM_STEP_NODELIST": "gpu[03,07-09]",
  "SLURM_STEP_NUM_TASKS": "4",
  "SLURM_PROCID": "2",
  "SLURM_LOCALID": "0",
  "SLURM_STEP_TASKS_PER_NODE": "1(x4)",
}


def flags(*argv):
  parser = argparse.ArgumentParser()
  distributed.add_flags(parser)
  return parser.parse_args(argv)


def test_alone_where_nothing_tells_of_others():
  assert distributed.find(flags(), {}) is None
  assert distributed.find(None, {"JAX_PLATFORMS": "cpu", "TPU_WORKER_HOSTNAMES": "a,b"}) is None


def test_flags_win():
  given = flags("--coordinator_address=h:1", "--num_processes=2", "--process_id=1")
  assert distributed.find(given, SLURM)[:4] == ("flags", "h:1", 2, 1)


@pytest.mark.parametrize(
  ("argv", "environ", "said"),
  [
    (["--num_processes=2"], {}, "--coordinator_address and --process_id too"),
    (["--coordinator_address=h:1", "--num_processes=2", "--process_id=2"], {}, "0 to N - 1"),
    (["--coordinator_address=h", "--num_processes=2", "--process_id=1"], {}, "HOST:PORT"),
    ([], {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}, "JAX_COORDINATOR_ADDRESS"),
    ([], {"JAX_COORDINATOR_ADDRESS": "h", "JAX_NUM_PROCESSES": "2"}, "JOB_COMPLETION_INDEX"),
    ([], SLURM | {"SLURM_PROCID": "x"}, "SLURM_PROCID = 'x'"),
  ],
)
def test_a_part_of_it_is_an_error(argv, environ, said):
  with pytest.raises(InputError, match=said):
    distributed.find(flags(*argv), environ)


def test_a_jobset_needs_no_address():
  pod = {"JAX_NUM_PROCESSES": "4", "JOB_COMPLETION_INDEX": "3"}
  pod |= {"JOBSET_NAME": "kard", "REPLICATED_JOB_NAME": "slice"}
  assert distributed.find(None, pod)[1:4] == ("kard-slice-0-0.kard:8476", 4, 3)


def test_slurm():
  found = distributed.find(None, SLURM)
  assert found.coordinator.startswith("gpu03:")
  assert found[2:] == (4, 2, None)  # all devices of its node
  shared = SLURM | {"SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_LOCALID": "1"}
  assert distributed.find(None, shared).devices == [1]
  assert distributed.find(None, SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) is None


@pytest.mark.parametrize(("nodes", "first"), [("a7", "a7"), ("a7,b", "a7"), ("n[7-9],b", "n7")])
def test_first_node(nodes, first):
  found = distributed.find(None, SLURM | {"SLURM_STEP_NODELIST": nodes})
  assert found.coordinator.partition(":")[0] == first


def test_a_tpu_slice_of_several_hosts():
  assert distributed.find(None, {"TPU_WORKER_HOSTNAMES": "a,b"}).source == "TPU"
  assert distributed.find(None, {"TPU_WORKER_HOSTNAMES": "a"}) is None
  metadata = {"worker-network-endpoints": "x:y:10.0.0.1,x:y:10.0.0.2", "tpu-env": ""}
  assert distributed.find(None, {}, metadata.__getitem__).source == "TPU"
  metadata["worker-network-endpoints"] = "x:y:10.0.0.1"
  assert distributed.find(None, {}, metadata.__getitem__) is None


def test_jax_starts_after_the_processes_have_joined():
  # Whatever looked at a device while modules are imported, or gin files read, would break this.
  script = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import jax
from jax._src import xla_bridge
from kard_jax.core import config, distributed
joined = []
def initialize(**_):
  assert not xla_bridge.backends_are_initialized(), "JAX has started before"
  joined.append(1)
  raise SystemExit(7)
jax.distributed.initialize = initialize
import launch.train, launch.answer, launch.ground, launch.rerank, launch.search, launch.index
config.launch("train", "", [
  "--gin_file=gin_configs/recipes/quickstart/6_student_kard.gin",
  "--coordinator_address=127.0.0.1:1", "--num_processes=2", "--process_id=0"])
"""
  done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 7, done.stderr[-2000:]
