"""Passages on disk."""

import gzip
import json

import numpy as np
import pytest

from kard_jax.core.files import InputError, sha256
from kard_jax.retrieval import passages as lib
from kard_jax.retrieval.passages import Passage, Passages


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


def lines(tmp_path, *rows, name="passages.jsonl"):
  path = tmp_path / name
  text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
  path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
  return path


GOOD = {"id": "a", "title": "T", "text": "x"}


@pytest.mark.parametrize("name", ["passages.jsonl", "passages.jsonl.gz"])
def test_read(tmp_path, name):
  path = lines(tmp_path, GOOD, "", {"id": "b", "text": "y", "more": 1}, name=name)
  assert list(lib.read(path)) == [Passage("a", "T", "x"), Passage("b", "", "y")]


@pytest.mark.parametrize(
  ("rows", "message"),
  [
    ([], r"passages\.jsonl: no passages"),
    ([GOOD, "{"], r"passages\.jsonl:2: not JSON"),
    ([GOOD, {"id": "b"}], r"passages\.jsonl:2: .*'text' is missing"),
    ([{"text": "b"}], r"passages\.jsonl:1: .*'id' is missing"),
    ([GOOD, {"id": "b", "text": " \n"}], r"passages\.jsonl:2: 'text' is empty"),
    ([{"id": "", "text": "b"}], r"passages\.jsonl:1: 'id' is empty"),
    ([{"id": 3, "text": "b"}], r"passages\.jsonl:1: 'id' has to be a string, not 3"),
    ([{**GOOD, "title": ["T"]}], r"passages\.jsonl:1: 'title' has to be a string"),
    ([GOOD, {"id": "b", "text": "y"}, GOOD], r"passages\.jsonl:3: the id 'a' stands in line 1"),
    (['{"id": "a", "text": "\\ud800"}'], r"passages\.jsonl:1: 'text' is not valid Unicode"),
  ],
)
def test_bad_rows_are_named(tmp_path, rows, message):
  with pytest.raises(InputError, match=message):
    list(lib.read(lines(tmp_path, *rows)))


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
