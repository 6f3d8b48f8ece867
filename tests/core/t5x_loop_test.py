"""The same objectives under `t5x.train` and under our loop: the same losses; the chain goes on."""

import copy
import dataclasses
import json
import math
import os
import shutil
import signal

import gin
import jax
import numpy as np
import pytest

pytest.importorskip("t5x.train", reason="T5X is not installed (docs/t5x.md)", exc_type=ImportError)

from kard_jax.core import (
  checkpoints,
  config,
  exits,
  gin_text,
  monitor,
  stopping,
  t5x_loop,
  t5x_model,
)
from kard_jax.core import train as loop
from kard_jax.core.files import InputError
from kard_jax.core.optimizers import Adafactor, AdamW, Schedule
from kard_jax.core.partitioning import Partitioner
from kard_jax.core.state import Beginning
from tests import meshes, planets, processes
from tests import sharded_training_test as small

GIN = gin_text.ROOT / "gin_configs"
QUICKSTART = GIN / "recipes" / "quickstart"
T5X = GIN / "t5x"
STEPS = 20
CLIP = 1.5
ONE = {"data": 1, "fsdp": 1, "tensor": 1}
VALIDATION = 99  # seed of the batch to evaluate on


@pytest.fixture(autouse=True)
def _forget_planets():
  yield
  planets.forget()


def by_t5x():
  """T5X's `train` under its own run file, as gin gives it to the launcher."""
  every = ["STEPS=20", "SAVE_EVERY=5", "EVALUATE_EVERY=10", "LOG_EVERY=1", "BATCH_SIZE=8"]
  config.activate(gin_text.resolve([str(T5X / "student.gin")], every))
  return copy.deepcopy(gin.query_parameter("launch.train.train.by"))


def trainer(axes=ONE, microbatches=1, **changes):
  return loop.Trainer(
    steps=STEPS,
    optimizer=AdamW(Schedule(1e-2, decay="linear"), weight_decay=0.01, clip=CLIP),
    partitioner=Partitioner(
      axes, meshes.RULES, microbatches=microbatches, devices=math.prod(axes.values())
    ),
    log_every=1,
    evaluate_every=10,
    save_every=5,
    **changes,
  )


def run(by, folder, objective, make, trainer):
  return by(
    objective,
    small.Batches(make),
    folder,
    trainer=trainer,
    validation=[make(np.random.default_rng(VALIDATION))],
  )


def reranker_batch(rng):
  """Lists of unequal length; some have no candidate, and count for nothing."""
  batch = small.reranker_batch(rng)
  real = rng.integers(0, 4, (8, 1))
  return batch | {"passage_mask": (np.arange(3) < real).astype(np.int32)}


def figures(folder, name):
  rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  return {row["step"]: row[name] for row in rows if name in row}


def assert_same(ours, theirs, names):
  for name in names:
    mine, other = figures(ours, name), figures(theirs, name)
    assert mine.keys() == other.keys()
    assert mine
    np.testing.assert_allclose(list(other.values()), list(mine.values()), rtol=1e-5, err_msg=name)


def assert_close(ours, theirs):
  for path, leaf in jax.tree_util.tree_leaves_with_path(ours):
    other = theirs
    for part in path:
      other = other[part.key]
    np.testing.assert_allclose(np.asarray(other), np.asarray(leaf), atol=2e-5, err_msg=str(path))


@pytest.mark.parametrize(
  ("axes", "microbatches"), [(ONE, 1), (meshes.AXES, 2)], ids=["one_device", "mesh_microbatches"]
)
@pytest.mark.parametrize(
  ("objective", "make"),
  [(small.STUDENT, small.student_batch), (small.RERANKER, reranker_batch)],
  ids=["student", "reranker"],
)
def test_t5x_trains_to_our_losses(tmp_path, objective, make, axes, microbatches):
  """AdamW with clipping and decay, batches of unequal weight, on one device and on a mesh."""
  here = trainer(axes, microbatches)
  ours = run(loop.train, tmp_path / "ours", objective, make, here)
  theirs = run(by_t5x(), tmp_path / "t5x", objective, make, here)
  assert list(figures(tmp_path / "ours", "train/loss")) == list(range(1, STEPS + 1))
  held_out = figures(tmp_path / "ours", "validation/loss")
  assert abs(held_out[20] / held_out[10] - 1) > 1e-3  # on the same batch: parameters change
  norms = figures(tmp_path / "ours", "train/grad_norm").values()
  assert min(norms) < CLIP < max(norms)  # some are clipped; Adam alone would not see their scale
  assert len(set(figures(tmp_path / "ours", "train/weight").values())) > 3
  assert_same(
    tmp_path / "ours", tmp_path / "t5x", ["train/loss", "train/weight", "validation/loss"]
  )
  assert_close(ours.state.params, theirs.state.params)
  assert ours.metrics == pytest.approx(theirs.metrics, rel=1e-5)
  assert checkpoints.choose(tmp_path / "t5x") == STEPS  # as our loop leaves it
  read = checkpoints.restore_all_params(tmp_path / "t5x", STEPS)
  jax.tree.map(np.testing.assert_array_equal, theirs.state.params, read)


def test_t5x_draws_our_dropout_and_takes_adafactor(tmp_path):
  network = small.STUDENT.network.clone(dropout_rate=0.5)
  objective = dataclasses.replace(small.STUDENT, network=network)
  here = dataclasses.replace(trainer(), optimizer=Adafactor(Schedule(1e-2)))
  run(loop.train, tmp_path / "ours", objective, small.student_batch, here)
  run(by_t5x(), tmp_path / "t5x", objective, small.student_batch, here)
  batch = small.student_batch(np.random.default_rng(0))
  beginning = Beginning(objective, here.optimizer(STEPS), batch, here.seed, here.partitioner)
  dry = objective.loss(beginning.begin_fresh()[0].params, batch, None)
  assert abs(dry.total / dry.weight - figures(tmp_path / "ours", "train/loss")[1]) > 1e-3
  assert_same(tmp_path / "ours", tmp_path / "t5x", ["train/loss"])


@pytest.mark.parametrize("at", [8, 10], ids=["between_checkpoints", "at_one"])
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, monkeypatch, at):
  """SIGTERM makes T5X save; the next run sees the batches that were to come, and no other."""
  steps, asked = iter(range(STEPS)), []

  def now(stop):
    if next(steps) == at:
      os.kill(os.getpid(), signal.SIGTERM)
    return stop._asked

  class Batches(small.Batches):
    def __call__(self, step, rows=None):
      asked.append(step)
      return super().__call__(step, rows)

  by, batches = by_t5x(), Batches(small.student_batch)
  whole = by(small.STUDENT, batches, tmp_path / "whole", trainer=trainer())
  with monkeypatch.context() as patch:
    patch.setattr(stopping.Stop, "now", now)
    with pytest.raises(exits.Stopped, match="T5X saved"):
      by(small.STUDENT, batches, tmp_path / "stopped", trainer=trainer())
  assert max(t5x_loop.checkpoints.all_steps(str(tmp_path / "stopped" / "t5x"))) == at
  asked.clear()
  resumed = by(small.STUDENT, batches, tmp_path / "stopped", trainer=trainer())
  assert set(range(at, STEPS)) <= set(asked)
  assert not set(asked) & set(range(1, at))  # 0 is asked for its shapes
  jax.tree.map(np.testing.assert_array_equal, whole.state.params, resumed.state.params)
  lines = [figures(tmp_path / name, "train/loss") for name in ("whole", "stopped")]
  assert lines[0] == lines[1]


def test_what_is_not_finite_is_not_handed_on(tmp_path):
  here = dataclasses.replace(trainer(), optimizer=AdamW(Schedule(1e30, warmup=0.0), clip=0.0))
  with pytest.raises(loop.NotFinite, match="LEARNING_RATE"):
    run(by_t5x(), tmp_path, small.STUDENT, small.student_batch, here)
  assert not (tmp_path / str(STEPS)).exists()


@pytest.mark.parametrize(
  ("changes", "named"),
  [
    ({"trained": ["lora_a"]}, "LORA, TRAINED"),
    ({"monitoring": monitor.Monitoring(profile=(1, 2))}, "PROFILE"),
    ({"save_every": 7}, "SAVE_EVERY = 7, EVALUATE_EVERY = 10"),
  ],
)
def test_what_t5x_cannot_do_is_said_first(changes, named):
  by = t5x_loop.Loop(train=print)
  by.check(trainer(), evaluates=True)
  with pytest.raises(InputError, match=named):
    by.check(dataclasses.replace(trainer(), **changes), evaluates=True)


def test_an_objective_is_a_t5x_model():
  batch = small.student_batch(np.random.default_rng(0))
  model = t5x_model.Model(small.STUDENT, optimizer_def=None)
  shapes = {name: feature.shape for name, feature in batch.items()}
  types = {name: feature.dtype for name, feature in batch.items()}
  params = model.get_initial_variables(jax.random.key(0), shapes, types)["params"]
  total, metrics = model.eval_fn(params, batch)
  expected = small.STUDENT.loss(params, batch, None)
  assert total == expected.total
  assert metrics["loss"].compute() == pytest.approx(float(expected.total / expected.weight))
  assert metrics.keys() == {*expected.metrics}
  with pytest.raises(NotImplementedError, match="answer"):
    model.predict_batch(params, batch)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """A work directory with stages 1 to 4 of the quickstart, on the planets."""
  folder = tmp_path_factory.mktemp("t5x")
  module = planets.write(folder / "planets")
  for stage in ("1_prepare", "2_index", "3_teach", "4_ground"):
    assert launch(stage[2:], [QUICKSTART / f"{stage}.gin"], folder / "work", module) == 0
  planets.forget()
  return folder / "work", module


def launch(launcher, files, workdir, module, **macros):
  macros = {"DATASET": "planets", "MODULE": str(module), "WORKDIR": str(workdir)} | macros
  argv = [f"--gin_file={path}" for path in files]
  argv += [f"--gin.{name}={value!r}" for name, value in macros.items()]
  return config.launch(launcher, "", argv)


def test_the_launcher_trains_a_student_by_t5x_and_the_chain_goes_on(prepared, tmp_path, capsys):
  base, module = prepared
  macros = {"STEPS": STEPS, "BATCH_SIZE": 8, "LOG_EVERY": 1, "DROPOUT": 0.1, "SAVE_EVERY": 10}
  macros |= {"EVALUATE_EVERY": 10}
  stage = QUICKSTART / "6_student_kard.gin"
  for name, files in {"ours": [stage], "t5x": [stage, T5X / "loop.gin"]}.items():
    shutil.copytree(base, tmp_path / name)
    assert launch("train", files, tmp_path / name, module, **macros) == 0
    planets.forget()
  trained = [tmp_path / name / "student" / "kard" for name in ("ours", "t5x")]
  assert (trained[1] / "t5x" / f"checkpoint_{STEPS}").is_dir()
  assert len(figures(trained[0], "train/loss")) == STEPS
  assert_same(*trained, ["train/loss", "train/weight"])
  record = json.loads((tmp_path / "t5x" / "student_kard.meta.json").read_text())
  assert record["settings"]["train.train.by"] == "@t5x_loop.Loop()"
  assert "by = @t5x_loop.Loop()" in record["operative_config"]
  assert launch("train", [T5X / "loop.gin", stage], tmp_path / "t5x", module, **macros) == 0
  assert "done before" in capsys.readouterr().out  # and the order of the files is the same
  answer = QUICKSTART / "8_answer_kard_bm25.gin"
  planets.forget()
  assert launch("answer", [answer], tmp_path / "t5x", module) == 0
  assert (tmp_path / "t5x" / "answer_kard_bm25.meta.json").exists()
  more = {"TRAINED": ["decoder"], "INITIAL": "student/kard", "FOLDER": "student/more"}
  planets.forget()
  files = [T5X / "student.gin"]  # another stage by its name: student
  assert launch("train", files, tmp_path / "t5x", module, **macros, **more) == exits.BAD_INPUT
  assert "LORA, TRAINED" in capsys.readouterr().err
  assert not (tmp_path / "t5x" / "student" / "more").exists()


def test_the_launcher_trains_a_reranker_by_t5x(prepared, tmp_path):
  base, module = prepared
  macros = {"STEPS": STEPS, "BATCH_SIZE": 8, "LOG_EVERY": 1, "SAVE_EVERY": 10}
  macros |= {"EVALUATE_EVERY": 10}
  for name, file in {"ours": QUICKSTART / "7_reranker.gin", "t5x": T5X / "reranker.gin"}.items():
    shutil.copytree(base, tmp_path / name)
    assert launch("train", [file], tmp_path / name, module, **macros) == 0
    planets.forget()
  trained = [tmp_path / name / "reranker" for name in ("ours", "t5x")]
  assert len(figures(trained[0], "train/loss")) == STEPS
  assert_same(*trained, ["train/loss", "train/kl", "train/weight"])
  read = [checkpoints.restore_all_params(folder, STEPS) for folder in trained]
  assert_close(*read)


@pytest.mark.slow
def test_two_hosts_train_by_t5x_as_one_does(prepared, tmp_path):
  """Each of two processes with two devices hands its rows of a batch to T5X."""
  base, module = prepared
  macros = {"STEPS": STEPS, "BATCH_SIZE": 8, "LOG_EVERY": 1, "SAVE_EVERY": 10, "FSDP_AXIS": 2}
  macros |= {"DATASET": "planets", "MODULE": str(module), "EVALUATE_EVERY": 10}
  command = [gin_text.ROOT / "launch" / "train.py", f"--gin_file={T5X / 'student.gin'}"]
  command += [f"--gin_file={GIN / 'hardware' / 'mesh.gin'}"]
  for count, name in ((1, "one"), (2, "two")):
    shutil.copytree(base, tmp_path / name)
    here = macros | {"WORKDIR": str(tmp_path / name)}
    flags = [f"--gin.{key}={value!r}" for key, value in here.items()]
    flags += [f"--gin.partitioning.Partitioner.cpu_devices={4 // count}"]
    with processes.Processes([*command, *flags], count, tmp_path / f"{name}_logs") as hosts:
      assert hosts.wait(400) == [0] * count, hosts.told()
  one, two = (tmp_path / name / "student" / "kard" for name in ("one", "two"))
  assert len(figures(one, "train/loss")) == STEPS
  assert_same(one, two, ["train/loss", "train/weight"])
  read = [checkpoints.restore_all_params(folder, STEPS) for folder in (one, two)]
  assert_close(*read)
