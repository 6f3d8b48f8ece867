"""A TPU slice's life: quoting across ssh, the job on each worker, preemptions, deletion."""

import os
import shutil
import signal
import subprocess
import time

import pytest

from kard_jax.core import gin_text
from tests.pods import programs as fakes

PLACE = ("--project=mine", "--zone=us-west4-a")
HOSTS = 2
HOSTILE = [
  "launch/train.py",
  "--gin_file=a b.gin",
  "--gin.WORKDIR='/bucket/it''s \"mine\"'",
  "--gin.X=$HOME `date` $(date) \\n \\",
  "--gin.Y=a;b&c|d>e*?[!] ~ #{1,2}",
  "--gin.Z=('é', \"ü\")",
  "",
  "--gin.T=tab\there",
  "--gin.N=two\nlines",
]
# gcloud as far as tpu.sh needs it: states from a file, one a call, the last one for ever; ssh runs
# the command in each worker's home, by the plainest shell.
GCLOUD = """
case "$*" in
  *"queued-resources describe"*)
    state="$(head -n 1 "$STATE/states")"
    [ "$(wc -l <"$STATE/states")" = 1 ] || sed -i 1d "$STATE/states"
    [ "$state" != none ] || exit 1
    echo "$state" ;;
  *"tpu-vm ssh"*)
    for word in "$@"; do
      case "$word" in
        --worker=all) workers="0 1" ;;
        --worker=*) workers="${word#*=}" ;;
        --command=*) command="${word#*=}" ;;
      esac
    done
    status=0
    for worker in $workers; do
      (cd "$STATE/worker_$worker" && HOME="$PWD" WORKER="$worker" sh -c "$command") || status=$?
    done
    exit "$status" ;;
esac
"""
# A launcher on a worker: writes down its words; answers SIGTERM as ours do; ends as it is told to.
PYTHON = """#!/usr/bin/env bash
trap 'echo saved; exit 143' TERM
printf '%s\\0' "$@" >"$HOME/words"
echo "runs on $WORKER with ${TOKEN:-no token}"
while [ ! -f "$HOME/end" ]; do sleep 0.02; done
exit "$(cat "$HOME/end")"
"""


@pytest.fixture
def slice_(programs):
  """A slice of two workers, installed."""
  for worker in range(HOSTS):
    root = programs.folder / f"worker_{worker}" / "kard_jax"
    shutil.copytree(gin_text.ROOT / "launch", root / "launch", ignore=shutil.ignore_patterns("__*"))
    shutil.copy(gin_text.ROOT / "requirements.txt", root)
    python = root / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
  programs.answers("gcloud", GCLOUD)
  set_states(programs, "ACTIVE")
  yield programs
  end(programs, 0)
  wait_for(lambda: "running" not in job_states(programs))


def home(programs, worker):
  return programs.folder / f"worker_{worker}"


def set_states(programs, *states):
  (programs.folder / "states").write_text("".join(f"{state}\n" for state in states))


def end(programs, *statuses):
  for worker in range(HOSTS):
    part = home(programs, worker) / "end.part"
    part.write_text(str(statuses[worker % len(statuses)]))
    part.rename(home(programs, worker) / "end")  # never read half-written


def tpu(programs, command, *arguments, **environment):
  return programs.run("tpu.sh", command, *PLACE, *arguments, **environment)


def job_states(programs):
  return tpu(programs, "status").stdout.split("\n")[1:-1]


def wait_for(condition):
  deadline = time.monotonic() + 20
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.02)


def started(programs):
  return all((home(programs, worker) / "words").exists() for worker in range(HOSTS))


def verbs(programs):
  """Calls in short: create, describe, install, start, status, ..."""
  short = []
  for call in programs.calls:
    command = next((word for word in call if word.startswith("--command=")), "")
    ours = command.rpartition("worker.sh ")[2].split(" ")[0]
    if call[3] == "queued-resources":
      short.append(call[4])
    else:
      short.append({"mount": "install"}.get(ours, ours) or call[4])
    if short[-2:] == ["describe", "status"] == short[-4:-2]:
      del short[-2:]  # it is asked as often as it takes
  return short


def test_words_arrive_as_they_were_given(slice_):
  assert tpu(slice_, "run", "--", *HOSTILE).returncode == 0
  wait_for(lambda: started(slice_))
  for worker in range(HOSTS):
    words = (home(slice_, worker) / "words").read_text().split("\0")[:-1]
    assert words == ["-u", *HOSTILE]


def test_a_dry_run_prints_what_is_run(slice_):
  """The printed line, given to a shell, is the same call."""
  printed = tpu(slice_, "run", "--dry_run", "--", *HOSTILE).stdout
  assert slice_.calls == []
  subprocess.run(["sh", "-c", printed], env=slice_.environment, check=True, capture_output=True)
  assert tpu(slice_, "run", "--", *HOSTILE).returncode == 2  # it runs by now; see below
  first, second = slice_.calls
  assert first == second


def test_a_job_from_start_to_stop(slice_):
  assert job_states(slice_) == ["none", "none"]
  assert tpu(slice_, "logs").stderr.endswith("nothing was started\n")
  run = tpu(slice_, "run", "--", "launch/train.py")
  assert run.stderr.count(": started\n") == HOSTS
  wait_for(lambda: started(slice_))
  assert job_states(slice_) == ["running", "running"]
  again = tpu(slice_, "run", "--", "launch/train.py")
  assert again.returncode == 2
  assert again.stderr.count("runs on") == HOSTS
  assert "runs on 1 with no token" in tpu(slice_, "logs", "--worker=all").stdout
  assert tpu(slice_, "stop").returncode == 0
  wait_for(lambda: job_states(slice_) == ["ended 143", "ended 143"])
  assert tpu(slice_, "logs").stdout.splitlines()[-1] == "saved"
  watched = tpu(slice_, "watch")
  assert (watched.returncode, watched.stderr) == (143, "kard: the launcher ended with status 143\n")


def test_logs_follow_until_the_end(slice_):
  tpu(slice_, "run", "--", "launch/train.py")
  wait_for(lambda: started(slice_))
  with subprocess.Popen(
    [fakes.PODS / "tpu.sh", "logs", *PLACE], env=slice_.environment, stdout=subprocess.PIPE
  ) as following:
    assert following.stdout.readline() == b"runs on 0 with no token\n"
    assert following.poll() is None
    end(slice_, 0)
    assert following.wait(timeout=20) == 0


def test_a_killed_job_is_no_running_one(slice_):
  tpu(slice_, "run", "--", "launch/train.py")
  wait_for(lambda: started(slice_))
  pid = int((home(slice_, 0) / "kard_job" / "pid").read_text())
  os.killpg(pid, signal.SIGKILL)
  wait_for(lambda: job_states(slice_)[0] == "ended 137")
  assert job_states(slice_)[1] == "running"
  end(slice_, 1)
  watched = tpu(slice_, "watch")  # the host that failed first has the smaller status
  assert watched.returncode == 1


def test_wait_returns_when_the_slice_is_there(programs):
  programs.answers("gcloud", GCLOUD)
  set_states(programs, "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
  done = tpu(programs, "wait")
  assert done.returncode == 0
  assert [line.split()[-1] for line in done.stderr.splitlines()] == [
    "ACCEPTED",
    "WAITING_FOR_RESOURCES",
    "PROVISIONING",
    "ACTIVE",
  ]
  set_states(programs, "ACCEPTED", "FAILED")
  done = tpu(programs, "wait")
  assert done.returncode == 2
  assert "kard is FAILED: delete it, and create it again" in done.stderr
  set_states(programs, "none")
  assert "there is no queued resource kard" in tpu(programs, "wait").stderr


INSTALL = """
case "$*" in *"worker.sh install"*) exit "$(cat "$STATE/installs" 2>/dev/null || echo 0)" ;; esac
"""


def everything(programs, *arguments):
  """`all` with an installation that does nothing."""
  programs.answers("gcloud", INSTALL + GCLOUD)
  return tpu(programs, "all", "--bucket=mine-kard", *arguments, "--", "launch/train.py")


BEGIN = ["create", "describe", "scp", "install", "start"]


def test_all_ends_with_deletion(slice_):
  end(slice_, 0)
  done = everything(slice_)
  assert done.returncode == 0, done.stderr
  assert "runs on 0" in done.stdout
  assert verbs(slice_) == [*BEGIN, "log", "describe", "status", "delete"]


@pytest.mark.parametrize("status", [1, 2])
def test_all_deletes_after_a_failure_too(slice_, status):
  end(slice_, 0, status)
  assert everything(slice_).returncode == status
  assert verbs(slice_)[-1] == "delete"
  (slice_.folder / "calls").unlink()
  (slice_.folder / "installs").write_text("3")
  assert everything(slice_).returncode != 0
  assert verbs(slice_) == [*BEGIN[:-1], "delete"]


def test_all_keeps_the_slice_if_told_to(slice_):
  end(slice_, 0)
  assert everything(slice_, "--keep").returncode == 0
  assert "delete" not in verbs(slice_)


def test_all_deletes_when_it_is_stopped(slice_):
  slice_.answers("gcloud", INSTALL + GCLOUD)
  child = subprocess.Popen(
    [fakes.PODS / "tpu.sh", "all", *PLACE, "--", "launch/train.py"],
    env=slice_.environment,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
    start_new_session=True,
  )
  wait_for(lambda: started(slice_))
  wait_for(lambda: "log" in verbs(slice_))
  os.killpg(child.pid, signal.SIGTERM)
  child.wait(timeout=20)
  assert verbs(slice_)[-1] == "delete"


def test_a_preempted_slice_is_made_again(slice_):
  """It is gone at the first look, so it is deleted, made, installed and started anew."""
  set_states(slice_, "ACTIVE", "SUSPENDING", "ACTIVE")
  end(slice_, 0)
  done = everything(slice_)
  assert done.returncode == 0, done.stderr
  assert "kard is SUSPENDING" in done.stderr
  assert "goes on at the last checkpoint; 19 restarts left" in done.stderr
  watch = ["log", "describe"]
  assert verbs(slice_) == [*BEGIN, *watch, "delete", *BEGIN, *watch, "status", "delete"]


def test_a_job_that_was_told_to_leave_is_started_again(slice_):
  """The slice is still there: only the launcher starts."""
  end(slice_, 143)
  done = everything(slice_, "--restarts=2")
  assert done.returncode == 2
  assert "preempted more than --restarts=2 times" in done.stderr
  watch = ["log", "describe", "status"]
  assert verbs(slice_) == [*BEGIN, *watch, "start", *watch, "start", *watch, "delete"]


def test_secrets_are_copied_and_never_shown(slice_, tmp_path):
  """The launcher has them; no command, line of output or list of processes does."""
  secret = "s3cr3t-token"
  file = tmp_path / "mine.env"
  file.write_text(f"TOKEN='{secret}'\n")
  slice_.answers("gcloud", INSTALL + GCLOUD)
  done = tpu(slice_, "install", f"--env_file={file}")
  assert done.returncode == 0, done.stderr
  scp = next(call for call in slice_.calls if str(file) in call)
  assert "kard:.kard_env" in scp
  assert any("chmod 600 .kard_env" in call[-1] for call in slice_.calls)
  for worker in range(HOSTS):
    shutil.copy(file, home(slice_, worker) / ".kard_env")
  done = tpu(slice_, "run", "--", "launch/train.py")
  wait_for(lambda: started(slice_))
  logged = tpu(slice_, "logs", "--worker=all")
  assert f"with {secret}" in logged.stdout  # this launcher does show it
  assert secret not in done.stdout + done.stderr + str(slice_.calls)


def test_install_carries_the_checkout_and_no_more(programs, tmp_path):
  """Also what is not committed yet; not what git ignores."""
  programs.answers("gcloud", 'case "$*" in *"tpu-vm scp"*) cp kard_jax.tgz "$STATE/" ;; esac')
  assert tpu(programs, "install").returncode == 0
  listed = subprocess.run(
    ["tar", "-tzf", str(tmp_path / "kard_jax.tgz")], capture_output=True, text=True, check=True
  ).stdout.splitlines()
  assert {"requirements.txt", "launch/train.py", "launch/pods/worker.sh"} <= set(listed)
  assert not any(name.startswith((".venv", ".git/", "runs/")) for name in listed)
  assert not any("__pycache__" in name for name in listed)


def test_a_worker_gets_python_and_the_pinned_packages(slice_):
  """JAX for the accelerator at the version that requirements.txt pins."""
  slice_.install("python3", fakes.FAKE)
  root = home(slice_, 0) / "kard_jax"
  shutil.rmtree(root / ".venv")
  done = subprocess.run(
    [root / "launch/pods/worker.sh", "install", "tpu"],
    env=slice_.environment,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  pin = next(
    line.removeprefix("jax==")
    for line in (root / "requirements.txt").read_text().splitlines()
    if line.startswith("jax==")
  )
  _, create, install = slice_.calls
  assert create[:4] == ["python3", "-m", "uv", "venv"]
  assert install[-3:] == ["--requirement", "requirements.txt", f"jax[tpu]=={pin}"]
