"""`launch/index.py` by itself: passages of any file stored and indexed, gone on with, added to."""

import dataclasses
import gzip
import json
import os
import pathlib
import subprocess
import sys

import pytest

from kard_jax.core.files import InputError, sha256
from kard_jax.retrieval import index as index_lib
from kard_jax.retrieval import passages as passages_lib
from kard_jax.retrieval.analyzer import Analyzer
from launch import index as launcher

ROOT = pathlib.Path(__file__).resolve().parents[1]


def rows(*ids):
  return "".join(json.dumps({"id": i, "title": "T", "text": f"text of {i}"}) + "\n" for i in ids)


@dataclasses.dataclass
class Fake:
  """What stands in for `kard_jax.retrieval.index`: notes calls, keeps a count in a file."""

  calls: list = dataclasses.field(default_factory=list)
  killed: bool = False

  def open(self, directory, verify=False):
    header = json.loads((pathlib.Path(directory) / "header.json").read_text())
    opened = type("Opened", (), {"__len__": lambda self: header["passages"]})()
    opened.header, opened.analyzer = header, Analyzer(**header["analyzer"])
    if verify:
      self.calls.append("verify")
    return opened

  def build(self, passages, directory, *, analyzer, progress, memory_limit, threads, **settings):
    self.calls.append(("build", len(passages), memory_limit, threads))
    return self._write(directory, passages, analyzer=analyzer.to_json(), **settings)

  def add(self, directory, passages, *, progress, memory_limit, threads):
    self.calls.append(("add", [passage.id for passage in passages]))
    header = self.open(directory).header
    return self._write(directory, [None] * header["passages"] + list(passages), header=header)

  def merge(self, directory):
    self.calls.append("merge")
    return self.open(directory)

  def check_corpus(self, opened, passages):
    if len(opened) != len(passages):
      raise InputError("other passages")

  def _write(self, directory, passages, header=None, **settings):
    if self.killed:
      raise KeyboardInterrupt
    folder = pathlib.Path(directory)
    folder.mkdir(exist_ok=True)
    header = {**(header or settings), "passages": len(passages)}
    (folder / "header.json").write_text(json.dumps(header))
    return self.open(directory)


@pytest.fixture
def fake(monkeypatch, tmp_path):
  stand_in = Fake()
  for name in ("open", "build", "add", "merge", "check_corpus"):
    monkeypatch.setattr(index_lib, name, getattr(stand_in, name), raising=False)
  monkeypatch.chdir(tmp_path)
  pathlib.Path("c.jsonl").write_text(rows("a", "b", "c"))
  pathlib.Path("more.jsonl").write_text(rows("d", "e"))
  return stand_in


def run(*flags):
  return launcher.main([*flags, "--out=out"])


def ids():
  return list(passages_lib.Passages("out/passages", verify=True).ids)


def test_stored_and_built(fake, capsys):
  flags = ("--passages=c.jsonl", "--memory_limit=1GiB", "--threads=2", "--k1=1.2", "--words=2")
  assert run(*flags, "--analyzer=whitespace") == 0
  assert ids() == ["a-0", "a-1", "b-0", "b-1", "c-0", "c-1"]
  assert fake.calls == [("build", 6, 2**30, 2)]
  header = fake.open("out/bm25").header
  assert (header["analyzer"]["kind"], header["k1"], header["b"]) == ("whitespace", 1.2, 0.4)
  assert "6 passages written" in capsys.readouterr().out


def test_done_before_is_not_done_again(fake, capsys):
  assert run("--passages=c.jsonl") == run("--passages=c.jsonl") == 0
  assert len(fake.calls) == 1
  assert "built before" in capsys.readouterr().out
  assert run("--passages=c.jsonl", "--b=0.5") == 0  # only the index depends on it
  assert [call[0] for call in fake.calls] == ["build", "build"]
  assert run("--passages=c.jsonl", "--b=0.5", "--redo") == 0
  assert len(fake.calls) == 3


def test_killed_before_the_index_it_goes_on(fake):
  fake.killed = True
  assert run("--passages=c.jsonl") == 130
  before = sha256("out/passages")
  inode = os.stat("out/passages/header.json").st_ino
  fake.killed = False
  assert run("--passages=c.jsonl") == 0
  assert (sha256("out/passages"), os.stat("out/passages/header.json").st_ino) == (before, inode)


def test_killed_right_after_the_passages_it_knows_them(fake, monkeypatch, capsys):
  write = passages_lib.write

  def killed(*arguments):
    write(*arguments)
    raise KeyboardInterrupt

  with monkeypatch.context() as context:
    context.setattr(passages_lib, "write", killed)
    assert run("--passages=c.jsonl") == 130
  assert run("--passages=c.jsonl") == 0
  assert "written before" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["file", "flag", "source"])
def test_passages_of_another_source_are_not_replaced(fake, capsys, change):
  run("--passages=c.jsonl")
  before = sha256("out/passages")
  if change == "file":
    pathlib.Path("c.jsonl").write_text(rows("a", "b", "x", "y"))
  flags = {"file": (), "flag": ("--words=50",), "source": ()}[change]
  source = "more.jsonl" if change == "source" else "c.jsonl"
  assert run(f"--passages={source}", *flags) == 2
  assert "of another source or other flags; --add adds" in capsys.readouterr().err
  assert sha256("out/passages") == before
  assert run(f"--passages={source}", *flags, "--redo") == 0
  assert sha256("out/passages") != before
  assert len(fake.open("out/bm25")) == len(ids())


def test_added(fake, capsys):
  run("--passages=c.jsonl")
  assert run("--passages=more.jsonl", "--add") == 0
  assert ids() == ["a", "b", "c", "d", "e"]
  assert fake.calls[1:] == [("add", ["d", "e"])]
  assert run("--passages=more.jsonl", "--add") == 0  # the same again: it is there
  assert len(fake.calls) == 2
  assert "built before" in capsys.readouterr().out
  assert run("--merge", "--verify") == 0
  assert fake.calls[2:] == ["merge", "verify"]


def test_adding_killed_before_the_index_goes_on(fake):
  run("--passages=c.jsonl")
  fake.killed = True
  assert run("--passages=more.jsonl", "--add") == 130
  fake.killed = False
  assert run("--passages=more.jsonl", "--add") == 0
  assert fake.calls[-1] == ("add", ["d", "e"])
  assert len(fake.open("out/bm25")) == 5


def test_adding_killed_while_passages_are_written_goes_on(fake, monkeypatch):
  run("--passages=c.jsonl")
  with monkeypatch.context() as context:
    context.setattr(passages_lib, "append", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run("--passages=more.jsonl", "--add") == 130
  assert ids() == ["a", "b", "c"]
  assert run("--passages=more.jsonl", "--add") == 0
  assert ids() == ["a", "b", "c", "d", "e"]
  assert len(json.loads(pathlib.Path("out/source.json").read_text())) == 2


def test_bad_passages_leave_what_was_there(fake, capsys):
  run("--passages=c.jsonl")
  before = sha256("out/passages")
  pathlib.Path("bad.jsonl").write_text(rows("x") + "{\n")
  for flag in ("--redo", "--add"):
    assert run("--passages=bad.jsonl", flag) == 2
    assert "error: bad.jsonl:2: not JSON" in capsys.readouterr().err
    assert sha256("out/passages") == before
  assert run("--passages=c.jsonl", "--add") == 2
  assert "the id 'a' stands in" in capsys.readouterr().err
  assert run("--passages=c.jsonl") == 0


def test_what_a_kill_left_is_removed(fake):
  run("--passages=c.jsonl")
  before = sorted(os.listdir("out"))
  for folder in ("out", "out/passages", "out/bm25"):
    pathlib.Path(f"{folder}/.tmp-left-1234").mkdir()
    pathlib.Path(f"{folder}/.tmp-old-left-1234").mkdir()  # may be all that there is
  pathlib.Path("out/.tmp-source.json-1234").write_text("")
  assert run("--verify") == 0
  assert sorted(os.listdir("out")) == [".tmp-old-left-1234", *before]
  assert not list(pathlib.Path("out").glob("*/.tmp-left*"))


def test_two_at_once_do_not_disturb_each_other(fake, monkeypatch, capsys):
  def build(*_, **__):
    assert run("--passages=c.jsonl") == 2
    assert "out: another process is at work there" in capsys.readouterr().err
    raise InputError("enough")

  monkeypatch.setattr(index_lib, "build", build)
  assert run("--passages=c.jsonl") == 2
  assert "enough" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--verify"], "passages: there are no passages yet; give --passages"),
    (["--passages=gone.jsonl"], "gone.jsonl: no such file or folder"),
    (["--passages=c.jsonl", "--add"], "passages: there are no passages yet"),
    (["--passages=c.jsonl", "--format=xml"], "format: one of jsonl,"),
    (["--passages=c.jsonl", "--words=0"], "words: at least 1"),
    (["--passages=c.jsonl", "--analyzer=french"], "analyzer: the kind is one of"),
    (
      ["--passages=c.jsonl", "--memory_limit=much"],
      "memory_limit: a size such as 1GiB or 800MB is needed, not 'much'",
    ),
    (["--passages=c.jsonl", "--threads=0"], "--threads=0: at least 1"),
    (["--passages=c.jsonl", "--split=train"], "--split is for TFDS datasets"),
    (["--passages=c.jsonl", "--add", "--k1=2"], "--k1: passages are added as the index was built"),
    (["--passages=c.jsonl", "--add", "--redo"], "give one of them"),
    (["--passages=tfds:wikipedia/20230601.en", "--data_dir=."], "not prepared in"),
    (["--passages=tfds:nosuch", "--format=text"], "--format: a TFDS dataset knows its own"),
  ],
)
def test_bad_flags_are_named_in_one_line(fake, capsys, flags, message):
  assert run(*flags) == 2
  error = capsys.readouterr().err
  assert error.startswith("error: ")
  assert message in error
  assert error.count("\n") == 1
  assert not pathlib.Path("out").exists()


@pytest.mark.parametrize(
  ("text", "expected"),
  [("1GiB", 2**30), ("800MB", 800 * 10**6), ("1.5G", 3 * 2**29), ("4096", 4096), ("2 KiB", 2048)],
)
def test_sizes(text, expected):
  assert launcher.size(text) == expected


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "0", "1XB", "1 GiB more"])
def test_no_sizes(text):
  with pytest.raises(InputError, match="memory_limit: a size such as 1GiB"):
    launcher.size(text)


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    ([], "give --gin_file, or --out"),
    (["--out=o"], "--passages is needed"),
    (["--gin_file=x.gin", "--passages=c.jsonl"], "--passages is for an index by itself"),
    (["--gin.K=1"], "--gin_file is needed"),
  ],
)
def test_usage_is_told(capsys, flags, message):
  with pytest.raises(SystemExit) as left:
    launcher.main(flags)
  assert left.value.code == 2
  assert message in capsys.readouterr().err


def test_help_has_both_usages_and_starts_no_tensorflow():
  code = (
    "import runpy, sys; sys.argv = ['launch/index.py', '--help']\n"
    "try: runpy.run_path('launch/index.py', run_name='__main__')\n"
    "except SystemExit as end: print('CODE', end.code, 'tensorflow' in sys.modules)"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
  )
  for needle in ("--gin_file=gin_configs/", "--passages=corpus.jsonl.gz", "CODE 0 False"):
    assert needle in done.stdout, done.stderr


def test_from_a_compressed_file_to_an_index_that_grew(tmp_path):
  (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(rows("a", "b", "c").encode()))
  (tmp_path / "more.txt").write_text("A paragraph.\n\nAnother one.\n")

  def command(*flags):
    done = subprocess.run(
      [sys.executable, ROOT / "launch" / "index.py", f"--out={tmp_path / 'out'}", *flags],
      capture_output=True,
      text=True,
      cwd=tmp_path,
      check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout

  assert "3 passages indexed" in command("--passages=c.jsonl.gz", "--memory_limit=1GiB")
  assert "built before" in command("--passages=c.jsonl.gz")
  assert "5 passages indexed" in command("--passages=more.txt", "--add")
  assert "verified" in command("--merge", "--verify")
  stored = passages_lib.Passages(tmp_path / "out" / "passages")
  index_lib.check_corpus(index_lib.open(tmp_path / "out" / "bm25"), stored)
