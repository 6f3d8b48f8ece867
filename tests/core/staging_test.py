"""Folders through a bucket: whole or not there, copied once a machine."""

import pytest

from kard_jax.core import staging
from kard_jax.core.files import InputError
from tests.retrieval.corpus import bytes_below


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "made/of/parts").mkdir(parents=True)
  (tmp_path / "made/of/parts/a").write_text("ä")
  (tmp_path / "made/b").write_bytes(b"\0" * 999)
  return tmp_path / "made"


def test_a_folder_comes_back_as_it_was(folder, tmp_path):
  place = f"file://{tmp_path}/bucket/x"
  assert not staging.is_whole(place)
  staging.put(folder, place)
  assert staging.is_whole(place)
  staging.get(place, tmp_path / "back")
  assert bytes_below(tmp_path / "back") == bytes_below(folder)
  staging.remove(place)
  staging.remove(place)
  assert not (tmp_path / "bucket/x").exists()


def test_what_a_kill_left_in_a_bucket_is_not_there(folder, tmp_path):
  place = f"file://{tmp_path}/bucket/x"
  staging.put(folder, place)
  (tmp_path / "bucket/x" / staging.WHOLE).unlink()
  (tmp_path / "bucket/x/b").write_text("half")
  assert not staging.is_whole(place)
  with pytest.raises(InputError, match="bucket/x: not there, or not whole"):
    staging.get(place, tmp_path / "back")
  assert not (tmp_path / "back").exists()
  staging.put(folder, place)
  staging.get(place, tmp_path / "back")
  assert bytes_below(tmp_path / "back") == bytes_below(folder)


def test_a_machine_copies_once(folder, tmp_path, monkeypatch):
  monkeypatch.setattr(staging.tempfile, "tempdir", str(tmp_path))
  place = f"file://{tmp_path}/bucket/x"
  staging.put(folder, place)
  copy = staging.on_this_machine(place)
  monkeypatch.setattr(staging, "get", None)
  assert staging.on_this_machine(place) == copy
  assert bytes_below(copy) == bytes_below(folder)


def test_an_unknown_kind_of_bucket_is_named():
  with pytest.raises(InputError, match="STORAGE: nosuch://x/y: "):
    staging.is_whole("nosuch://x/y")
