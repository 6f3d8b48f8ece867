"""Grounding, training and answering by their launchers: two processes give what one gives."""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
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


def stage(number, name, workdir, module, **macros):
  """A launcher, and its command line for a stage of the recipe."""
  launcher = {"student": "train"}.get(name.split("_")[0], name.split("_")[0])
  return launcher, [
    f"--gin_file={RECIPE / f'{number}_{name}.gin'}",
    *settings(workdir, module, **macros),
  ]


NETWORK = {"num_encoder_layers": 1, "num_decoder_layers": 1, "embed_dim": 32, "mlp_dim": 32}


def shared_stages(workdir, module, cpu_devices):
  """Retrieval, training and answering: what several processes do together."""
  small = {f"t5.T5.{name}": size for name, size in NETWORK.items()}
  small |= {
    "partitioning.Partitioner.axes": {"data": -1, "fsdp": 1, "tensor": 1},
    "partitioning.Partitioner.devices": 0,
    "partitioning.Partitioner.cpu_devices": cpu_devices,
  }
  training = small | {"STEPS": 20, "BATCH_SIZE": 8, "LOG_EVERY": 1}
  return [
    stage(4, "ground", workdir, module),
    stage(6, "student_kard", workdir, module, **training),
    stage(8, "answer_kard_bm25", workdir, module, **small, TARGET_LENGTH=16),
  ]


def lines(path):
  """Rows without what was measured."""
  rows = map(json.loads, path.read_text().splitlines())
  return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def made_by_one(tmp_path_factory):
  """A module, and the work directory of one process of eight devices."""
  folder = tmp_path_factory.mktemp("planets")
  module = planets.write(folder / "planets")
  workdir = folder / "one"
  first = [
    stage(n, name, workdir, module) for n, name in enumerate(("prepare", "index", "teach"), 1)
  ]
  for launcher, argv in first:
    assert config.launch(launcher, "", argv) == 0
  shutil.copytree(workdir, folder / "before")
  for launcher, argv in shared_stages(workdir, module, cpu_devices=8):
    assert config.launch(launcher, "", argv) == 0
  planets.forget()
  return module, workdir


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_make_what_one_makes(made_by_one, tmp_path, count):
  """Of two devices each: the same retrieval, the same losses, the same predictions."""
  module, one = made_by_one
  several = tmp_path / "several"
  shutil.copytree(one.parent / "before", several)
  (tmp_path / "stages.json").write_text(json.dumps(shared_stages(several, module, cpu_devices=2)))
  worker = ["tests/hosts_stages_worker.py", tmp_path / "stages.json"]
  with Processes(worker, count, tmp_path / "logs") as processes:
    assert processes.wait(300) == [0] * count, processes.told()
  for name in ("silver", "candidates", "retrieved"):
    text = (one / f"{name}.jsonl").read_bytes()
    assert len(text.splitlines()) > 10
    assert text == (several / f"{name}.jsonl").read_bytes()
  first, second = (losses(workdir / "student" / "kard") for workdir in (one, several))
  assert len(set(first.values())) == len(first) == 20  # it does train
  assert first.keys() == second.keys()
  np.testing.assert_allclose([*second.values()], [*first.values()], rtol=1e-5)
  mine, theirs = (lines(workdir / "predictions" / "kard_bm25.jsonl") for workdir in (one, several))
  assert len(mine) == 20
  assert len({sample["rationale"] for row in mine for sample in row["samples"]}) > 20
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
