"""The training loop: resumed = uninterrupted, sharded = unsharded, NaN is named."""

import dataclasses
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from kard_jax.core import exits
from kard_jax.core import train as train_lib
from kard_jax.core.files import InputError
from kard_jax.core.optimizers import Adafactor, Schedule
from tests.core.toy import Batches, Network, Regression, trainer


def train(folder, batches=None, dropout=0.5, initial=None, **settings):
  return train_lib.train(
    Regression(Network(dropout)),
    batches or Batches(),
    folder,
    trainer=trainer(**settings),
    validation=[Batches()(1000), Batches()(1001)],
    initial=initial,
  )


def leaves(state):
  return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def losses(folder):
  rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  return np.array([row["train/loss"] for row in rows if "train/loss" in row])


class Killed(Exception):
  pass


class Dying(Batches):
  """Batches of a run that is killed when it asks for step 13."""

  def __call__(self, step, rows=None):
    if step == 13:
      raise Killed
    return super().__call__(step, rows)


def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path):
  whole = train(tmp_path / "whole")
  with pytest.raises(Killed):
    train(tmp_path / "killed", Dying())
  assert not (tmp_path / "killed" / "20").exists()
  resumed = train(tmp_path / "killed")
  for one, other in zip(leaves(whole.state), leaves(resumed.state), strict=True):
    np.testing.assert_array_equal(one, other)
  assert whole.metrics == resumed.metrics
  np.testing.assert_array_equal(losses(tmp_path / "whole"), losses(tmp_path / "killed"))


def test_dropout_draws_anew_each_step(tmp_path):
  # Otherwise the test above would hold for a trainer that ignores its rng.
  plain, noisy = train(tmp_path / "plain", dropout=0.0), train(tmp_path / "noisy")
  assert not np.allclose(leaves(plain.state.params)[0], leaves(noisy.state.params)[0])


def test_eight_devices_equal_one(tmp_path):
  train(tmp_path / "one", dropout=0.0)
  run = train(tmp_path / "eight", dropout=0.0, data=4, tensor=2)
  kernel = run.state.params["Dense_0"]["kernel"]
  assert kernel.addressable_shards[0].data.shape == (8, 8)  # 16 columns over 2
  assert run.state.opt_state[1][0].mu["Dense_0"]["kernel"].sharding == kernel.sharding
  np.testing.assert_allclose(losses(tmp_path / "eight"), losses(tmp_path / "one"), rtol=1e-5)


def test_microbatches_change_nothing_but_memory(tmp_path):
  # Weights differ from row to row, so a mean of the parts' means would be wrong.
  train(tmp_path / "one", dropout=0.0)
  train(tmp_path / "four", dropout=0.0, microbatches=4, data=2, tensor=2)
  np.testing.assert_allclose(losses(tmp_path / "four"), losses(tmp_path / "one"), rtol=1e-5)


def test_loss_falls(tmp_path):
  run = train(tmp_path, dropout=0.0, steps=300, save_every=300, evaluate_every=300)
  assert run.metrics["mse"] < 0.2 * losses(tmp_path)[0]


def test_nan_stops_with_step_and_examples_and_keeps_checkpoints(tmp_path):
  with pytest.raises(InputError, match=r"step 7: loss is nan.*example-7-0"):
    train(tmp_path, Batches(poison=7))
  assert (tmp_path / "5").is_dir()
  assert not (tmp_path / "10").exists()


def test_best_and_latest_are_kept(tmp_path):
  train(tmp_path, steps=40, save_every=5, evaluate_every=5)
  kept = {int(path.name) for path in tmp_path.iterdir() if path.name.isdigit()}
  rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  scores = {row["step"]: row["validation/loss"] for row in rows if "validation/loss" in row}
  assert kept == {35, 40, min(scores, key=scores.get)}


@pytest.mark.parametrize("settings", [{"data": 8, "tensor": 1, "microbatches": 3}])
def test_batch_that_does_not_fit_is_an_input_error(tmp_path, settings):
  with pytest.raises(InputError, match="BATCH_SIZE = 16"):
    train(tmp_path, **settings)


def test_mesh_that_does_not_fit_is_an_input_error(tmp_path):
  with pytest.raises(InputError, match="needs 9 devices, here are 8"):
    train(tmp_path, data=9)


def test_adafactor_trains_on_a_mesh_as_on_one_device(tmp_path):
  # Its row and column statistics have fewer axes than the parameters that they belong to.
  for folder, data, tensor in (("one", 1, 1), ("four", 2, 2)):
    settings = trainer(data=data, tensor=tensor)
    settings = dataclasses.replace(settings, optimizer=Adafactor(Schedule(1e-2)))
    train_lib.train(Regression(Network()), Batches(), tmp_path / folder, trainer=settings)
  np.testing.assert_allclose(losses(tmp_path / "four"), losses(tmp_path / "one"), rtol=1e-5)


def given():
  """Parameters to begin with: Dense_1 alone, the other layer begins fresh."""
  return {"Dense_1": {"kernel": jnp.full((16, 1), 0.25)}}


def train_first(folder, **settings):
  """Dense_0 is trained, Dense_1 is given and stays."""
  return train(folder, dropout=0.0, initial=given, trained=["Dense_0"], **settings)


def test_frozen_parameters_have_no_statistics_and_are_in_no_checkpoint(tmp_path):
  run = train_first(tmp_path)
  assert list(run.state.params) == ["Dense_0"]
  assert list(run.state.opt_state[1][0].mu) == ["Dense_0"]
  stored = ocp.PyTreeCheckpointer().restore(tmp_path / "20" / "state")
  assert list(stored["params"]) == ["Dense_0"]
  assert losses(tmp_path)[-1] < losses(tmp_path)[0]


@pytest.mark.parametrize("trained", [None, ["Dense_0"]])
def test_resumed_equals_uninterrupted_from_given_parameters(tmp_path, trained):
  calls = []

  def run(folder, batches=None):
    return train(folder, batches, trained=trained, initial=lambda: calls.append(folder) or given())

  whole = run(tmp_path / "whole")
  with pytest.raises(Killed):
    run(tmp_path / "killed", Dying())
  resumed = run(tmp_path / "killed")
  for one, other in zip(leaves(whole.state), leaves(resumed.state), strict=True):
    np.testing.assert_array_equal(one, other)
  assert whole.metrics == resumed.metrics
  # A run that goes on reads the initial parameters for what is frozen alone.
  assert len(calls) == (2 if trained is None else 3)
  plain = train(tmp_path / "plain")
  assert not np.allclose(leaves(plain.state.params)[0], leaves(whole.state.params)[0])


def test_frozen_parameters_on_a_mesh_and_in_microbatches(tmp_path):
  train_first(tmp_path / "one")
  train_first(tmp_path / "eight", data=2, tensor=4, microbatches=2)
  np.testing.assert_allclose(losses(tmp_path / "eight"), losses(tmp_path / "one"), rtol=1e-5)


def test_frozen_parameters_may_be_kept_in_bfloat16(tmp_path):
  third = {"Dense_1": {"kernel": jnp.full((16, 1), 1 / 3)}}
  settings = {"dropout": 0.0, "trained": ["Dense_0"], "frozen_dtype": "bfloat16", "steps": 1}
  train(tmp_path / "half", initial=lambda: third, **settings)
  rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), third)
  settings["frozen_dtype"] = "float32"
  train(tmp_path / "rounded", initial=lambda: rounded, **settings)
  train(tmp_path / "exact", initial=lambda: third, **settings)
  half, whole, exact = (losses(tmp_path / name) for name in ("half", "rounded", "exact"))
  np.testing.assert_allclose(half, whole, rtol=1e-6)
  assert abs(half - exact) > 1e-5 * exact


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"trained": ["Dense_2"]}, r"no parameter 'Dense_2'; it has Dense_0/kernel, Dense_1"),
    ({"trained": []}, "nothing is trained"),
    ({"trained": ["Dense_0"]}, r"Dense_1/kernel is not trained, so .* set INITIAL"),
    (
      {"initial": lambda: {"Dense_1": {"kernel": jnp.ones((3, 1))}}},
      r"Dense_1/kernel has shape \(3, 1\), the network \(16, 1\)",
    ),
  ],
)
def test_what_is_trained_and_what_is_given_must_fit(tmp_path, settings, message):
  with pytest.raises(InputError, match=message):
    train(tmp_path, **settings)


def test_a_folder_of_another_selection_is_an_input_error(tmp_path):
  train(tmp_path, steps=5)
  with pytest.raises(InputError, match="holds other parameters"):
    train_first(tmp_path)


class Stopping(Batches):
  """Batches of a run that gets SIGTERM while it is in step 7 or so."""

  def __call__(self, step, rows=None):
    if rows is not None and step == 7:
      os.kill(os.getpid(), signal.SIGTERM)
    return super().__call__(step, rows)


def test_sigterm_saves_at_the_next_step_and_the_run_goes_on(tmp_path):
  whole = train(tmp_path / "whole")
  before = signal.getsignal(signal.SIGTERM)
  with pytest.raises(exits.Stopped, match="saved at step") as stopped:
    train(tmp_path / "stopped", Stopping())
  assert signal.getsignal(signal.SIGTERM) is before
  step = int(str(stopped.value).split("step ")[1].split(",")[0])
  assert step < 10  # between two usual saves
  assert (tmp_path / "stopped" / str(step)).is_dir()
  resumed = train(tmp_path / "stopped")
  for one, other in zip(leaves(whole.state), leaves(resumed.state), strict=True):
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("damage", ["cut", "removed"])
def test_a_broken_newest_checkpoint_falls_back_to_the_one_before(tmp_path, capsys, damage):
  whole = train(tmp_path / "whole")
  with pytest.raises(Killed):
    train(tmp_path / "killed", Dying(), save_every=5)
  newest = tmp_path / "killed" / "10"
  files = sorted((newest / "state").rglob("*"), key=lambda p: p.is_file() and p.stat().st_size)
  if damage == "cut":
    files[-1].write_bytes(files[-1].read_bytes()[:100])
  else:
    (newest / "state" / "_METADATA").unlink()
  resumed = train(tmp_path / "killed", save_every=5)
  assert f"warning: {newest} cannot be read" in capsys.readouterr().err
  assert [path for path in (tmp_path / "killed").iterdir() if path.name.startswith("broken-10-")]
  for one, other in zip(leaves(whole.state), leaves(resumed.state), strict=True):
    np.testing.assert_array_equal(one, other)
