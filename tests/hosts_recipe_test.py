"""Grounding, training and answering by their launchers: two processes give what one gives."""

import json
import pathlib
import subprocess
import sys

import pytest

from kard_jax.core import config
from tests import planets
from tests.processes import Processes, losses

RECIPE = pathlib.Path(__file__).resolve().parents[1] / "gin_configs" / "recipes" / "quickstart"


@pytest.fixture(autouse=True)
def _forget_planets():
  yield
  planets.forget()


def settings(workdir, module, **macros):
  macros = {"DATASET": "planets", "MODULE": str(module), "WORKDIR": str(workdir)} | macros
  return [f"--gin.{name}={value!r}" for name, value in macros.items()]


def stage(number, name, workdir, module, count, **macros):
  command = (
    ["launch/" + name.split("_")[0] + ".py"] if name != "student_kard" else ["launch/train.py"]
  )
  command += [f"--gin_file={RECIPE / f'{number}_{name}.gin'}", *settings(workdir, module, **macros)]
  place = "partitioning.Partitioner"
  if name != "ground":
    command += [
      f"--gin.{place}.axes={{'data': -1, 'fsdp': 1, 'tensor': 1}}",
      f"--gin.{place}.devices=0",
      f"--gin.{place}.cpu_devices={4 // count}",
    ]
  with Processes(command, count, workdir / f"logs-{name}") as processes:
    assert processes.wait(300) == [0] * count, processes.told()


def lines(path):
  """Rows without what was measured."""
  rows = map(json.loads, path.read_text().splitlines())
  return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.mark.slow
def test_two_processes_make_what_one_makes(tmp_path):
  module = planets.write(tmp_path / "planets")
  for count in (1, 2):
    workdir = tmp_path / str(count)
    for name in ("1_prepare", "2_index", "3_teach"):
      argv = [f"--gin_file={RECIPE / name}.gin", *settings(workdir, module)]
      assert config.launch(name[2:], "", argv) == 0
    stage(4, "ground", workdir, module, count)
    training = {"STEPS": 20, "BATCH_SIZE": 8, "LOG_EVERY": 1}
    stage(6, "student_kard", workdir, module, count, **training)
    stage(8, "answer_kard_bm25", workdir, module, count, TARGET_LENGTH=16)
  one, two = tmp_path / "1", tmp_path / "2"
  for name in ("silver", "candidates", "retrieved"):
    text = (one / f"{name}.jsonl").read_bytes()
    assert len(text.splitlines()) > 10
    assert text == (two / f"{name}.jsonl").read_bytes()
  first, second = (losses(workdir / "student" / "kard") for workdir in (one, two))
  assert len(first) == 20
  assert first.keys() == second.keys()
  assert list(second.values()) == pytest.approx(list(first.values()), rel=1e-5)
  mine, theirs = (lines(workdir / "predictions" / "kard_bm25.jsonl") for workdir in (one, two))
  assert len(mine) == 20
  for a, b in zip(mine, theirs, strict=True):
    scores = [[s.pop("log_prob") for s in row["samples"]] for row in (a, b)]
    assert a == b
    assert scores[1] == pytest.approx(scores[0], rel=1e-4, abs=1e-3)  # of other parameters' bits


SCRIPT = """
import sys
sys.path.insert(0, {root!r})
import tensorflow as tf
from tensorflow.python.eager import context
hidden, starts = set(), []
hide = tf.config.set_visible_devices
def hiding(devices, kind=None):
  assert devices == []
  hidden.add(kind)
  return hide(devices, kind)
tf.config.set_visible_devices = hiding
start = context.Context.ensure_initialized
def starting(self):
  starts.append(set(hidden))
  return start(self)
context.Context.ensure_initialized = starting
from kard_jax.core import config
assert config.launch("train", "", {argv!r}) == 0
assert starts and starts[0] == {{"GPU", "TPU"}}, starts[:1]
"""


@pytest.mark.slow
def test_tensorflow_is_kept_off_accelerators_before_it_starts(tmp_path):
  # Its devices are taken, memory and all, when its context starts: hidden ones are not.
  module = planets.write(tmp_path / "planets")
  for name in ("1_prepare", "2_index", "3_teach", "4_ground"):
    argv = [f"--gin_file={RECIPE / name}.gin", *settings(tmp_path, module)]
    assert config.launch(name[2:], "", argv) == 0
  argv = [f"--gin_file={RECIPE / '6_student_kard.gin'}", *settings(tmp_path, module, STEPS=1)]
  script = SCRIPT.format(root=str(RECIPE.parents[2]), argv=argv)
  done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr[-3000:]
