"""`launch/index.py` and `launch/ground.py` leave the same files with a runner and without."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from kard_jax.core import config
from tests import planets
from tests.beam import ROOT, TWO_WORKERS, needs_beam
from tests.retrieval.corpus import bytes_below

RECIPE = ROOT / "gin_configs" / "recipes" / "quickstart"
RUNNER = {"RUNNER": "DirectRunner", "BEAM_OPTIONS": " ".join(TWO_WORKERS)}


@pytest.fixture(autouse=True)
def _forget_planets():
  yield
  planets.forget()


def launch(number, name, module, workdir, **macros):
  macros |= {"DATASET": "planets", "MODULE": str(module), "WORKDIR": str(workdir)}
  argv = [f"--gin_file={RECIPE / f'{number}_{name}.gin'}"]
  argv += [f"--gin.{macro}={value!r}" for macro, value in macros.items()]
  return config.launch(name, "", argv)


@needs_beam
def test_two_workers_leave_the_files_that_one_process_leaves(tmp_path, capsys):
  module = planets.write(tmp_path / "planets")
  for name, macros in (("local", {}), ("beam", RUNNER)):
    workdir = tmp_path / name
    assert launch(1, "prepare", module, workdir) == 0
    assert launch(2, "index", module, workdir, **macros) == 0
    assert launch(3, "teach", module, workdir) == 0
    assert launch(4, "ground", module, workdir, **macros) == 0
  local, beam = tmp_path / "local", tmp_path / "beam"
  assert bytes_below(local / "knowledge") == bytes_below(beam / "knowledge")
  for file in ("silver.jsonl", "candidates.jsonl", "retrieved.jsonl"):
    assert len((local / file).read_text().splitlines()) > 10
    assert (local / file).read_bytes() == (beam / file).read_bytes()
  assert not [*beam.glob(".grounding*"), *(beam / "knowledge").glob(".*")]
  capsys.readouterr()
  assert launch(4, "ground", module, beam) == 0  # the runner is none of its settings
  assert "done before" in capsys.readouterr().out


def test_a_runner_needs_beam(tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "apache_beam", None)
  module = planets.write(tmp_path / "planets")
  assert launch(1, "prepare", module, tmp_path / "w") == 0
  assert launch(2, "index", module, tmp_path / "w", **RUNNER) == 2
  error = capsys.readouterr().err
  assert len(error.splitlines()) == 1
  assert "pip install --no-deps -r requirements-beam.txt" in error
  assert not (tmp_path / "w" / "knowledge").exists()


@contextlib.contextmanager
def started(*flags):
  """The index launcher with two workers; nothing of it is left at the end."""
  command = [sys.executable, "launch/index.py", *flags, "--runner=DirectRunner"]
  command.append(f"--beam_options={' '.join(TWO_WORKERS)}")
  environment = os.environ | {
    "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
  }
  process = subprocess.Popen(
    command, cwd=ROOT, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True
  )
  try:
    yield process
  finally:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def corpus(path: pathlib.Path, first: int, count: int) -> str:
  with path.open("w") as file:
    for number in range(first, first + count):
      row = {"id": str(number), "title": "", "text": f"w{number % 997} v{number % 13}"}
      file.write(json.dumps(row) + "\n")
  return f"--passages={path}"


@pytest.mark.slow
@needs_beam
def test_killed_with_its_workers_it_goes_on_and_passages_are_added(tmp_path):
  first, more = corpus(tmp_path / "c.jsonl", 0, 300_000), corpus(tmp_path / "m.jsonl", 300_000, 99)
  out, work = tmp_path / "out", tmp_path / "out" / ".building-bm25"
  with started(first, f"--out={out}") as process:
    deadline = time.monotonic() + 120
    while not any(work.glob("block-*")):
      assert process.poll() is None, process.stderr.read()
      assert time.monotonic() < deadline
      time.sleep(0.01)
  left = {path.name: path.stat().st_ino for path in work.glob("block-*")}
  assert 0 < len(left) < 5
  assert not (out / "bm25").exists()
  for flags in ((first,), (more, "--add")):
    with started(*flags, f"--out={out}") as process:
      _, told = process.communicate(timeout=200)
      assert process.returncode == 0, told
  assert not work.exists()
  for flags in ((first,), (more, "--add")):
    command = [sys.executable, "launch/index.py", *flags, f"--out={tmp_path / 'local'}"]
    subprocess.run(command, cwd=ROOT, check=True)
  assert bytes_below(out / "bm25") == bytes_below(tmp_path / "local" / "bm25")
