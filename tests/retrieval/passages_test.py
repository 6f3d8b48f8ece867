"""Passages on disk."""

import hashlib
import json
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from array_record.python import array_record_module
from hypothesis import given, settings
from hypothesis import strategies as st

from kard_jax.core.files import InputError, sha256
from kard_jax.retrieval import ids as ids_lib
from kard_jax.retrieval import passages as lib
from kard_jax.retrieval import strings
from kard_jax.retrieval.passages import CorpusHash, Passage, Passages


def many(count: int) -> list[Passage]:
  return [Passage(f"id {n * 7919 % count}", f"T{n}" * (n % 3), f"text {n} ✓") for n in range(count)]


@pytest.mark.parametrize("shard_size", [1, 7, 50, 1000])
def test_round_trip(tmp_path, shard_size):
  items = many(50)
  assert lib.write(iter(items), tmp_path / "p", shard_size=shard_size) == 50
  found = Passages(tmp_path / "p", verify=True)
  assert len(found) == 50
  assert list(found) == items == found[:]
  assert [found[i] for i in (0, 49, 13, -1)] == [items[0], items[49], items[13], items[49]]
  assert found[np.int32(3)] == items[3]
  assert found.many([40, 3, 40, 17]) == [items[40], items[3], items[40], items[17]]
  assert [found.position(item.id) for item in items] == list(range(50))
  assert list(found.ids) == [item.id for item in items]


def test_shards_are_named_and_counted(tmp_path):
  lib.write(many(50), tmp_path / "p", shard_size=20)
  names = sorted(path.name for path in (tmp_path / "p").glob("*.array_record"))
  assert names == [f"passages-0000{n}-of-00003.array_record" for n in range(3)]


def test_same_passages_same_bytes_other_passages_other_hash(tmp_path):
  lib.write(many(50), tmp_path / "a")
  lib.write(many(50), tmp_path / "b")
  lib.write(many(50)[::-1], tmp_path / "c")
  assert sha256(tmp_path / "a") == sha256(tmp_path / "b")
  assert Passages(tmp_path / "a").corpus != Passages(tmp_path / "c").corpus


def test_outside(tmp_path):
  lib.write(many(5), tmp_path / "p")
  found = Passages(tmp_path / "p")
  with pytest.raises(InputError, match="no passage has the id 'nobody'"):
    found.position("nobody")
  for position in (5, -6):
    with pytest.raises(IndexError):
      found[position]
  with pytest.raises(IndexError):
    found.many([-1])


@pytest.mark.parametrize(
  ("items", "message"),
  [
    ([], "no passages to write"),
    ([Passage("a", "", "x"), Passage("b", "", "y"), Passage("a", "", "z")], "'a' stands twice"),
    ([Passage("a", "", "x"), Passage("b", "", "")], "passage 1: 'text' is empty"),
  ],
)
def test_failed_write_leaves_the_old(tmp_path, items, message):
  lib.write(many(3), tmp_path / "p")
  before = sha256(tmp_path / "p")
  with pytest.raises(InputError, match=message):
    lib.write(items, tmp_path / "p")
  assert sha256(tmp_path / "p") == before
  assert [path.name for path in tmp_path.iterdir()] == ["p"]


def test_rewriting_from_itself(tmp_path):
  lib.write(many(30), tmp_path / "p", shard_size=10)
  lib.write(Passages(tmp_path / "p"), tmp_path / "p", shard_size=20)
  assert list(Passages(tmp_path / "p", verify=True)) == many(30)


def test_damaged_record_is_named_when_read(tmp_path):
  lib.write(many(2000), tmp_path / "p")
  path = next((tmp_path / "p").glob("*.array_record"))
  data = bytearray(path.read_bytes())
  middle = len(data) // 2
  data[middle : middle + 8] = bytes(value ^ 255 for value in data[middle : middle + 8])
  path.write_bytes(data)
  with pytest.raises(InputError, match=r"array_record: .*changed.*launch/index\.py"):
    Passages(tmp_path / "p", verify=True)
  with pytest.raises(InputError, match=r"array_record: .*read.*launch/index\.py"):
    list(Passages(tmp_path / "p"))


def test_bucket_paths_are_refused():
  with pytest.raises(InputError, match="local disk"):
    Passages("gs://bucket/passages")


def as_json(passage):
  """The record's definition."""
  row = {"id": passage.id, "title": passage.title, "text": passage.text}
  return json.dumps(row, ensure_ascii=False).encode()


TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@settings(max_examples=200, deadline=None)
@given(TEXTS, TEXTS, TEXTS)
def test_a_record_is_its_json_and_comes_back(id, title, text):
  passage = Passage(id, title, text)
  assert passage.record() == as_json(passage)
  assert Passage.of_record(passage.record()) == passage


@pytest.mark.parametrize(
  "record",
  [
    b'{"title": "T", "text": "x", "id": "a"}',
    b'{"id":"a","title":"T","text":"x"}',
    b'{"id": "a", "text": "x", "title": "T"}',
  ],
)
def test_another_layout_of_the_json_is_read(record):
  assert Passage.of_record(record) == Passage("a", "T", "x")


@pytest.mark.parametrize(
  "record",
  [
    b'{"id": "a", "title": "T", "text": "x"',
    b'{"id": "a", "title": "T", "text": "x"} y',
    b'{"id": "a", "title": "T", "text": "x", "more": 1}',
    b'{"id": "a"}',
    b'{"id": "a',
    b"\xff",
  ],
)
def test_what_is_no_record(record):
  with pytest.raises((ValueError, TypeError)):
    Passage.of_record(record)


def test_the_format_is_the_first_versions(tmp_path):
  """Shards, tables and hash, written here as version 1 wrote them."""
  items = many(50)
  lib.write(items, tmp_path / "p", shard_size=20)
  digest = hashlib.sha256()
  for number in range(3):
    shard = f"passages-0000{number}-of-00003.array_record"
    writer = array_record_module.ArrayRecordWriter(str(tmp_path / shard), "group_size:16")
    for item in items[20 * number : 20 * number + 20]:
      writer.write(as_json(item))
      digest.update(as_json(item) + b"\n")
    writer.close()
    assert (tmp_path / shard).read_bytes() == (tmp_path / "p" / shard).read_bytes()
  strings.save(tmp_path, "ids", [item.id for item in items], in_order=False)
  for name in ("ids_data.npy", "ids_offsets.npy", "ids_order.npy"):
    assert (tmp_path / name).read_bytes() == (tmp_path / "p" / name).read_bytes()
  header = json.loads((tmp_path / "p" / "header.json").read_text())
  assert (header["version"], header["corpus"]) == (1, digest.hexdigest())
  assert {"count": 50, "shard_size": 20, "shards": 3}.items() <= header.items()


IDS = st.lists(
  st.text(st.characters(exclude_categories=["Cs"]), max_size=6), min_size=1, unique=True
)


@settings(max_examples=150, deadline=None)
@given(IDS)
def test_the_table_of_ids_is_that_of_strings(tmp_path_factory, values):
  ours, theirs = tmp_path_factory.mktemp("ours"), tmp_path_factory.mktemp("theirs")
  gathered = ids_lib.Gathered()
  gathered.extend(values[:2])
  gathered.extend(values[2:])
  gathered.save(ours)
  strings.save(theirs, "ids", values, in_order=False)
  for name in ("ids_data.npy", "ids_offsets.npy", "ids_order.npy"):
    assert (ours / name).read_bytes() == (theirs / name).read_bytes()


@pytest.mark.parametrize("spare", [0, 1 << 26])
def test_an_id_that_stands_twice_is_found_however_ids_are_sorted(tmp_path, spare, monkeypatch):
  monkeypatch.setattr(ids_lib, "_SPARE", spare)
  values = ["é" * 50, *(f"{n}" for n in range(100)), "57", "x"]
  gathered = ids_lib.Gathered()
  gathered.extend(values)
  with pytest.raises(InputError, match="'57' stands twice, at 58 and 101"):
    gathered.save(tmp_path)


def test_added_ids_that_share_a_hash_with_old_ones(tmp_path, monkeypatch):
  monkeypatch.setattr(ids_lib, "hash", lambda id: len(id), raising=False)
  lib.write([Passage("a", "", "x"), Passage("bb", "", "x")], tmp_path / "p")
  lib.append(
    [Passage("c", "", "x"), Passage("dd", "", "x"), Passage("eee", "", "x")], tmp_path / "p"
  )
  assert len(Passages(tmp_path / "p")) == 5
  with pytest.raises(InputError, match=r"the id 'dd' stands in .* already, at 3"):
    lib.append([Passage("f", "", "x"), Passage("dd", "", "x")], tmp_path / "p")


def parts(tmp_path, *counts):
  """A folder of segments of these sizes, and what is in it."""
  items = many(sum(counts))
  start = 0
  for count in counts:
    write = lib.append if start else lib.write
    assert write(iter(items[start : start + count]), tmp_path / "p", shard_size=7) == count
    start += count
  return items, tmp_path / "p"


@pytest.mark.parametrize("counts", [(20, 1), (7, 7, 7), (1, 30, 5, 14)])
def test_segments_are_one_sequence(tmp_path, counts):
  items, folder = parts(tmp_path, *counts)
  found = Passages(folder, verify=True)
  assert list(found) == items == found[:] == found.many(range(len(items)))
  rng = np.random.default_rng(0)
  for _ in range(20):
    first, last = sorted(rng.integers(0, len(items) + 1, 2).tolist())
    assert found.many(range(first, last)) == items[first:last]
    assert found.records(first, last) == [item.record() for item in items[first:last]]
    picks = rng.integers(0, len(items), 9).tolist()
    assert found.many(picks) == [items[pick] for pick in picks]
  assert list(found.ids) == [item.id for item in items] == [found.ids[i] for i in range(len(items))]
  assert [found.position(item.id) for item in items] == list(range(len(items)))
  assert found.ids[-1] == items[-1].id
  with pytest.raises(IndexError):
    found.ids[len(items)]
  with pytest.raises(InputError, match="no passage has the id 'nobody'"):
    found.position("nobody")


def test_each_segment_has_its_hash(tmp_path):
  items, folder = parts(tmp_path, 20, 5)
  found = Passages(folder)
  expected = []
  for first, size in ((0, 20), (20, 5)):
    lib.write(items[first : first + size], tmp_path / "one")
    expected.append((first, size, Passages(tmp_path / "one").corpus))
    alone = Passages(folder, segment=len(expected) - 1)
    assert list(alone) == items[first : first + size]
    assert alone.corpora == ((0, size, alone.corpus),)
    assert alone.corpus == Passages(tmp_path / "one").corpus
  assert found.corpora == tuple(expected)
  chain = hashlib.sha256("\n".join(corpus for _, _, corpus in expected).encode()).hexdigest()
  assert found.corpus == chain
  corpus = CorpusHash()
  corpus.add_records(found.records(0, 3))
  corpus.add_records([])
  for item in items[3:20]:
    corpus.add(item)
  assert corpus.hexdigest() == found.corpora[0].sha256


def test_adding_leaves_what_was_there(tmp_path):
  _, folder = parts(tmp_path, 20)
  before = {path.name: path.read_bytes() for path in folder.iterdir()}
  open_before = Passages(folder)
  lib.append([Passage("new", "", "x")], folder)
  assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
  assert len(open_before) == len(list(open_before)) == 20
  assert len(Passages(folder)) == 21


@pytest.mark.parametrize(
  ("items", "message"),
  [
    ([], "no passages to add"),
    ([Passage("a", "", "x"), Passage("b", "", " ")], "passage 1: 'text' is empty"),
    ([Passage("a", "", "x"), Passage("a", "", "y")], "'a' stands twice"),
    (
      [Passage("a", "", "x"), Passage("id 0", "", "y")],
      "passage 1: the id 'id 0' stands in .*at 0",
    ),
    ([Passage("id 5", "", "x")], "passage 0: the id 'id 5' stands in "),
  ],
)
def test_failed_adding_leaves_the_old(tmp_path, items, message):
  _, folder = parts(tmp_path, 10, 10)
  before = sha256(folder)
  with pytest.raises(InputError, match=message):
    lib.append(items, folder)
  assert sha256(folder) == before
  assert not list(folder.glob(".tmp-*"))


def test_a_kill_while_adding_leaves_the_old(tmp_path):
  items, folder = parts(tmp_path, 20)
  code = f"""
import os, signal
from kard_jax.retrieval import passages
def some():
  for n in range(5000):
    yield passages.Passage(f"new {{n}}", "", "x")
  os.kill(os.getpid(), signal.SIGKILL)
passages.append(some(), {str(folder)!r}, shard_size=1000)
"""
  done = subprocess.run([sys.executable, "-c", code], check=False)
  assert done.returncode == -signal.SIGKILL
  assert list(folder.glob(".tmp-segment-*"))  # it was at work
  assert list(Passages(folder, verify=True)) == items
  assert lib.append([Passage("new", "", "x")], folder) == 1
  assert len(Passages(folder)) == 21


def test_two_that_add_at_once(tmp_path):
  _, folder = parts(tmp_path, 20)

  def first():
    yield Passage("one", "", "x")
    lib.append([Passage("two", "", "x")], folder)

  with pytest.raises(InputError, match=r"segment-00001: cannot be added .*another process"):
    lib.append(first(), folder)
  assert list(Passages(folder, verify=True).ids)[20:] == ["two"]


def test_segments_that_do_not_belong_together(tmp_path):
  _, folder = parts(tmp_path, 5, 5, 5)
  (folder / "segment-00001").rename(tmp_path / "taken")
  with pytest.raises(InputError, match="segment-00001: no such folder, but segment-00002 is there"):
    Passages(folder)
  (folder / "segment-00002").rename(folder / "segment-00001")
  with pytest.raises(InputError, match="segment-00001: it was added to other passages"):
    Passages(folder)


def test_damage_in_a_segment_is_noticed(tmp_path):
  _, folder = parts(tmp_path, 5, 5)
  path = next((folder / "segment-00001").glob("*.array_record"))
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 255
  path.write_bytes(data)
  with pytest.raises(InputError, match=r"segment-00001/.*array_record: its bytes changed"):
    Passages(folder, verify=True)
  path.write_bytes(data[:-1])
  with pytest.raises(InputError, match=r"segment-00001/.*array_record: .* bytes where"):
    Passages(folder)


def test_writing_replaces_all_segments(tmp_path):
  _, folder = parts(tmp_path, 5, 5)
  lib.write(Passages(folder), folder)
  assert list(Passages(folder, verify=True)) == many(10)
  assert len(Passages(folder).corpora) == 1


def test_many_threads_read_at_once(tmp_path, monkeypatch):
  monkeypatch.setattr(lib, "_OPEN", 3)  # shards are closed and opened again meanwhile
  items = many(4000)
  lib.write(items, tmp_path / "p", shard_size=300)
  found = Passages(tmp_path / "p")
  wrong = []

  def read(seed):
    rng = np.random.default_rng(seed)
    for _ in range(30):
      first = int(rng.integers(0, 3000))
      if found.many(range(first, first + 900)) != items[first : first + 900]:
        wrong.append(first)
      picks = rng.integers(0, 4000, 50).tolist()
      if found.many(picks) != [items[pick] for pick in picks]:
        wrong.append(picks)

  threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not wrong
  assert len(found._readers) <= 3


@pytest.mark.parametrize("positions", [range(3, 7), range(-1, 2), [2, 5]])
def test_ranges_outside(tmp_path, positions):
  lib.write(many(5), tmp_path / "p")
  with pytest.raises(IndexError):
    Passages(tmp_path / "p").many(positions)
  with pytest.raises(IndexError):
    Passages(tmp_path / "p").records(0, 6)


def test_ranges_of_other_steps(tmp_path):
  items = many(20)
  lib.write(items, tmp_path / "p", shard_size=6)
  found = Passages(tmp_path / "p")
  assert found[15:2:-3] == items[15:2:-3]
  assert found[::4] == items[::4]
  assert found.many(range(5, 5)) == found[7:3] == []
