"""launch/convert.py: in, out and compared, by the command line."""

import json
import tarfile

import jax
import numpy as np
import pytest

from kard_jax.convert import huggingface, t5x
from kard_jax.core import checkpoints
from launch import convert
from tests.convert import folders, t5x_test


@pytest.fixture
def folder(tmp_path):
  return folders.tokenizer(folders.t5(tmp_path / "hf", dtype=folders.BFLOAT16))


def test_in_and_out_gives_the_same_bytes(folder, tmp_path, capsys):
  assert convert.main(["import", str(folder), str(tmp_path / "run")]) == 0
  assert "t5.T5.embed_dim = 20" in capsys.readouterr().out
  network = huggingface.network(folder)
  shapes, shardings = huggingface.abstract(network, 2, None)
  wanted = huggingface.tree(checkpoints.abstract(shapes, shardings))
  restored = checkpoints.restore_params(tmp_path / "run", wanted)
  jax.tree.map(np.testing.assert_array_equal, restored, huggingface.load(folder, network))
  out = tmp_path / "out"
  assert convert.main(["export", str(tmp_path / "run"), str(out), "--like", str(folder)]) == 0
  for file in folder.iterdir():
    assert (out / file.name).read_bytes() == file.read_bytes()


def test_scanned_and_as_t5x(folder, tmp_path):
  run = tmp_path / "run"
  assert convert.main(["import", str(folder), str(run), "--scan"]) == 0
  arguments = ["export", str(run), str(tmp_path / "out"), "--to=t5x", f"--like={folder}"]
  assert convert.main(arguments) == 0
  network = huggingface.network(folder)
  params = t5x.load(tmp_path / "out", network)
  jax.tree.map(np.testing.assert_array_equal, params, huggingface.load(folder, network))


def test_a_t5x_checkpoint_comes_in_and_goes_out(tmp_path, capsys):
  with tarfile.open(t5x_test.GOLDEN) as packed:
    packed.extractall(tmp_path, filter="data")
  source, run = tmp_path / "tied", tmp_path / "run"
  assert convert.main(["import", str(source), str(run)]) == 0
  arguments = ["export", str(run), str(tmp_path / "out"), "--to=t5x", f"--like={source}"]
  assert convert.main(arguments) == 0
  t5x_test.assert_same(
    t5x.zarr_store.Store(tmp_path / "out"), t5x.zarr_store.Store(source)
  )  # fmt: skip
  capsys.readouterr()
  assert convert.main(["export", str(run), str(tmp_path / "hf"), f"--like={source}"]) == 2
  assert "--to=huggingface needs a Hugging Face folder" in capsys.readouterr().err
  assert convert.main(["import", str(source), str(run)]) == 2
  assert "run: holds a checkpoint already" in capsys.readouterr().err


def test_mistakes_are_one_line(folder, tmp_path, capsys):
  run = tmp_path / "run"
  config = json.loads((folder / "config.json").read_text())
  other = folders.write(tmp_path / "other", config | {"d_ff": 30}, {"a": np.zeros(1)})
  (other / "model.safetensors").unlink()
  assert convert.main(["import", str(folder), str(run)]) == 0
  for arguments, complaint in [
    (["import", str(tmp_path / "none"), str(run)], "none: no such folder"),
    (
      ["export", str(tmp_path), str(tmp_path / "out"), "--like", str(folder)],
      "holds neither a config.json nor checkpoints",
    ),
    (["export", str(run), str(tmp_path / "out"), "--like", str(other)], "holds other parameters"),
    (["check", str(folder), "--prompts=-1"], "--prompts=-1: give 0 or more"),
  ]:
    capsys.readouterr()
    assert convert.main(arguments) == 2
    error = capsys.readouterr().err
    assert complaint in error
    assert error.count("error:") == 1
