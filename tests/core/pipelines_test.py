"""Choosing a runner, what is said without Beam, and how a worker's error reaches its user."""

import os
import sys

import pytest

from kard_jax.core import gin_text, hosts, pipelines
from kard_jax.core.files import InputError
from tests.beam import ROOT, TWO_WORKERS, needs_beam

FLAGS = "--direct_num_workers=2 --direct_running_mode=multi_processing"


def test_this_process_by_default():
  assert pipelines.chosen() is None
  with pytest.raises(InputError, match=r"BEAM_OPTIONS = --x=1: give RUNNER too"):
    pipelines.chosen(None, "--x=1")
  with pytest.raises(InputError, match=r"BEAM_STORAGE = gs://x: give RUNNER too"):
    pipelines.chosen(None, "", "gs://x")
  with pytest.raises(InputError, match=r"BEAM_STORAGE = '/mnt/x': a bucket is needed"):
    pipelines.chosen("DirectRunner", "", "/mnt/x")


def test_options_as_one_text_or_as_a_list(monkeypatch):
  monkeypatch.setattr(pipelines, "_module", lambda: None)
  by_text = pipelines.chosen("DirectRunner", FLAGS)
  assert by_text == pipelines.Beam("DirectRunner", TWO_WORKERS)
  assert by_text == pipelines.chosen("DirectRunner", list(TWO_WORKERS))


def test_one_host_starts_the_workers(monkeypatch):
  monkeypatch.setattr(hosts, "count", lambda: 2)
  assert pipelines.chosen() is None
  with pytest.raises(InputError, match="'DirectRunner': Beam deals out the work itself; start one"):
    pipelines.chosen("DirectRunner")


def test_without_beam_the_command_that_installs_it_is_told(monkeypatch):
  monkeypatch.setitem(sys.modules, "apache_beam", None)
  with pytest.raises(
    InputError, match=r"RUNNER: .*pip install --no-deps -r requirements-beam\.txt"
  ):
    pipelines.chosen("DirectRunner")
  assert (ROOT / "requirements-beam.txt").is_file()


@pytest.mark.parametrize("stage", ["2_index", "4_ground"])
def test_a_runner_decides_no_output(stage):
  file = f"gin_configs/recipes/quickstart/{stage}.gin"
  with_it = gin_text.resolve([file], ["RUNNER='DirectRunner'", f"BEAM_OPTIONS='{FLAGS}'"])
  assert with_it.value("RUNNER") == "DirectRunner"
  assert with_it.fingerprint() == gin_text.resolve([file]).fingerprint()
  assert "SEED" in with_it.fingerprint()


def refuse(number):
  """Runs on a worker, which is another process."""
  raise InputError(f"folder-{number}/{os.getpid()}: not here [brackets] & quotes 'x'; look there")


@needs_beam
@pytest.mark.parametrize("options", [(), TWO_WORKERS], ids=["one", "two"])
def test_a_workers_error_is_told_as_it_was_raised(options):
  beam = pipelines.Beam("DirectRunner", options)
  with pytest.raises(InputError) as caught, beam.pipeline() as (module, pipeline):
    pipeline | module.Create([7]) | module.Map(refuse)
  message = str(caught.value)
  assert message.startswith("folder-7/")
  assert message.endswith(": not here [brackets] & quotes 'x'; look there")
  if options:
    assert f"/{os.getpid()}:" not in message


@needs_beam
def test_other_errors_stay_what_they_are():
  with pytest.raises(ZeroDivisionError), pipelines.Beam("DirectRunner").pipeline():
    _ = 1 / 0


@needs_beam
def test_an_unknown_runner_is_named():
  beam = pipelines.Beam("WalkingRunner")
  with pytest.raises(InputError, match="RUNNER = 'WalkingRunner': ") as caught, beam.pipeline():
    pass
  assert "FlinkRunner" in str(caught.value)  # Beam tells those it knows
