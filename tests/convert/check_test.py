"""The comparison with transformers: what it says and, where that is installed, that it is right."""

import dataclasses
import functools

import numpy as np
import pytest

from kard_jax.convert import check, huggingface
from kard_jax.core.files import InputError
from tests.convert import folders, t5_test

REPORT = check.Report(
  parameters=12_345, logits=600, largest=8.0, absolute=4e-6, prompts=5, tokens=16, differing=0,
  ties=1,
)  # fmt: skip


def test_a_report_says_absolute_and_relative():
  assert REPORT.equal
  assert "4e-06 absolute, 5e-07 relative" in str(REPORT)
  assert "5 of 5 prompts the same, 16 tokens each, 1 ties" in str(REPORT)


@pytest.mark.parametrize("worse", [{"absolute": 9e-5}, {"differing": 1}, {"absolute": np.nan}])
def test_what_is_not_equal(worse):
  report = dataclasses.replace(REPORT, **worse)
  assert not report.equal
  assert str(report).endswith("DIFFERENT")


def test_without_transformers_it_says_what_to_install(tmp_path, monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "torch", None)
  with pytest.raises(InputError, match=r"not installed here .*; pip install torch transformers"):
    check.check(tmp_path)


@pytest.fixture
def folder(tmp_path):
  pytest.importorskip("torch", reason="torch and transformers are not installed")
  pytest.importorskip("transformers")
  return folders.t5(tmp_path / "hf")


def test_a_folder_is_the_same_in_both(folder):
  report = check.check(folder, prompts=3)
  assert report.equal
  assert report.parameters == 25_852
  assert report.largest > 1


def test_a_difference_is_found(folder, monkeypatch):
  real = huggingface.load

  def wrong(*args):
    params = real(*args)
    params["encoder"]["encoder_norm"]["scale"] *= 1.001
    return params

  monkeypatch.setattr(huggingface, "load", wrong)
  report = check.check(folder, prompts=1)
  assert 1e-5 < report.relative < 0.1
  assert not report.equal


def _every_model():
  """Every golden folder, by a name and what writes it."""
  made = {name: functools.partial(folders.t5, name=name) for name in folders.T5}
  made |= {
    name: lambda place, name=name: t5_test.folder_of(name, place)[0] for name in t5_test.OPTIONS
  }
  for file, name in folders.decoders():
    made[f"{file}-{name}"] = lambda place, of=(file, name): folders.decoder(place, *of)[0]
  return made


@pytest.mark.slow
@pytest.mark.parametrize("name", _every_model())
def test_200_prompts_are_continued_as_by_generate(name, tmp_path):
  pytest.importorskip("torch", reason="torch and transformers are not installed")
  pytest.importorskip("transformers")
  report = check.check(_every_model()[name](tmp_path / name), prompts=200, seed=1)
  assert report.prompts == 200
  assert report.equal, str(report)
  assert report.ties <= 2, str(report)
