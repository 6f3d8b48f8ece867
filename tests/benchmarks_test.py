"""Each benchmark runs, as small as it can be and without peers, and writes its JSON."""

import json
import os
import subprocess
import sys

import pytest

from kard_jax.core import config, gin_text

ROOT = gin_text.ROOT
TINY = ["--size=tiny", "--batch=2", "--inputs=16", "--targets=8"]
COMMANDS = {
  "bm25": ["--passages=2000", "--queries=20", "--k=10", "--rounds=5", "--peers=none"],
  "bm25_growth": ["--sizes=1000,2000,4000", "--queries=20", "--k=10", "--exhaustive=1"],
  "decode": [
    "--size=tiny",
    "--batch=2",
    "--longest=16",
    "--length=8",
    "--rounds=1",
    "--peers=none",
  ],
  "load_checkpoint": ["--size=tiny", "--peers=none"],
  "lora": TINY,
  "rerank": ["--questions=2", "--candidates=3", "--rounds=2", "--peers=none"],
  "train_step": [*TINY, "--rounds=1", "--peers=none"],
}


def run(name, *flags):
  command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *map(str, flags)]
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
  done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
  assert done.returncode == 0, done.stdout + done.stderr[-4000:]
  return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_it_runs(name, tmp_path):
  assert run(name, *COMMANDS[name], f"--json={tmp_path / 'found.json'}")
  found = json.loads((tmp_path / "found.json").read_text())
  assert found["config"]
  assert found["ours"]


@pytest.mark.slow
def test_packing_runs_on_a_work_directory(tmp_path):
  for name in ("1_prepare", "2_index", "3_teach", "4_ground"):
    stage = ROOT / "gin_configs" / "recipes" / "quickstart" / f"{name}.gin"
    assert (
      config.launch(name[2:], "", [f"--gin_file={stage}", f"--gin.WORKDIR={str(tmp_path)!r}"]) == 0
    )
  vocabulary = tmp_path / "vocabulary" / "sentencepiece.model"
  flags = ["--dataset=closed_world", f"--vocabulary={vocabulary}", *TINY, "--rounds=1"]
  out = run("packing", tmp_path, *flags, f"--json={tmp_path / 'found.json'}")
  assert "packed by unpacked" in out
  assert json.loads((tmp_path / "found.json").read_text())["ratios"]
