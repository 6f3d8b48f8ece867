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


def asked(folder):
  """The rows that its processes asked for, as (step, row)."""
  paths = sorted(folder.glob("rows-*"))
  return [tuple(map(int, line.split())) for path in paths for line in path.open()]


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


def newer(folder, step):
  return any(found > step for found in steps(folder))


def params(folder, step):
  tree = ocp.PyTreeCheckpointer().restore(folder / "run" / str(step) / "state")
  return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


@pytest.mark.slow
def test_twenty_kills(tmp_path):
  """SIGTERM and SIGKILL at random moments, resumed on 1, 2 and 4 processes in turn.

  With `same` the mesh is always of four devices, so that all bits must be the same; with `other`
  a process has two devices, and the mesh is another after each kill.
  """
  rng = np.random.default_rng(0)
  flags = ["--steps=100", "--save_every=3", "--pace=0.15"]
  run(tmp_path / "whole", 1, "--steps=100", "--devices=4")
  for kind, devices in (("same", {1: 4, 2: 2, 4: 1}), ("other", {1: 2, 2: 2, 4: 2})):
    folder, kills = tmp_path / kind, 0
    while kills < 20:
      count = (1, 2, 4)[kills % 3]
      before = max(steps(folder), default=0)
      command = [WORKER, folder, *flags, f"--devices={devices[count]}"]
      logs = tmp_path / f"{kind}-{kills}"
      with Processes(command, count, logs) as processes:
        processes.until(functools.partial(newer, folder, before), 240)
        time.sleep(float(rng.uniform(0, 1)))
        hit = signal.SIGTERM if rng.uniform() < 0.5 else signal.SIGKILL
        processes.all[int(rng.integers(count))].send_signal(hit)
        status = processes.wait(240)
        if status == [0] * count:
          break
      kills += 1
    print(f"{kind}: {kills} kills")
    run(folder, 2, *flags, f"--devices={devices[2]}", name=f"{kind}-last")
    whole, mine = params(tmp_path / "whole", 100), params(folder, 100)
    for a, b in zip(whole, mine, strict=True):
      if kind == "same":
        np.testing.assert_array_equal(a, b)
      else:
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    seen = collections.Counter(
      line for path in folder.glob("rows-*") for line in set(path.read_text().splitlines())
    )
    assert len(seen) == 100 * 8  # no row of any step was left out
    assert losses(folder / "run").keys() == losses(tmp_path / "whole" / "run").keys()
