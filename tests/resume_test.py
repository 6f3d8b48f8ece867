"""A training stage killed by SIGKILL goes on at its last checkpoint, to the same bits."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from kard_jax.core import config
from tests import planets

ROOT = pathlib.Path(__file__).resolve().parents[1]
RECIPE = ROOT / "gin_configs" / "recipes" / "quickstart"
STEPS = 60


@pytest.fixture(autouse=True)
def _forget_planets():
  yield
  planets.forget()


def settings(workdir, module, **macros):
  macros = {"DATASET": "planets", "MODULE": str(module), "WORKDIR": str(workdir)} | macros
  return [f"--gin.{name}={value!r}" for name, value in macros.items()]


def train(workdir, module):
  """The student stage as a process, with a checkpoint every ten steps."""
  macros = {"STEPS": STEPS, "SAVE_EVERY": 10, "EVALUATE_EVERY": 20, "BATCH_SIZE": 8, "DROPOUT": 0.1}
  command = [sys.executable, str(ROOT / "launch" / "train.py")]
  command += [f"--gin_file={RECIPE / '6_student_kard.gin'}"]
  return subprocess.Popen([*command, *settings(workdir, module, **macros)], cwd=ROOT)


def params(workdir):
  tree = ocp.PyTreeCheckpointer().restore(workdir / "student" / "kard" / str(STEPS) / "state")
  return {str(path): np.asarray(leaf) for path, leaf in _flat(tree)}


def _flat(tree):
  return jax.tree_util.tree_flatten_with_path(tree)[0]


def checkpoints(workdir):
  folder = workdir / "student" / "kard"
  return sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())


@pytest.mark.slow
def test_killed_training_ends_with_the_same_bits(tmp_path):
  module = planets.write(tmp_path / "planets")
  for name in ("whole", "killed"):
    for stage in ("1_prepare", "2_index", "3_teach", "4_ground"):
      argv = [f"--gin_file={RECIPE / stage}.gin", *settings(tmp_path / name, module)]
      assert config.launch(stage[2:], "", argv) == 0
  assert train(tmp_path / "whole", module).wait() == 0
  process = train(tmp_path / "killed", module)
  deadline = time.monotonic() + 120
  while not checkpoints(tmp_path / "killed") and time.monotonic() < deadline:
    time.sleep(0.02)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert checkpoints(tmp_path / "killed")
  assert max(checkpoints(tmp_path / "killed")) < STEPS  # it was killed before its end
  assert train(tmp_path / "killed", module).wait() == 0
  whole, resumed = params(tmp_path / "whole"), params(tmp_path / "killed")
  assert whole.keys() == resumed.keys()
  for name in whole:
    np.testing.assert_array_equal(whole[name], resumed[name], err_msg=name)
  losses = [
    {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}
    for rows in (
      map(json.loads, (tmp_path / name / "student/kard/metrics.jsonl").read_text().splitlines())
      for name in ("whole", "killed")
    )
  ]
  assert losses[0] == losses[1]
