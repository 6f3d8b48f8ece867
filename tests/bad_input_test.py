"""Bad input through the launchers: one line that says where, status 2, and nothing else touched."""

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from kard_jax.core import config
from launch import run
from tests import planets

ROOT = pathlib.Path(__file__).resolve().parents[1]
RECIPE = ROOT / "gin_configs/recipes/quickstart"
STAGES = ("1_prepare", "2_index", "3_teach", "4_ground")


class Place:
  """A dataset's folder, and a work directory in which the stages before training are done."""

  def __init__(self, root: pathlib.Path):
    self.data, self.work = root / "planets", root / "work"
    self.module = self.data / "planets.py"

  def overrides(self):
    values = {"DATASET": "planets", "MODULE": self.module, "WORKDIR": self.work}
    return [f"--gin.{name}='{value}'" for name, value in values.items()]

  def launch(self, stage, *more):
    planets.forget()  # another place's
    argv = [f"--gin_file={RECIPE / stage}.gin", *self.overrides(), *more]
    return config.launch(stage.split("_")[1], "", argv)

  def hashes(self):
    paths = sorted(path for path in self.work.rglob("*") if path.is_file())
    return {
      str(path.relative_to(self.work)): hashlib.sha256(path.read_bytes()).hexdigest()
      for path in paths
    }

  def edit(self, name, line, **fields):
    """Changes fields of a row, lines counted from 1."""
    path = self.data / name
    rows = [json.loads(text) for text in path.read_text().splitlines()]
    rows[line - 1] |= fields
    planets.write_rows(path, rows)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  root = tmp_path_factory.mktemp("finished")
  planets.write(root / "planets", rationales_of=("train", "test"))
  place = Place(root)
  for stage in STAGES:
    assert place.launch(stage) == 0
  yield root
  planets.forget()


@pytest.fixture
def place(finished, tmp_path):
  """A copy to spoil: its own paths, so nothing in it is known to be done but the files."""
  shutil.copytree(finished / "planets", tmp_path / "planets")
  place = Place(tmp_path)
  for name in ("questions", "knowledge", "vocabulary"):
    shutil.copytree(finished / "work" / name, place.work / name)
  for name in ("rationales", "silver", "candidates", "retrieved"):
    shutil.copy(finished / "work" / f"{name}.jsonl", place.work)
  return place


def fails(place, capsys, action, *parts):
  """Asserts that an action ends in status 2 and one line with the parts, and changes nothing."""
  before = place.hashes()
  capsys.readouterr()
  assert action() == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("error: ")
  for part in parts:
    assert str(part) in line
  assert line.count("error: ") == 1
  assert place.hashes() == before
  assert not list(place.work.rglob(".tmp-*"))


@pytest.mark.parametrize(
  ("name", "fields", "message"),
  [
    ("train.jsonl", {"id": "train-Zorbal-metal"}, "train-Zorbal-metal"),
    ("train.jsonl", {"label": 4}, "label"),
    ("train.jsonl", {"label": -1}, "label"),
    ("train.jsonl", {"question": "  "}, "question"),
    ("test.jsonl", {"options": ["tin"]}, "options"),
  ],
)
def test_a_question(place, capsys, name, fields, message):
  place.edit(name, 7, **fields)
  where = f"{place.data / name}:7:"
  fails(place, capsys, lambda: place.launch("1_prepare"), where, message)


def test_a_broken_json_line(place, capsys):
  path = place.data / "test.jsonl"
  path.write_text(path.read_text().replace('"label": ', '"label" ', 1))
  fails(place, capsys, lambda: place.launch("1_prepare"), f"{path}:1: not JSON")


@pytest.mark.parametrize("text", ["", "\n\n"])
@pytest.mark.parametrize("stage", ["1_prepare", "2_index"])
def test_an_empty_passage_file(place, capsys, text, stage):
  path = place.data / "passages.jsonl"
  path.write_text(text)
  fails(place, capsys, lambda: place.launch(stage), f"{path}: ")


def test_a_rationale_for_an_unknown_question(place, capsys):
  path = place.data / "rationales.jsonl"
  place.edit(path.name, 3, question_id="train-Pluto-metal")
  fails(
    place, capsys, lambda: place.launch("3_teach"), f"{path}:3: ", "question 'train-Pluto-metal'"
  )
  path = place.work / "rationales.jsonl"  # and one that another program wrote
  rows = path.read_text().splitlines(keepends=True)
  path.write_text("".join([*rows, rows[0].replace("train-", "unseen-")]))
  fails(place, capsys, lambda: place.launch("4_ground"), f"{path}:{len(rows) + 1}: ", "'unseen-")


@pytest.mark.parametrize("stage", STAGES)
def test_a_misspelt_macro(place, capsys, stage):
  near = "--gin.DATASETT='planets': nothing uses the macro DATASETT; did you mean DATASET"
  fails(place, capsys, lambda: place.launch(stage, "--gin.DATASETT='planets'"), near)


def test_a_misspelt_macro_of_a_recipe(place, capsys):
  argv = ["--recipe=quickstart", *place.overrides(), "--gin.STEP=10"]
  fails(
    place, capsys, lambda: run.main(argv), "--gin.STEP=10: no stage uses STEP; did you mean STEPS"
  )


def test_a_misspelt_macro_in_a_file(place, tmp_path, capsys):
  shutil.copytree(RECIPE, tmp_path / "recipe")  # as one does who wants another
  path = tmp_path / "recipe/4_ground.gin"
  lines = path.read_text().count("\n")
  path.write_text(path.read_text() + "SILVR = 3\n")
  argv = [f"--gin_file={path}", *place.overrides()]
  fails(
    place,
    capsys,
    lambda: config.launch("ground", "", argv),
    f"{path}:{lines + 1}: ",
    "SILVR",
    "SILVER?",
  )


def index_files(place):
  """The files of index and passages that stand for each kind: header, arrays, shard, ids."""
  folder = place.work / "knowledge"
  return sorted(path for path in folder.rglob("*") if path.is_file())


def test_an_index_whose_file_was_cut_short(place, capsys):
  for path in index_files(place):
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    fails(place, capsys, lambda: place.launch("4_ground"), path)
    path.write_bytes(whole)


def test_an_index_whose_bytes_changed(place, capsys):
  for path in index_files(place):
    whole, stat = path.read_bytes(), path.stat()
    flipped = bytearray(whole)
    flipped[len(whole) * 2 // 3] ^= 1
    path.write_bytes(flipped)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # a disk's fault leaves no new time
    fails(place, capsys, lambda: place.launch("4_ground"), place.work / "knowledge")
    path.write_bytes(whole)


@pytest.mark.parametrize(
  ("stage", "changed"),
  [
    ("1_prepare", "planets/train.jsonl"),
    ("1_prepare", "planets/planets.py"),
    ("2_index", "planets/passages.jsonl"),
    ("3_teach", "planets/rationales.jsonl"),
    ("4_ground", "work/rationales.jsonl"),
  ],
)
def test_an_input_that_changed_under_a_finished_stage(finished, capsys, stage, changed):
  place, path = Place(finished), finished / changed
  before, stat = path.read_bytes(), path.stat()
  path.write_bytes(before + b"\n")
  try:
    fails(place, capsys, lambda: place.launch(stage), path, "changed since", "--redo")
    if stage == "1_prepare":
      argv = ["--recipe=quickstart", *place.overrides()]
      fails(place, capsys, lambda: run.main(argv), path, "changed since")
  finally:
    path.write_bytes(before)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
  assert place.launch(stage) == 0, "put back, it is done as before"


def test_an_output_that_changed_after_its_stage(finished, capsys):
  place, path = Place(finished), finished / "work/silver.jsonl"
  before = path.read_bytes()
  path.write_bytes(before[:-20])
  fails(place, capsys, lambda: place.launch("4_ground"), path, "changed since")
  path.write_bytes(before)


def test_a_process_ends_with_status_2_and_one_line(place):
  place.edit("train.jsonl", 2, label=9)
  before = place.hashes()
  argv = [sys.executable, str(ROOT / "launch/prepare.py"), f"--gin_file={RECIPE}/1_prepare.gin"]
  done = subprocess.run([*argv, *place.overrides()], capture_output=True, text=True, timeout=60)
  assert done.returncode == 2
  (line,) = done.stderr.splitlines()
  assert line.startswith(f"error: {place.data / 'train.jsonl'}:2: ")
  assert place.hashes() == before
