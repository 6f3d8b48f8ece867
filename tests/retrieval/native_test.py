"""The kernels: memory-safe on any bytes, and the package without them."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from kard_jax.retrieval import blocks, native
from kard_jax.retrieval import index as index_lib
from tests.retrieval import corpus
from tests.retrieval.corpus import WHITE

ROOT = pathlib.Path(__file__).resolve().parents[2]
FUZZ = ROOT / "tests/retrieval/fuzz_kernels.py"
needs_kernels = pytest.mark.skipif(native.library() is None, reason="there is no C compiler")


def texts():
  """6,000 passages with bitmaps, lists and wide frequencies of both."""
  rng = np.random.default_rng(0)
  often = rng.random((6000, 19)) < 0.93
  rest = corpus.zipf_texts(6000, 1, longest=4, words=300)
  made = [
    " ".join([text, *(f"c{word}" for word in np.flatnonzero(row))])
    for text, row in zip(rest, often, strict=True)
  ]
  made[5] += " c5" * 400 + " wide" * 300
  made[9] += " c6" * 300 + " w1 w1 wide"
  return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """An index of three blocks, each with bitmaps."""
  items = texts()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(blocks, "CHARACTERS", sum(map(len, items)) * 2 // 5)
    index = index_lib.build(
      corpus.passages(*items), tmp_path_factory.mktemp("fuzz") / "i", analyzer=WHITE
    )
  assert set(index.segments[0].chunks["kind"].tolist()) == {0, 1, 2, 3}
  return pathlib.Path(index.directory)


def fuzz(folder, rounds, **environment):
  seed = str(int.from_bytes(os.urandom(3)))
  done = subprocess.run(
    [sys.executable, str(FUZZ), str(folder), seed, str(rounds)],
    capture_output=True,
    text=True,
    env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    check=False,
  )
  detail = f"seed {seed}, status {done.returncode}: {done.stdout}{done.stderr}"
  assert done.returncode == 0, detail
  assert "runtime error" not in done.stderr, detail
  print(done.stdout)
  return done.stdout


@needs_kernels
def test_damaged_arrays_do_not_crash_the_process(folder):
  assert fuzz(folder, 300).startswith("survived 300")


@needs_kernels
@pytest.mark.slow
def test_damaged_arrays_do_not_reach_past_memory(folder, tmp_path):
  found = subprocess.run(
    [os.environ.get("CC", "cc"), "-print-file-name=libasan.so"],
    capture_output=True,
    text=True,
    check=True,
  )
  runtime = pathlib.Path(found.stdout.strip())
  if not runtime.is_absolute():
    pytest.skip("the compiler has no sanitizers")
  fuzz(
    folder,
    300,
    SANITIZE="1",
    LD_PRELOAD=str(runtime.resolve()),
    ASAN_OPTIONS="detect_leaks=0",
    XDG_CACHE_HOME=str(tmp_path),
  )
