"""SLURM: what is submitted, and what the batch script does with the launcher's status."""

import os
import shutil
import subprocess

import pytest

from kard_jax.core import gin_text
from tests.pods.tpu_test import HOSTILE


def test_words_arrive_as_they_were_given(programs):
  done = programs.run("slurm.sh", "run", "--nodes=2", "--qos=high prio", "--", *HOSTILE)
  assert done.returncode == 0, done.stderr
  (call,) = programs.calls
  at = call.index("launch/pods/slurm.sbatch")
  assert call[at + 1 :] == HOSTILE
  assert "--qos=high prio" in call


@pytest.fixture
def checkout(tmp_path):
  """A checkout on a cluster's file system."""
  root = tmp_path / "checkout"
  shutil.copytree(gin_text.ROOT / "launch", root / "launch", ignore=shutil.ignore_patterns("__*"))
  python = root / ".venv" / "bin" / "python"
  python.parent.mkdir(parents=True)
  python.write_text("")
  python.chmod(0o755)
  return root


def batch(programs, checkout, *words):
  """Runs the script as SLURM does: a copy of it, in some other folder."""
  spooled = checkout.parent / "slurm_script"
  shutil.copy(checkout / "launch/pods/slurm.sbatch", spooled)
  return subprocess.run(
    [spooled, *words],
    env=programs.environment | {"SLURM_SUBMIT_DIR": str(checkout), "SLURM_JOB_ID": "17"},
    cwd="/",
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.mark.parametrize(
  ("status", "again"), [(0, False), (1, False), (2, False), (75, True), (134, True), (143, True)]
)
def test_a_job_that_saved_and_left_is_queued_again(programs, checkout, status, again):
  programs.answers("srun", f"exit {status}")
  done = batch(programs, checkout, "launch/train.py", "--gin.X='a b'")
  assert done.returncode == status
  srun, *rest = programs.calls
  assert srun[-4:] == [".venv/bin/python", "-u", "launch/train.py", "--gin.X='a b'"]
  assert "--kill-on-bad-exit=1" in srun
  assert rest == ([["scontrol", "requeue", "17"]] if again else [])


def test_a_job_that_was_stopped_is_not_queued_again(programs, checkout):
  done = programs.run("slurm.sh", "stop", "--job=17")
  assert done.returncode == 0
  assert programs.calls == [
    ["scontrol", "update", "JobId=17", "Requeue=0"],
    ["scancel", "--signal=TERM", "17"],
  ]
  programs.answers("srun", "exit 143")
  programs.answers("scontrol", "exit 1")  # as it answers for such a job
  done = batch(programs, checkout, "launch/train.py")
  assert done.returncode == 143
  assert "not queued again" in done.stderr


def test_secrets_come_from_a_file(programs, checkout):
  (programs.folder / "home" / ".kard_env").write_text("TOKEN='s3cr3t'\n")
  programs.answers("srun", 'echo "$TOKEN" >"$STATE/seen"')
  done = batch(programs, checkout, "launch/train.py")
  assert (programs.folder / "seen").read_text() == "s3cr3t\n"
  assert "s3cr3t" not in done.stdout + done.stderr + str(programs.calls)


def test_the_batch_script_asks_for_a_signal_and_one_process_a_node():
  text = (gin_text.ROOT / "launch/pods/slurm.sbatch").read_text()
  options = {line.split(" ", 1)[1] for line in text.splitlines() if line.startswith("#SBATCH")}
  assert {"--ntasks-per-node=1", "--requeue", "--signal=TERM@120"} <= options


def test_what_is_missing_is_told(programs, checkout):
  shutil.rmtree(checkout / ".venv")
  done = batch(programs, checkout, "launch/train.py")
  assert done.returncode == 2
  assert done.stderr.startswith("error: no .venv in ")
  assert os.listdir(checkout) == ["launch"]
