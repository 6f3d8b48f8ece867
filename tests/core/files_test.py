"""Files: errors name the line, writing is whole or not at all, hashes are of names and bytes."""

import gzip

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kard_jax.core import files
from kard_jax.core.files import InputError

VALUES = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
  lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
  max_leaves=6,
)


def names(folder):
  return sorted(path.name for path in folder.iterdir())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.dictionaries(st.text(), VALUES, max_size=3), max_size=4))
def test_what_is_written_is_read(tmp_path_factory, rows):
  folder = tmp_path_factory.mktemp("rows")
  path = folder / "rows.jsonl"
  assert files.write_jsonl(path, iter(rows)) == len(rows)
  assert list(files.read_jsonl(path)) == list(enumerate(rows, 1))
  packed = folder / "rows.jsonl.gz"
  packed.write_bytes(gzip.compress(path.read_bytes()))
  assert list(files.read_jsonl(packed)) == list(enumerate(rows, 1))


def test_blank_lines_are_counted_and_passed_over(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_bytes(b'\n{"a": 1}\r\n  \n{"a": "\xe2\x80\xa8"}')
  assert list(files.read_jsonl(path)) == [(2, {"a": 1}), (4, {"a": "\u2028"})]


@pytest.mark.parametrize(
  ("third", "said"),
  [
    (b'{"a": 1', "a.jsonl:3: not JSON"),
    (b'{"a": ' + b"9" * 5000 + b"}", "a.jsonl:3: not JSON"),
    (b"[" * 100_000, "a.jsonl:3: not JSON"),
    (b"[1, 2]", "a.jsonl:3: a JSON object is needed, this is '[1, 2]"),
    (b"null", "a.jsonl:3: a JSON object is needed"),
    (b'{"a": "\xff"}', "a.jsonl:3: not UTF-8"),
  ],
)
def test_a_bad_line_is_named_and_the_lines_before_it_are_read(tmp_path, third, said):
  path = tmp_path / "a.jsonl"
  path.write_bytes(b'{"a": 1}\n\n' + third + b'\n{"a": 2}\n')
  rows = files.read_jsonl(path)
  assert next(rows) == (1, {"a": 1})
  with pytest.raises(InputError) as caught:
    next(rows)
  assert said in str(caught.value)
  assert "\n" not in str(caught.value)


def test_a_gzip_file_that_is_cut_spoilt_or_none(tmp_path):
  path = tmp_path / "a.jsonl.gz"
  whole = gzip.compress(b"".join(b'{"a": %d}\n' % (i * i) for i in range(5000)))
  spoilt = bytearray(whole)
  spoilt[100:140] = bytes(40)
  for content in (whole[:-20], bytes(spoilt), b'{"a": 1}\n'):
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.jsonl\.gz.*: (not a whole gzip file|not JSON)"):
      list(files.read_jsonl(path))


def test_a_missing_file(tmp_path):
  with pytest.raises(InputError, match=r"none\.jsonl: no such file"):
    list(files.read_jsonl(tmp_path / "none.jsonl"))
  with pytest.raises(InputError, match="none: no such file"):
    files.sha256(tmp_path / "none")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
  path = tmp_path / "deep" / "a.jsonl"
  files.write_jsonl(path, [{"a": 1}])

  def rows():
    yield {"a": 2}
    raise RuntimeError

  with pytest.raises(RuntimeError):
    files.write_jsonl(path, rows())
  assert path.read_text() == '{"a": 1}\n'
  files.write_json(path, {"ä": 3})
  assert path.read_text() == '{\n  "ä": 3\n}\n'
  assert names(path.parent) == ["a.jsonl"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
  path = tmp_path / "folder"

  def fill(name, error=None):
    with files.atomic(path) as temporary:
      (temporary / "deep").mkdir(parents=True)
      (temporary / "deep" / name).write_text(name)
      if error:
        raise error

  fill("one")
  with pytest.raises(KeyboardInterrupt):
    fill("two", KeyboardInterrupt())
  assert names(path / "deep") == ["one"]
  fill("two")
  assert names(path / "deep") == ["two"]
  assert names(tmp_path) == ["folder"]


def test_what_stood_there_stays_when_nothing_was_written(tmp_path):
  (tmp_path / "folder").mkdir()
  (tmp_path / "folder" / "a").write_text("a")
  (tmp_path / "file").write_text("b")
  for name in ("folder", "file"):
    with pytest.raises(FileNotFoundError), files.atomic(tmp_path / name):
      pass
  assert names(tmp_path) == ["file", "folder"]
  assert names(tmp_path / "folder") == ["a"]


def test_the_hash_of_a_file_is_the_known_one(tmp_path):
  (tmp_path / "a").write_bytes(b"abc")
  assert files.sha256(tmp_path / "a") == (
    "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
  )


def test_the_hash_of_a_folder_is_of_names_and_bytes_alone(tmp_path):
  def folder(name, *items):
    for file, text in items:
      path = tmp_path / name / file
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(text)
    return files.sha256(tmp_path / name)

  items = [("a", "1"), ("b/a", "2"), ("b/c", "3")]
  first = folder("first", *items)
  assert folder("second", *reversed(items)) == first
  assert folder("second", (".tmp-b", "left by a kill"), ("b/.tmp-x/y", "too")) == first
  others = [
    folder("renamed", ("a", "1"), ("b/a", "2"), ("b/d", "3")),
    folder("moved", ("a", "1"), ("b/a", "2"), ("c", "3")),
    folder("swapped", ("a", "2"), ("b/a", "1"), ("b/c", "3")),
    folder("more", *items, ("d", "")),
  ]
  assert len({first, *others}) == 5
