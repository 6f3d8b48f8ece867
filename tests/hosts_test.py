"""Several processes do what one does; what happens when one is stopped, killed, late or fails."""

import collections
import functools
import re
import signal
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from kard_jax.core import exits
from tests.processes import Processes, losses

WORKER = "tests/hosts_worker.py"


def run(folder, count, *flags, name=None, timeout=240):
  """Trains in `folder` on `count` processes to the end; gives the losses by step."""
  logs = folder.with_name(f"{name or folder.name}-logs")
  devices = [] if any("--devices" in flag for flag in flags) else [f"--devices={4 // count}"]
  with Processes([WORKER, folder, *devices, *flags], count, logs) as processes:
    assert processes.wait(timeout) == [0] * count, processes.told()
  return losses(folder / "run")


def steps(folder):
  return sorted(int(p.name) for p in (folder / "run").glob("*") if p.name.isdigit())


@pytest.mark.slow
@pytest.mark.parametrize(("count", "tensor"), [(2, 1), (4, 1), (2, 4), (4, 2)])
def test_processes_train_to_the_losses_of_one(tmp_path, count, tensor):
  one = run(tmp_path / "one", 1, "--devices=8", f"--tensor={tensor}")
  several = run(tmp_path / "some", count, f"--devices={8 // count}", f"--tensor={tensor}")
  assert len(set(one.values())) == len(one) == 20  # it does train
  assert one.keys() == several.keys()
  np.testing.assert_allclose([*several.values()], [*one.values()], rtol=1e-5)
  rows = asked(tmp_path / "some")
  assert len(rows) == len(set(rows)) == 20 * 8  # each process has read its own


def asked(folder, before=()):
  """The rows that its processes asked for, as (step, row); without those of earlier processes."""
  paths = set(folder.glob("rows-*")) - set(before)
  return [
    tuple(map(int, line.split())) for path in paths for line in path.open() if line[-1] == "\n"
  ]


@pytest.mark.slow
def test_sigterm_to_one_host_saves_on_all(tmp_path):
  folder, pace = tmp_path / "run", ["--pace=0.3", "--steps=40"]
  with Processes([WORKER, folder, *pace], 2, tmp_path / "logs") as processes:
    processes.until(lambda: steps(folder))
    processes.all[1].send_signal(signal.SIGTERM)
    assert processes.wait() == [143, 143], processes.told()
    saved = max(steps(folder))
    assert all(f"saved at step {saved}" in log for log in processes.logs())
  assert saved < 40
  whole, resumed = run(tmp_path / "whole", 2, "--steps=40"), run(folder, 2, "--steps=40", name="2")
  assert whole == resumed


@pytest.mark.slow
def test_a_host_that_stalls_is_named_by_all(tmp_path):
  """It stalls for 60 s; the time-out is 30 s."""
  flags = ["--stall_at=9", "--step_timeout=30", "--batch_size=12"]
  with Processes([WORKER, tmp_path / "run", *flags], 3, tmp_path / "logs") as processes:
    processes.until(lambda: (9, 0) in asked(tmp_path / "run"))
    started = time.monotonic()
    assert processes.wait(240) == [75, 75, 75], processes.told()
    took = time.monotonic() - started
    for log in processes.logs():
      assert "host 2 (last at step 8 of 20" in log
      assert "is late; this is host" in log
      assert "Start the run again: it goes on at its last checkpoint" in log
    assert "hosts_worker.py" in processes.logs()[2]  # where it hangs
  assert 25 < took < 45


@pytest.mark.slow
def test_bad_input_on_one_host_ends_all(tmp_path):
  with Processes([WORKER, tmp_path / "run", "--fail_at=5"], 2, tmp_path / "logs") as processes:
    assert processes.wait() == [2, 2], processes.told()
    assert "host 1 failed: error: row 5 is broken" in processes.logs()[0]


@pytest.mark.slow
def test_a_killed_host_ends_the_others(tmp_path):
  command = [WORKER, tmp_path / "run", "--pace=0.3", "--steps=60", "--step_timeout=30"]
  with Processes(command, 2, tmp_path / "logs") as processes:
    processes.until(lambda: steps(tmp_path / "run"))
    processes.all[1].kill()
    assert processes.wait() == [75, -9], processes.told()
    assert re.search(r"host 1 \(last at .*silent for", processes.logs()[0])


def params(folder, step):
  """The whole state, whatever processes and devices had it."""
  place, checkpointer = folder / "run" / str(step) / "state", ocp.PyTreeCheckpointer()
  stored = checkpointer.metadata(place).item_metadata.tree
  plain = jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray), stored)
  tree = checkpointer.restore(place, args=ocp.args.PyTreeRestore(restore_args=plain))
  return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


class History:
  """The rows that trained what a run has become; what a kill undid is not in it."""

  def __init__(self, folder):
    self.folder = folder
    self.rows = []
    self.undone = 0
    self._read = set()

  def new(self):
    """What the processes of the last start have asked for."""
    return asked(self.folder, self._read)

  def add(self):
    """Takes that in; gives the step at which they went on."""
    rows = self.new()
    self._read = set(self.folder.glob("rows-*"))
    begin = min(rows)[0]
    kept = [(step, row) for step, row in self.rows if step < begin]
    self.undone += len(self.rows) - len(kept)
    self.rows = kept + rows
    return begin


@pytest.mark.slow
@pytest.mark.parametrize(
  ("layouts", "exact"),
  [
    ([(2, 2), (4, 1)], True),
    ([(1, 4), (2, 2), (4, 1)], False),
    ([(1, 2), (2, 2), (4, 2)], False),
  ],
  ids=["one-mesh", "one-mesh-other-sums", "another-mesh-each-time"],
)
def test_twenty_kills(tmp_path, layouts, exact):
  """Ten SIGTERMs, ten SIGKILLs at random steps of a random process; each time another layout.

  A layout is of processes and the devices of each. On CPUs the devices of one process sum in
  another order than those of several do, so that the last bits differ; 2 and 4 sum alike. As AdamW
  lets such differences grow, runs that are not the same to the bit have another optimizer.
  """
  total, folder = 240, tmp_path / "killed"
  flags = [f"--steps={total}", "--save_every=3", f"--optimizer={'adamw' if exact else 'sgd'}"]
  run(tmp_path / "whole", 2 if exact else 1, *flags, timeout=400)  # on four devices
  rng = np.random.default_rng(0)
  history, killed = History(folder), collections.Counter()
  signals = rng.permutation([signal.SIGTERM, signal.SIGKILL] * 10)
  for number, sent in enumerate(map(signal.Signals, signals)):
    count, devices = layouts[number % len(layouts)]
    before = max(steps(folder), default=0)
    goal = before + int(rng.integers(1, 10))
    command = [WORKER, folder, *flags, "--pace=0.1", f"--devices={devices}"]
    with Processes(command, count, tmp_path / f"logs-{number}") as processes:
      processes.until(lambda goal=goal: goal in dict(history.new()), 400)
      victim = int(rng.integers(count))
      processes.all[victim].send_signal(sent)
      status = processes.wait(400)
    told = f"kill {number}: {sent.name} to {victim} of {count}: {status}, {processes.told()}"
    if sent == signal.SIGTERM:
      assert status == [143] * count, told
    else:
      assert status.pop(victim) == -signal.SIGKILL, told
      # Process 0 keeps what JAX's service knows: without it JAX itself ends the others.
      assert set(status) <= ({75} if victim else {128 - exits.ABORTED, 75}), told
    assert history.add() == before, told
    killed[sent.name] += 1
  run(folder, 2, *flags, name="last", timeout=400)
  assert history.add() < total
  print(f"{dict(killed)}, {history.undone} rows asked for again")
  assert killed == {"SIGTERM": 10, "SIGKILL": 10}
  assert history.undone > 0
  # All rows of the epoch are in what the run has become, and each is there once.
  assert sorted(history.rows) == [(step, row) for step in range(total) for row in range(8)]
  same = np.testing.assert_array_equal if exact else close
  for a, b in zip(params(tmp_path / "whole", total), params(folder, total), strict=True):
    same(a, b)
  curve, mine = losses(tmp_path / "whole" / "run"), losses(folder / "run")
  assert curve.keys() == mine.keys()
  same([*mine.values()], [*curve.values()])
  assert curve[total] < curve[1] - 0.2  # it has learnt something


close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
