"""Apache Beam in tests: where it cannot be imported they skip, and say so."""

import importlib.util
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
TWO_WORKERS = ("--direct_num_workers=2", "--direct_running_mode=multi_processing")

needs_beam = pytest.mark.skipif(
  importlib.util.find_spec("apache_beam") is None,
  reason="apache_beam is not installed: pip install --no-deps -r requirements-beam.txt",
)
