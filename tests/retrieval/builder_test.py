"""Building: the same bytes however it is done, limits, locks, and what a kill leaves."""

import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import rich.console

from kard_jax.core.files import InputError
from kard_jax.retrieval import blocks, builder, native, segment
from kard_jax.retrieval import index as index_lib
from kard_jax.retrieval import passages as passages_lib
from kard_jax.retrieval.analyzer import Analyzer
from kard_jax.retrieval.passages import Passage, Passages
from tests.retrieval import corpus
from tests.retrieval.corpus import WHITE, bytes_below

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture
def small_blocks(monkeypatch):
  monkeypatch.setattr(blocks, "CHARACTERS", 2000)


def stored(path, texts):
  """Passages on disk, which a build can go on with."""
  passages_lib.write(corpus.passages(*texts), path / "p")
  return Passages(path / "p")


def build(passages, folder, **options):
  return index_lib.build(passages, folder, analyzer=WHITE, **options)


@pytest.fixture
def made(monkeypatch):
  """The names of the blocks that are stored from here on."""
  names, store = [], segment.store_block

  def spy(block, folder):
    names.append(folder.name)
    store(block, folder)

  monkeypatch.setattr(segment, "store_block", spy)
  return names


@pytest.mark.skipif(native.library() is None, reason="there is no C compiler")
@pytest.mark.parametrize("analyzer", [WHITE, Analyzer()], ids=lambda analyzer: analyzer.kind)
def test_without_kernels_all_files_are_the_same(tmp_path, monkeypatch, analyzer):
  texts = [f"{text} common" for text in corpus.zipf_texts(5000, 0, longest=9)]
  texts[77] += " w1" * 300 + " common" * 256 + " Überraschungen sehen"
  monkeypatch.setattr(blocks, "CHARACTERS", 60_000)

  def folder(name):
    place = tmp_path / name
    index_lib.build(corpus.passages(*texts[:4000]), place, analyzer=analyzer)
    index_lib.add(place, corpus.passages(*texts[4000:]))
    before = bytes_below(place)
    index_lib.merge(place)
    return before, bytes_below(place)

  expected = folder("one")
  assert len(expected[0]) == 19
  assert len(expected[1]) == 10
  corpus.without_kernels(monkeypatch)
  assert folder("other") == expected


@pytest.mark.parametrize("options", [{"threads": 1}, {"threads": 5}, {"memory_limit": 450 << 20}])
def test_threads_and_memory_do_not_reach_the_bytes(tmp_path, small_blocks, options):
  passages = stored(tmp_path, corpus.zipf_texts(400, 0))
  build(passages, tmp_path / "one")
  build(iter(passages), tmp_path / "other", **options)
  assert bytes_below(tmp_path / "one") == bytes_below(tmp_path / "other")
  assert len(index_lib.open(tmp_path / "one").segments[0].block_data) > 10


def test_tables_begun_anew_do_not_reach_the_bytes(tmp_path, small_blocks, monkeypatch):
  passages = stored(tmp_path, corpus.zipf_texts(400, 0))
  build(passages, tmp_path / "one")
  monkeypatch.setattr(builder, "_plan", lambda *_: (2, 10))
  build(passages, tmp_path / "other")
  assert bytes_below(tmp_path / "one") == bytes_below(tmp_path / "other")


def test_one_passage_may_be_longer_than_a_block(tmp_path, small_blocks):
  texts = ["a", "b " * 3000, "c", "d " * 999, "e e"]
  index = build(corpus.passages(*texts), tmp_path / "i")
  assert index.segments[0].block_passages.tolist() == [0, 1, 2, 4, 5]


def test_hash_seed_does_not_reach_the_bytes_and_jax_is_not_imported(tmp_path):
  code = (
    "import sys; from kard_jax.retrieval import index, passages;"
    "items = [passages.Passage(str(n), 'Title', f'word{n % 13} tail{n % 7}') for n in range(99)];"
    "passages.write(items, sys.argv[1] + '/p');"
    "index.build(passages.Passages(sys.argv[1] + '/p'), sys.argv[1] + '/i');"
    "assert 'jax' not in sys.modules and 'tensorflow' not in sys.modules"
  )
  found = []
  for seed in ("0", "1"):
    folder = tmp_path / seed
    folder.mkdir()
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, env=environment)
    found.append(bytes_below(folder / "i"))
  assert found[0] == found[1]


def test_a_failed_build_leaves_the_old_and_nothing_else(tmp_path):
  build(corpus.passages("a b"), tmp_path / "i")
  before = bytes_below(tmp_path)

  def broken():
    yield Passage("a", "", "x")
    raise InputError("passages.jsonl:2: broken")

  with pytest.raises(InputError, match="jsonl:2"):
    build(broken(), tmp_path / "i")
  with pytest.raises(InputError, match="jsonl:2"):
    index_lib.add(tmp_path / "i", broken())
  with pytest.raises(InputError, match="no passages"):
    build([], tmp_path / "i")
  with pytest.raises(InputError, match="no passages"):
    index_lib.add(tmp_path / "i", [])
  assert bytes_below(tmp_path) == before
  assert [path.name for path in tmp_path.iterdir()] == ["i"]


def test_no_passages(tmp_path):
  with pytest.raises(InputError, match=f"{tmp_path}.*no passages to index"):
    build([], tmp_path / "i")
  assert list(tmp_path.iterdir()) == []


def test_no_valid_unicode(tmp_path):
  with pytest.raises(InputError, match="'p1': not valid Unicode"):
    build(corpus.passages("a", "\ud800"), tmp_path / "i")


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"threads": 0}, "threads: at least 1 is needed, not 0"),
    ({"threads": -3}, "threads: at least 1"),
    ({"memory_limit": 0}, r"memory_limit: at least \d+MiB is needed .* not 0MiB"),
    ({"memory_limit": 100 << 20}, r"memory_limit: at least \d+MiB is needed .* not 100MiB"),
    ({"k1": -0.1}, "k1"),
    ({"k1": float("nan")}, "k1"),
    ({"k1": 1e6}, "k1 has to be between 0 and 1000"),
    ({"b": 1.5}, "b has"),
    ({"b": float("nan")}, "b has"),
    ({"lengths": "short"}, "lengths is one of lucene, exact, not 'short'"),
  ],
)
def test_settings_are_checked(tmp_path, options, message):
  with pytest.raises(InputError, match=message):
    build(corpus.passages("x"), tmp_path / "i", **options)
  assert list(tmp_path.iterdir()) == []


def test_the_least_memory_that_is_asked_for_is_enough(tmp_path):
  with pytest.raises(InputError) as error:
    build(corpus.passages("x"), tmp_path / "i", memory_limit=1)
  least = int(str(error.value).split("at least ")[1].split("MiB")[0])
  build(corpus.passages("x"), tmp_path / "i", memory_limit=least << 20)


def test_threads_follow_the_memory_limit():
  assert builder._plan(8 << 30, 6)[0] == 6
  assert builder._plan(1 << 30, 64)[0] in (2, 3)
  workers, words = builder._plan(450 << 20, 64)
  assert workers == 1
  assert words * blocks.WORD_BYTES < 450 << 20


class Interrupted(list):
  """A sequence that knows its hash, and dies when it is read past a number."""

  corpus = "0" * 64
  last = None

  def __iter__(self):
    for number, passage in enumerate(super().__iter__()):
      if number == self.last:
        raise KeyboardInterrupt
      yield passage


@pytest.mark.parametrize("kind", ["passages", "sequence"])
def test_an_interrupted_build_goes_on(tmp_path, small_blocks, monkeypatch, made, kind):
  monkeypatch.setattr(builder, "_READ", 20)
  texts = corpus.zipf_texts(300, 0)
  whole = stored(tmp_path, texts) if kind == "passages" else Interrupted(corpus.passages(*texts))
  build(whole, tmp_path / "one")
  blocks_in_all, made[:] = sorted(made), []
  if kind == "sequence":
    whole.last = 250
    with pytest.raises(KeyboardInterrupt):
      build(whole, tmp_path / "other")
    whole.last = None
  else:
    read = Passages.many

    def many(self, rows):
      if len(rows) > 1 and max(rows) >= 250:  # the type checker looks at single ones
        raise KeyboardInterrupt
      return read(self, rows)

    with monkeypatch.context() as patch:
      patch.setattr(Passages, "many", many)
      with pytest.raises(KeyboardInterrupt):
        build(whole, tmp_path / "other")
  assert not (tmp_path / "other").exists()
  before, made[:] = sorted(made), []
  assert len(before) > 3
  build(whole, tmp_path / "other")
  assert sorted(before + made) == blocks_in_all  # each was made once
  assert bytes_below(tmp_path / "other") == bytes_below(tmp_path / "one")
  assert not list(tmp_path.glob(".*"))


def killed_after(passages, folder, blocks_made, monkeypatch):
  """Leaves what a kill after some blocks would leave."""
  store = segment.store_block

  def dying(block, place):
    if int(place.name[-5:]) >= blocks_made:
      raise KeyboardInterrupt
    store(block, place)

  with monkeypatch.context() as patch:
    patch.setattr(segment, "store_block", dying)
    with pytest.raises(KeyboardInterrupt):
      build(passages, folder, threads=1)
  return folder.parent / f".building-{folder.name}"


def damage(work):
  path = work / "block-00001/data.npy"
  data = bytearray(path.read_bytes())
  data[-1] ^= 1
  path.write_bytes(data)


@pytest.mark.parametrize(
  ("change", "made_again"),
  [
    (lambda work: None, False),
    (damage, [1]),
    (lambda work: (work / "block-00002/terms.npy").unlink(), [2]),
    (lambda work: (work / "block-00000/header.json").write_text("{}"), [0]),
    (lambda work: (work / "plan.json").write_text("{"), [0, 1, 2]),
    (lambda work: (work / ".tmp-block-00003-0").mkdir(), []),
  ],
)
def test_only_whole_blocks_of_the_same_build_are_used(
  tmp_path, small_blocks, monkeypatch, made, change, made_again
):
  passages = stored(tmp_path, corpus.zipf_texts(300, 0))
  build(passages, tmp_path / "one")
  names, made[:] = sorted(made), []
  work = killed_after(passages, tmp_path / "other", 3, monkeypatch)
  change(work)
  made.clear()
  build(passages, tmp_path / "other")
  assert sorted(made) == sorted([*(names[n] for n in made_again or []), *names[3:]])
  assert bytes_below(tmp_path / "other") == bytes_below(tmp_path / "one")


def test_blocks_of_other_passages_or_settings_are_not_used(tmp_path, small_blocks, monkeypatch):
  passages = stored(tmp_path, corpus.zipf_texts(300, 0))
  (tmp_path / "b").mkdir()
  others = stored(tmp_path / "b", corpus.zipf_texts(300, 1))
  for number, (source, options) in enumerate([(others, {}), (passages, {"analyzer": Analyzer()})]):
    expected = index_lib.build(source, tmp_path / f"one{number}", **{"analyzer": WHITE, **options})
    place = tmp_path / f"other{number}"
    killed_after(passages, place, 3, monkeypatch)
    index_lib.build(source, place, **{"analyzer": WHITE, **options})
    assert bytes_below(place) == bytes_below(pathlib.Path(expected.directory))


def test_two_builds_at_once(tmp_path):
  build(corpus.passages("a"), tmp_path / "i")
  inside = {}

  def meanwhile():
    yield Passage("a", "", "x")
    for name, change in {
      "build": lambda: build(corpus.passages("b"), tmp_path / "i"),
      "add": lambda: index_lib.add(tmp_path / "i", corpus.passages("b")),
      "merge": lambda: index_lib.merge(tmp_path / "i"),
    }.items():
      with pytest.raises(InputError) as error:
        change()
      inside[name] = str(error.value)

  assert len(index_lib.add(tmp_path / "i", meanwhile())) == 2
  build(meanwhile(), tmp_path / "i")
  assert len(inside) == 3
  assert all("another process works on this index; wait for it" in text for text in inside.values())
  assert [path.name for path in tmp_path.iterdir()] == ["i"]


def test_a_working_folder_of_ones_own(tmp_path):
  work = tmp_path / "work"
  build(corpus.passages("a"), tmp_path / "i", work=work)
  assert not work.exists()
  work.mkdir()
  (work / "thesis.tex").touch()
  with pytest.raises(InputError, match=r"thesis\.tex: not of an index"):
    build(corpus.passages("a"), tmp_path / "i", work=work)
  assert [path.name for path in work.iterdir()] == ["thesis.tex"]


def test_progress_is_shown_where_it_is_asked_for(tmp_path, small_blocks, monkeypatch, capsys):
  passages = corpus.passages(*corpus.zipf_texts(300, 0))
  build(passages, tmp_path / "i")
  assert capsys.readouterr() == ("", "")
  file = io.StringIO()
  console = rich.console.Console
  monkeypatch.setattr(
    rich.console,
    "Console",
    lambda **_: console(file=file, force_terminal=True, width=100),
  )
  for source, total in ((passages, "300/300"), (iter(passages), "300/?")):
    build(source, tmp_path / "i", progress=True)
    assert "indexing" in file.getvalue()
    assert total in file.getvalue()
  assert capsys.readouterr().out == ""


BUILD = """
import sys
from kard_jax.retrieval import blocks, index
from kard_jax.retrieval.passages import Passages
blocks.CHARACTERS = int(sys.argv[3])
passages = Passages(sys.argv[1])
print("ready", flush=True)
index.build(passages, sys.argv[2], threads=2)
print("done", flush=True)
"""


def start(tmp_path, characters):
  """A process that builds; returns when it begins."""
  command = [sys.executable, "-c", BUILD, str(tmp_path / "p"), str(tmp_path / "i"), str(characters)]
  process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
  assert process.stdout.readline() == "ready\n"
  return process


def finished(tmp_path):
  """The blocks that are whole in the working folder, and when each was written."""
  headers = (tmp_path / ".building-i").glob("block-*/header.json")
  return {path.parent.name: path.stat().st_mtime_ns for path in headers}


def kill(process):
  process.send_signal(signal.SIGKILL)
  return process.wait() == -signal.SIGKILL


def test_kill_in_a_build(tmp_path, monkeypatch, made):
  characters = 20_000
  passages = stored(tmp_path, corpus.zipf_texts(6000, 0))
  monkeypatch.setattr(blocks, "CHARACTERS", characters)
  index_lib.build(passages, tmp_path / "one")
  names, made[:] = sorted(made), []
  assert len(names) > 15
  process = start(tmp_path, characters)
  while len(finished(tmp_path)) < 5:
    assert process.poll() is None
    time.sleep(0.002)
  assert kill(process)
  before = finished(tmp_path)
  assert 5 <= len(before) < len(names)
  assert not (tmp_path / "i").exists()
  index_lib.build(passages, tmp_path / "i")
  assert sorted([*before, *made]) == names  # the finished ones were not made again
  assert bytes_below(tmp_path / "i") == bytes_below(tmp_path / "one")
  assert not (tmp_path / ".building-i").exists()


@pytest.mark.slow
def test_kill_at_ten_moments_of_a_build(tmp_path, monkeypatch, made):
  characters = 40_000
  passages = stored(tmp_path, corpus.zipf_texts(30_000, 0))
  assert start(tmp_path, characters).wait() == 0
  (tmp_path / "i").rename(tmp_path / "one")
  expected = bytes_below(tmp_path / "one")
  total = json.loads((tmp_path / "one/segment-00000/header.json").read_bytes())["blocks"]
  monkeypatch.setattr(blocks, "CHARACTERS", characters)
  rng, reused, killed = np.random.default_rng(int(time.time())), [], 0
  for number in range(10):
    process = start(tmp_path, characters)
    # By what is done, not by the clock, which runs unevenly on a busy machine.
    while len(finished(tmp_path)) < number * total // 10 and process.poll() is None:
      time.sleep(0.002)
    time.sleep(rng.random() / 20)
    killed += kill(process)
    before = finished(tmp_path)
    reused.append(len(before))
    made.clear()
    index_lib.build(passages, tmp_path / "i")
    assert not set(before) & set(made)
    assert bytes_below(tmp_path / "i") == expected, f"after {number} with {before}"
    (tmp_path / "i").rename(tmp_path / f"i{number}")
  assert killed >= 7  # some builds may have been faster than the first
  assert sum(1 for blocks_there in reused if blocks_there) >= 5
