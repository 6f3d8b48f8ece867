"""A small work directory, and registrations that do not outlive a test."""

import itertools
import shutil

import pytest

from tests.tasks import tiny


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory):
  """Written once; tests must not change it."""
  return tiny.write(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def own_files(tiny_files, tmp_path):
  """A copy that a test may spoil."""
  path = tmp_path / "work"
  shutil.copytree(tiny_files.path, path)
  return tiny.Tiny(path, tiny_files.questions, tiny_files.passages, tiny_files.rationales)


@pytest.fixture
def register():
  """Registers a dataset over a work directory, under a name of its own, for one test."""
  from tasks import registry

  names = []

  def call(files=None, name=None, **arguments):
    name = f"tiny{next(_NUMBERS):04}" if name is None else name
    settings = {"questions": "nowhere", "passages": "nowhere.jsonl"}
    if files is not None:
      settings["workdir"] = files.path
    dataset = registry.register(name, **settings | arguments)
    names.append(name)
    return dataset

  yield call
  for name in set(names):
    if name in registry.names():
      registry.unregister(name)


_NUMBERS = itertools.count()
