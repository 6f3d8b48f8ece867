"""Files of releases as people have them: archives, byte order marks, line ends, damage."""

import gzip
import io
import json
import tarfile
import zipfile

import pytest

from kard_jax.core.files import InputError
from tasks.releases import Release, named, split_files

ROWS = [{"id": "a", "text": "one\u2028line"}, {"id": "b", "text": 'a "quoted", text'}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
TABLE = 'id,text\r\na,one\u2028line\r\nb,"a ""quoted"", text"\r\n'


TABS = TABLE.replace("id,", "id\t").replace("a,", "a\t").replace('b,"', 'b\t"')


@pytest.mark.parametrize(
  ("name", "data"),
  [
    ("x.jsonl", LINES.encode()),
    ("x.jsonl", b"\xef\xbb\xbf" + LINES.replace("\n", "\r\n\r\n").encode()),
    ("x.jsonl.gz", gzip.compress(LINES.encode("utf-8-sig"), mtime=0)),
    ("x.json", json.dumps(ROWS).encode("utf-8-sig")),
    ("x.json", json.dumps({"version": 1, "data": ROWS}).encode()),
    ("x.json", json.dumps({row["id"]: {"text": row["text"]} for row in ROWS}).encode()),
    ("x.json", LINES.encode()),  # KARD's .json files are read as lines too
    ("x.csv", TABLE.encode("utf-8-sig")),
    ("x.tsv", TABS.encode()),
  ],
)
def test_rows_are_the_same_in_every_form(tmp_path, name, data):
  (tmp_path / name).write_bytes(data)
  release = Release(tmp_path)
  assert release.names == [name]
  found = list(release.rows(name))
  assert [row for _, row in found] == ROWS
  assert all(where.startswith(str(tmp_path / name)) for where, _ in found)
  assert [row for _, row in Release(tmp_path / name).rows("")] == ROWS


def _zip(path, members):
  with zipfile.ZipFile(path, "w") as archive:
    for name, data in members.items():
      archive.writestr(name, data)


def _tar(path, members):
  with tarfile.open(path, "w:gz") as archive:
    for name, data in members.items():
      info = tarfile.TarInfo(f"./{name}")
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize(("name", "write"), [("r.zip", _zip), ("r.tar.gz", _tar)])
def test_an_archive_is_a_folder(tmp_path, name, write):
  members = {"Data/train.jsonl": LINES.encode(), "__MACOSX/._train.jsonl": b"x", "Data/.DS": b"x"}
  write(tmp_path / name, members)
  alone, beside = Release(tmp_path / name), Release(tmp_path)
  assert alone.names == ["Data/train.jsonl"]
  assert beside.names == [f"{name}/Data/train.jsonl"]
  for release in (alone, beside):
    file = release.find(named("train"))
    assert [row for _, row in release.rows(file)] == ROWS
  assert sorted(path.name for path in tmp_path.iterdir()) == [name]  # nothing is unpacked
  whole = (tmp_path / name).read_bytes()
  (tmp_path / name).write_bytes(whole[: len(whole) // 2])
  with pytest.raises(InputError, match=f"{name}: not a whole archive"):
    Release(tmp_path)


def test_which_file_is_meant(tmp_path):
  names = "deep/er/train.jsonl deep/train.jsonl b/dev.csv a/dev.csv teacher_train.jsonl"
  for name in (*names.split(), "us/test.jsonl", "us/TEST.jsonl.gz", "train_paragraphs.json"):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("{}")
  release = Release(tmp_path)
  assert release.find(named("train")) == "deep/train.jsonl"
  assert release.find(named("train"), "er/") == "deep/er/train.jsonl"
  assert release.find(named("validation"), "(^|/)b/") == "b/dev.csv"
  assert release.find("nothing") is None
  with pytest.raises(InputError, match=r"a/dev\.csv and b/dev\.csv could both be meant"):
    release.find(named("validation"))
  assert split_files(release, [{"test": "no"}, {"train": named("train"), "test": "no"}]) == {
    "train": "deep/train.jsonl"
  }


@pytest.mark.parametrize(
  ("name", "data", "message"),
  [
    ("x.jsonl", b'{"a": 1}\n{"a": ', "x.jsonl:2: not JSON"),
    ("x.jsonl", b"[1]\n", "x.jsonl:1: a JSON object is needed"),
    ("x.jsonl", b"\xff\xfe", "x.jsonl: not UTF-8"),
    ("x.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)[:-9], "x.jsonl.gz: not a whole gzip"),
    ("x.json", b"[1, 2]", "row 1 is no JSON object"),
    ("x.csv", b"a,b\n1,2,3\n", "x.csv:2: not the 2 columns"),
    ("x.csv", b"a,b\n1\n", "x.csv:2: not the 2 columns"),
  ],
)
def test_damage_is_named(tmp_path, name, data, message):
  (tmp_path / name).write_bytes(data)
  with pytest.raises(InputError, match=message):
    list(Release(tmp_path).rows(name))
  with pytest.raises(InputError, match="no such file or folder"):
    Release(tmp_path / "nothing")
