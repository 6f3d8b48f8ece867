"""A run of several processes on this machine, as tests start it."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]


class Processes:
  """Started together; none outlives the `with`.

  Args:
    command: of each; flags that say which process it is are added.
    count: of processes.
    folder: takes what each prints, `<index>.log`.
  """

  def __init__(self, command, count, folder):
    self.count = count
    self._folder = pathlib.Path(folder)
    self._folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
      free.bind(("127.0.0.1", 0))
      port = free.getsockname()[1]
    places = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(places)}
    self.all = []
    for index in range(count):
      which = [f"--num_processes={count}", f"--process_id={index}"]
      which.append(f"--coordinator_address=127.0.0.1:{port}")
      with self._log(index).open("w") as log:
        self.all.append(
          subprocess.Popen(
            [sys.executable, *map(str, command), *(which if count > 1 else [])],
            cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT,
          )
        )  # fmt: skip

  def __enter__(self):
    return self

  def __exit__(self, *_):
    for process in self.all:
      if process.poll() is None:
        process.kill()
      process.wait()

  def _log(self, index):
    return self._folder / f"{index}.log"

  def wait(self, timeout=120):
    """The exit statuses."""
    deadline = time.monotonic() + timeout
    for process in self.all:
      try:
        process.wait(max(0.1, deadline - time.monotonic()))
      except subprocess.TimeoutExpired:
        raise AssertionError(f"still running after {timeout} s:\n{self.told()}") from None
    return [process.returncode for process in self.all]

  def logs(self):
    """What each has printed."""
    return [self._log(index).read_text() for index in range(self.count)]

  def told(self):
    """All of it, for messages."""
    return "\n".join(f"--- process {i}\n{log[-6000:]}" for i, log in enumerate(self.logs()))

  def until(self, true, timeout=120):
    """Waits until something has come to be, while the processes run."""
    deadline = time.monotonic() + timeout
    while not true():
      assert time.monotonic() < deadline, self.told()
      assert any(process.poll() is None for process in self.all), self.told()
      time.sleep(0.02)


def losses(folder):
  """Step -> training loss, of a run's metrics."""
  rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
  return {row["step"]: row["train/loss"] for row in rows if "train/loss" in row}
