"""A stage's record: skipped when nothing changed, named when something did, whole or not at all."""

import hashlib
import json
import os

import pytest
from etils import epath

from kard_jax.core.files import InputError
from kard_jax.core.provenance import Stage

SETTINGS = {"STEPS": "3", "f.steps": "%STEPS"}


def stage(folder, **changes):
  return Stage("index", folder, SETTINGS | changes)


def make(folder, text="made", redo=False, fail=False, **changes):
  made = stage(folder, **changes)
  with made.running(redo=redo):
    made.reads("in.txt")
    made.reads("in")
    made.writes("out.txt").write_text(text)
    deep = made.writes("knowledge/out")
    deep.mkdir(parents=True)
    (deep / "a").write_text(text)
    if fail:
      raise RuntimeError
  return made


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "in.txt").write_text("input")
  (tmp_path / "in").mkdir()
  (tmp_path / "in" / "a").write_text("a")
  return tmp_path


@pytest.fixture
def made(folder):
  make(folder)
  return folder


def refusal(of):
  with pytest.raises(InputError) as caught:
    of.is_finished()
  assert "--redo" in str(caught.value)
  return str(caught.value)


def test_a_stage_is_finished_once_it_has_run_and_nothing_changed(folder):
  assert not stage(folder).is_finished()
  assert make(folder).is_finished()
  assert stage(folder).is_finished()
  assert (folder / "out.txt").read_text() == "made"
  assert (folder / "knowledge/out/a").read_text() == "made"
  assert not [path for path in folder.iterdir() if path.name.startswith(".tmp")]


def test_the_record_says_what_the_stage_was_made_from(made):
  record = json.loads((made / "index.meta.json").read_text())
  assert record["settings"] == SETTINGS
  assert set(record["inputs"]) == {"in.txt", "in"}
  assert set(record["outputs"]) == {"out.txt", "knowledge/out"}
  assert len(record["inputs"]["in"]["sha256"]) == 64
  assert "jax" in record["packages"]


def test_changed_settings_are_named_with_both_values(made):
  assert "with STEPS = 3, now 4." in refusal(stage(made, STEPS="4"))
  assert "with NEW = (unset), now 1." in refusal(stage(made, NEW="1"))
  many = refusal(stage(made, **{f"S{i}": "0" for i in range(6)}))
  assert "and 2 more." in many


@pytest.mark.parametrize(
  ("path", "said"),
  [
    ("in.txt", "from"),
    ("in/a", "from"),
    ("out.txt", "with the output"),
    ("knowledge/out/a", "with the output"),
  ],
)
def test_a_changed_file_is_named(made, path, said):
  old = (made / path).stat()
  (made / path).write_text("X" * old.st_size)  # of the same size
  os.utime(made / path, ns=(old.st_atime_ns, old.st_mtime_ns + 1))
  message = refusal(stage(made))
  assert "has changed since" in message
  assert f"made {said} {made / path.removesuffix('/a')}," in message


def test_a_new_file_in_an_input_folder_is_a_change(made):
  (made / "in" / "b").write_text("b")
  assert "has changed since" in refusal(stage(made))


def test_an_input_that_is_gone_is_named(made):
  (made / "in.txt").unlink()
  assert f"{made / 'in.txt'}, which is gone" in refusal(stage(made))


def test_new_times_with_the_same_bytes_are_no_change(made):
  for path in ("in.txt", "in/a", "out.txt", "knowledge/out/a"):
    os.utime(made / path, ns=(1, 1))
  (made / "in.txt").unlink()
  (made / "in.txt").write_text("input")
  assert stage(made).is_finished()


def test_a_deleted_output_is_made_again(made):
  (made / "out.txt").unlink()
  assert not stage(made).is_finished()
  make(made, "again")
  assert stage(made).is_finished()
  assert (made / "out.txt").read_text() == "again"


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"settings": 1}', "\udcff"])
def test_a_broken_record_is_named(made, text):
  (made / "index.meta.json").write_bytes(text.encode(errors="surrogateescape"))
  assert f"{made / 'index.meta.json'}: not a stage's record" in refusal(stage(made))


def test_an_exception_leaves_no_output_no_record_and_no_temporary(folder):
  before = sorted(folder.rglob("*"))
  with pytest.raises(RuntimeError):
    make(folder, fail=True)
  assert sorted(folder.rglob("*")) == before


def test_an_exception_leaves_earlier_outputs_as_they_were(made):
  with pytest.raises(RuntimeError):
    make(made, "half", fail=True)
  assert (made / "out.txt").read_text() == "made"
  assert (made / "knowledge/out/a").read_text() == "made"
  assert stage(made).is_finished()
  assert not (made / ".tmp-index").exists()


def test_what_a_kill_left_is_no_part_of_the_next_run(folder):
  (folder / ".tmp-index/knowledge/out").mkdir(parents=True)
  (folder / ".tmp-index/knowledge/out/stale").write_text("half")
  make(folder)
  assert [path.name for path in (folder / "knowledge/out").iterdir()] == ["a"]


def test_redo_with_other_settings_replaces_outputs_and_record(made):
  make(made, "other", redo=True, STEPS="4")
  assert (made / "out.txt").read_text() == "other"
  assert stage(made, STEPS="4").is_finished()
  assert "with STEPS = 4, now 3." in refusal(stage(made))


def test_a_missing_input_is_named(folder):
  with pytest.raises(InputError, match=r"none\.jsonl: no such file or folder; stage index reads"):
    stage(folder).reads("none.jsonl")


def test_inputs_outside_of_the_work_directory(folder, monkeypatch):
  (folder / "work").mkdir()
  monkeypatch.chdir(folder)
  made = stage(folder / "work")
  made.reads_outside(["in.txt", str(folder / "in")])
  assert set(made.input_hashes()) == {str(folder / "in.txt"), str(folder / "in")}


class Killed(BaseException):
  pass


def train(folder, kill=False, redo=False, **changes):
  """A stage that counts its runs in a folder it keeps."""
  made = stage(folder, **changes)
  with made.running(redo=redo):
    made.reads("in.txt")
    kept = made.keeps("student")
    steps = kept / "steps"
    steps.write_text((steps.read_text() if steps.exists() else "") + "x")
    if kill:
      raise Killed
  return steps.read_text()


def test_a_kept_folder_is_gone_on_with(folder):
  with pytest.raises(Killed):
    train(folder, kill=True)
  assert train(folder) == "xx"
  assert stage(folder).is_finished()
  (folder / "student" / "steps").write_text("spoilt")
  assert "with the output" in refusal(stage(folder))


def test_a_kept_folder_begun_with_something_else_is_refused_and_redo_makes_it_fresh(folder):
  with pytest.raises(Killed):
    train(folder, kill=True)
  with pytest.raises(InputError, match=r"student was begun with STEPS = 3, now 4.*--redo"):
    train(folder, STEPS="4")
  (folder / "in.txt").write_text("INPUT")
  with pytest.raises(InputError, match=r"student was begun from .*in\.txt, which has changed"):
    train(folder)
  assert train(folder, redo=True, STEPS="4") == "x"
  assert stage(folder, STEPS="4").is_finished()


def test_a_kept_folder_with_a_broken_beginning_is_named(folder):
  with pytest.raises(Killed):
    train(folder, kill=True)
  (folder / "student" / "begun.json").write_text("{")
  with pytest.raises(InputError, match=r"student/begun\.json: not a stage's record"):
    train(folder)


def test_what_a_stage_begins_from_may_go_but_not_change(tmp_path):
  source = epath.Path(tmp_path / "model.bin")
  source.write_text("weights")
  names = {"hub/model.bin": source}

  def run(work, redo=False):
    stage = Stage("train", tmp_path / "work", {})
    with stage.running(redo=redo):
      if source.exists():
        stage.begins_from(names)
      begun = stage.has_begun("student")
      folder = stage.keeps("student")
      work(folder)
    return stage, begun

  def die(folder):
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    run(die)
  source.write_text("others")
  with pytest.raises(InputError, match=r"student was begun from hub/model.bin, which has changed"):
    run(die)
  source.unlink()
  stage, begun = run(lambda folder: (folder / "out").write_text("x"))
  assert begun
  assert stage.origin_hashes() == {"hub/model.bin": hashlib.sha256(b"weights").hexdigest()}
  assert stage.is_finished()
  record = json.loads(stage.meta.read_text())
  assert record["origins"]["hub/model.bin"]["sha256"] == stage.origin_hashes()["hub/model.bin"]
  source.write_text("others")
  with pytest.raises(InputError, match=r"was made from hub/model.bin, which has changed since"):
    stage.is_finished()
  assert not run(lambda folder: (folder / "out").write_text("x"), redo=True)[1]
  assert stage.is_finished()


def second(folder, tmp_path_factory, **files):
  """Another work directory, which holds what the stage reads."""
  other = tmp_path_factory.mktemp("other")
  (other / "in.txt").write_text(files.get("text", "input"))
  (other / "in").mkdir()
  (other / "in" / "a").write_text("a")
  return other


def test_a_stage_is_taken_from_where_it_was_made_of_the_same(made, tmp_path_factory):
  other = second(made, tmp_path_factory)
  assert stage(other).adopt(made)
  assert stage(other).is_finished()
  assert (other / "out.txt").read_text() == "made"
  assert (other / "knowledge/out/a").read_text() == "made"
  assert os.path.samefile(other / "out.txt", made / "out.txt")  # linked, not copied
  assert not [path for path in other.iterdir() if path.name.startswith(".tmp")]
  (other / "in.txt").write_text("changed")
  assert "in.txt" in refusal(stage(other))
  make(other, "anew", redo=True)  # what is made again there leaves the first one as it was
  assert stage(made).is_finished()
  assert (made / "out.txt").read_text() == "made"


def test_files_that_cannot_be_linked_are_copied(made, tmp_path_factory, monkeypatch):
  def refuse(*_):
    raise OSError

  monkeypatch.setattr(os, "link", refuse)
  other = second(made, tmp_path_factory)
  assert stage(other).adopt(made)
  assert not os.path.samefile(other / "out.txt", made / "out.txt")
  assert stage(other).is_finished()


def test_nothing_is_taken_where_something_differs(made, tmp_path_factory):
  assert not stage(second(made, tmp_path_factory, text="other input")).adopt(made)
  assert not stage(second(made, tmp_path_factory), STEPS="4").adopt(made)
  assert not stage(second(made, tmp_path_factory)).adopt(made / "nowhere")
  lacking = second(made, tmp_path_factory)
  (lacking / "in.txt").unlink()
  assert not stage(lacking).adopt(made)
  assert not (lacking / "out.txt").exists()
  (made / "out.txt").write_text("meddled with")
  assert not stage(second(made, tmp_path_factory)).adopt(made)


def test_what_a_stage_began_from_must_be_the_same(folder, tmp_path_factory):
  def begin(place, text):
    (place / "base").write_text(text)
    made = stage(place)
    with made.running():
      made.begins_from({"base": epath.Path(place / "base")})
      made.writes("out.txt").write_text("made")

  begin(folder, "weights")
  other = tmp_path_factory.mktemp("other")
  (other / "base").write_text("other weights")
  assert not stage(other).adopt(folder)
  (other / "base").write_text("weights")
  assert stage(other).adopt(folder)
  assert stage(other).is_finished()
