"""The index on disk: segments that rank as one, and what it says when it was damaged."""

import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from kard_jax.core import files
from kard_jax.core.files import InputError
from kard_jax.retrieval import blocks, bm25, sealed
from kard_jax.retrieval import index as lib
from kard_jax.retrieval import passages as passages_lib
from kard_jax.retrieval.analyzer import Analyzer
from kard_jax.retrieval.passages import Passage
from tests.retrieval import corpus
from tests.retrieval.corpus import WHITE, Truth, assert_exact, assert_same, bytes_below

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEXTS = ["b a b", "c", "a d e a", "b"]
ARRAYS = [
  *("block_data", "block_passages", "chunks", "data", "lengths"),
  *("term_chunks", "terms_data", "terms_offsets"),
]


def test_postings_of_a_small_corpus(tmp_path):
  index = lib.build(corpus.passages(*TEXTS), tmp_path / "i", analyzer=WHITE)
  (segment,) = index.segments
  assert list(segment.terms) == ["a", "b", "c", "d", "e"]
  found = [tuple(array.tolist() for array in segment.postings(term)) for term in range(5)]
  assert found == [([0, 2], [1, 2]), ([0, 3], [2, 1]), ([1], [1]), ([2], [1]), ([2], [1])]
  assert segment.lengths.tolist() == [3, 1, 4, 1]
  assert (len(index), index.postings, index.corpora[0][0]) == (4, 7, 4)
  assert index.size() == sum(size for _, size in bytes_below(tmp_path / "i").values())


def test_title_is_indexed(tmp_path):
  index = lib.build([Passage("a", "Tin", "mined here"), Passage("b", "", "iron")], tmp_path / "i")
  assert list(index.segments[0].terms) == ["here", "iron", "mine", "tin"]


def test_stop_words_alone(tmp_path):
  index = lib.build(corpus.passages("the of", "and"), tmp_path / "i")
  assert (len(index), len(index.segments[0].terms), index.postings) == (2, 0, 0)


# ---- segments


@hypothesis.settings(
  max_examples=25,
  deadline=None,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(
  st.lists(st.lists(st.sampled_from("abcdefg"), max_size=6).map(" ".join), min_size=3, max_size=30),
  st.lists(st.integers(1, 29), min_size=1, max_size=2, unique=True),
  st.sampled_from(["lucene", "exact"]),
)
def test_segments_rank_as_one(tmp_path, texts, cuts, lengths):
  items = corpus.passages(*texts)
  cuts = [0, *sorted({min(cut, len(texts) - 1) for cut in cuts}), len(texts)]
  whole = lib.build(items, tmp_path / "whole", analyzer=WHITE, lengths=lengths)
  queries = ["a b c", "g", "a a d e f", "b x", ""]
  expected = bm25.top_k(whole, queries, 40)
  parts = lib.build(items[: cuts[1]], tmp_path / "i", analyzer=WHITE, lengths=lengths)
  for low, high in itertools.pairwise(cuts[1:]):
    parts = lib.add(tmp_path / "i", items[low:high])
  assert len(parts.segments) == len(cuts) - 1
  assert_same(bm25.top_k(parts, queries, 40), expected)
  merged = lib.merge(tmp_path / "i")
  assert len(merged.segments) == 1
  assert_same(bm25.top_k(merged, queries, 40), expected)
  assert_exact(Truth(texts, lengths=lengths), queries, 40, expected)


def test_large_segments_rank_as_one(tmp_path, monkeypatch):
  texts = [f"{text} c{n % 2} c2" for n, text in enumerate(corpus.zipf_texts(9000, 0, longest=9))]
  texts[8000] += " c2" * 300
  items = corpus.passages(*texts)
  whole = lib.build(items, tmp_path / "whole", analyzer=WHITE)
  monkeypatch.setattr(blocks, "CHARACTERS", 50_000)  # other blocks than in the whole
  lib.build(items[:4000], tmp_path / "i", analyzer=WHITE)
  lib.add(tmp_path / "i", items[4000:4001])
  before = bytes_below(tmp_path / "i")
  three = lib.add(tmp_path / "i", items[4001:])
  after = bytes_below(tmp_path / "i")
  changed = {name for name in before if before[name] != after[name]}
  assert changed == {"header.json"}  # what was there is not rewritten
  assert len(three.segments) == 3
  assert len(three.segments[0].block_data) > 2
  queries = [*corpus.zipf_texts(30, 1, longest=60), "c0 c1 c2", "c2", texts[8000]]
  wanted = np.random.default_rng(2).integers(-1, 9000, (len(queries), 50))
  expected = bm25.top_k(whole, queries, 200), bm25.rescore(whole, queries, wanted)
  for open_it in (
    lambda: three,
    lambda: lib.merge(tmp_path / "i"),
    lambda: lib.open(tmp_path / "i", verify=True),
  ):
    index = open_it()
    assert_same(bm25.top_k(index, queries, 200), expected[0])
    np.testing.assert_array_equal(bm25.rescore(index, queries, wanted), expected[1])
  assert sorted(path.name for path in (tmp_path / "i").iterdir()) == [
    "header.json",
    "segment-00003",
  ]
  assert index.corpora == three.corpora


def test_a_segment_more_after_a_merge(tmp_path):
  texts = corpus.zipf_texts(90, 0)
  items = corpus.passages(*texts)
  lib.build(items[:30], tmp_path / "i", analyzer=WHITE)
  lib.add(tmp_path / "i", items[30:50])
  lib.merge(tmp_path / "i")
  assert lib.merge(tmp_path / "i").segments[0].folder.name == "segment-00002"  # nothing to do
  lib.add(tmp_path / "i", items[50:])
  index = lib.merge(tmp_path / "i")
  assert [size for size, _ in index.corpora] == [30, 20, 40]
  assert_exact(Truth(texts), texts[:9], 90, bm25.top_k(index, texts[:9], 90))


def steps():
  """What `add` and `merge` go through, each a place to fail at."""
  return [(lib, "_write_header"), (sealed, "seal"), (files, "write_json"), (lib.segment, "write")]


@pytest.mark.parametrize("change", ["add", "merge"])
@pytest.mark.parametrize("step", range(4))
def test_a_change_that_fails_leaves_the_old_index(tmp_path, monkeypatch, change, step):
  items = corpus.passages(*corpus.zipf_texts(90, 0))
  lib.build(items[:30], tmp_path / "i", analyzer=WHITE)
  lib.add(tmp_path / "i", items[30:60])
  expected = bm25.top_k(lib.open(tmp_path / "i"), ["w1 w2 w3"], 60)

  def fail(*_, **__):
    raise KeyboardInterrupt

  apply = {"add": lambda: lib.add(tmp_path / "i", items[60:]), "merge": lambda: lib.merge(folder)}
  folder = tmp_path / "i"
  with monkeypatch.context() as patch:
    patch.setattr(*steps()[step], fail)
    with pytest.raises(KeyboardInterrupt):
      apply[change]()
  index = lib.open(tmp_path / "i", verify=True)
  assert_same(bm25.top_k(index, ["w1 w2 w3"], 60), expected)
  assert len(apply[change]()) == (90 if change == "add" else 60)  # and it can be done again
  lib.open(tmp_path / "i", verify=True)


def test_merge_refuses_damaged_postings(tmp_path):
  lib.build(corpus.passages(*TEXTS), tmp_path / "i", analyzer=WHITE)
  lib.add(tmp_path / "i", corpus.passages(*TEXTS))
  flip(tmp_path / "i/segment-00001/data.npy", -1)
  before = bytes_below(tmp_path / "i")
  with pytest.raises(InputError, match=r"segment-00001/data\.npy: its bytes changed"):
    lib.merge(tmp_path / "i")
  assert bytes_below(tmp_path) == {f"i/{name}": data for name, data in before.items()}


@pytest.mark.parametrize("change", [lib.merge, lambda path: lib.add(path, corpus.passages("a"))])
def test_no_index_to_change(tmp_path, change):
  with pytest.raises(InputError, match="no such file"):
    change(tmp_path / "i")
  assert list(tmp_path.iterdir()) == []


def test_corpus_is_checked(tmp_path):
  passages_lib.write(corpus.passages(*TEXTS), tmp_path / "p")
  passages_lib.write(corpus.passages(*TEXTS[::-1]), tmp_path / "q")
  passages, others = (passages_lib.Passages(tmp_path / name) for name in "pq")
  index = lib.build(passages, tmp_path / "i")
  lib.check_corpus(index, passages)
  with pytest.raises(InputError, match=r"other passages.*launch/index\.py"):
    lib.check_corpus(index, others)
  more = [Passage("new", "", "another")]
  passages_lib.append(more, tmp_path / "p")
  with pytest.raises(InputError, match="other passages"):
    lib.check_corpus(index, passages_lib.Passages(tmp_path / "p"))
  index = lib.add(tmp_path / "i", passages_lib.Passages(tmp_path / "p", segment=1))
  lib.check_corpus(index, passages_lib.Passages(tmp_path / "p"))
  lib.check_corpus(lib.merge(tmp_path / "i"), passages_lib.Passages(tmp_path / "p"))
  built = lib.build(passages_lib.Passages(tmp_path / "p"), tmp_path / "i")
  lib.check_corpus(built, passages_lib.Passages(tmp_path / "p"))


# ---- damage


def flip(path, where, bits=1):
  data = bytearray(path.read_bytes())
  data[where] ^= bits
  path.write_bytes(data)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
  """An index of two segments."""
  folder = tmp_path_factory.mktemp("original") / "i"
  texts = [f"{text} common" for text in corpus.zipf_texts(2500, 0, longest=7, words=300)]
  lib.build(corpus.passages(*texts[:2400]), folder)
  lib.add(folder, corpus.passages(*texts[2400:]))
  return folder


@pytest.fixture
def folder(original, tmp_path):
  return shutil.copytree(original, tmp_path / "i")


def refused(folder, *needles, verify=False):
  with pytest.raises(InputError) as error:
    lib.open(folder, verify=verify)
  for needle in (*needles, "build the index again with launch/index.py"):
    assert needle in str(error.value)
  assert "\n" not in str(error.value)


def test_headers_say_what_the_index_is(folder):
  header = json.loads((folder / "header.json").read_text())
  assert (header["kind"], header["version"]) == ("kard_jax bm25 index", 2)
  assert (header["k1"], header["b"], header["lengths"]) == (0.9, 0.4, "lucene")
  assert header["analyzer"] == {"kind": "english"}
  assert (header["passages"], [size for size, _ in header["corpora"]]) == (2500, [2400, 100])
  assert header["segments"] == ["segment-00000", "segment-00001"]
  part = json.loads((folder / "segment-00000/header.json").read_text())
  assert sorted(part["files"]) == [f"{name}.npy" for name in ARRAYS]
  lib.open(folder, verify=True)


@pytest.mark.parametrize("name", ARRAYS)
def test_cut_grown_changed_and_missing_files(folder, name):
  path = folder / f"segment-00001/{name}.npy"
  data = path.read_bytes()
  for changed in (b"", data[:10], data[:-1], data + b"x"):
    path.write_bytes(changed)
    refused(folder, str(path), "bytes where")
  for where in (0, 9, 40, 130, -1):
    path.write_bytes(data)
    flip(path, where)
    refused(folder, str(path), verify=True)
  path.unlink()
  refused(folder, str(path), "no such file")


@pytest.mark.parametrize(
  "text", ["", "{", "[]", "null", "{}", '{"files": 3, "sha256": 1}', "\xff\xfe"]
)
@pytest.mark.parametrize("name", ["header.json", "segment-00000/header.json"])
def test_header_is_no_header(folder, name, text):
  (folder / name).write_bytes(text.encode("latin-1"))
  refused(folder, name)


def test_missing_header_and_folder(folder):
  (folder / "header.json").unlink()
  refused(folder, "header.json", "no such file")
  refused(folder / "nowhere", "header.json", "no such file")


def test_missing_segment(folder):
  shutil.rmtree(folder / "segment-00001")
  refused(folder, "segment-00001/header.json", "no such file")


@pytest.mark.parametrize("version", [1, 3, None, "2"])
def test_other_version(folder, version):
  header = json.loads((folder / "header.json").read_text()) | {"version": version}
  (folder / "header.json").write_text(json.dumps(header))
  refused(folder, f"format version {version}, this code reads version 2")


def test_edited_header(folder):
  path = folder / "header.json"
  text = path.read_text()
  assert '"k1": 0.9' in text
  edits = text.replace('"k1": 0.9', '"k1": 1.2'), text.replace("  ", "\t ", 1), f"{text}\n"
  for edited in edits:
    path.write_text(edited)
    refused(folder, "header.json", "changed")


def test_passages_are_no_index(tmp_path):
  passages_lib.write(corpus.passages("x"), tmp_path / "p")
  refused(tmp_path / "p", "this is a 'kard_jax passages'")


def test_segments_of_another_index(folder, tmp_path):
  lib.build(corpus.passages("x"), tmp_path / "other")
  for name in ("segment-00000", "segment-00001"):
    shutil.rmtree(folder / name)
    shutil.copytree(tmp_path / "other/segment-00000", folder / name)
  refused(folder, "segment-00000/header.json")


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_every_byte_of_an_arrays_header_may_change(tmp_path):
  values = np.arange(9, dtype=np.int32)
  np.save(tmp_path / "x.npy", values)
  data = (tmp_path / "x.npy").read_bytes()
  rng, messages = np.random.default_rng(0), []
  for where in range(128):
    for byte in rng.choice(256, 6, replace=False):
      (tmp_path / "x.npy").write_bytes(data[:where] + bytes([byte]) + data[where + 1 :])
      try:
        found = sealed.array(tmp_path, "x", np.int32, remedy="copy it again")
      except InputError as error:
        messages.append(str(error))
      else:
        assert found.dtype == values.dtype
        assert found.ndim == 1
  assert len(messages) > 500
  for text in messages:
    assert text.startswith(f"{tmp_path}/x.npy")
    assert text.endswith("copy it again")


DAMAGE = """
import pathlib, shutil, sys
import numpy as np
from kard_jax.core.files import InputError
from kard_jax.retrieval import bm25, index
original, copy = map(pathlib.Path, sys.argv[1:3])
queries = ["w1 w2 common", "w3", "common w200 w17", "w250"]
expected = bm25.top_k(index.open(original), queries, 30)
names = sorted(str(path.relative_to(original)) for path in original.rglob("*") if path.is_file())
rng = np.random.default_rng(int(sys.argv[3]))
for number in range(100):
  shutil.copytree(original, copy)
  name = names[number % len(names)]
  path = copy / name
  data = path.read_bytes()
  kind = ("flip", "flip", "cut", "grow", "remove")[number // len(names) % 5]
  if kind == "flip":
    where = rng.integers(len(data))
    data = data[:where] + bytes([data[where] ^ rng.integers(1, 256)]) + data[where + 1 :]
  elif kind == "cut":
    data = data[: rng.integers(len(data))]
  elif kind == "grow":
    data += rng.bytes(rng.integers(1, 9)) if number % 2 else b" "
  path.write_bytes(data)
  if kind == "remove":
    path.unlink()
  try:
    index.open(copy, verify=True)
    sys.exit(f"not noticed: {kind} {name}")
  except InputError as error:
    assert str(copy) in str(error), error
  try:
    hits = bm25.top_k(index.open(copy), queries, 30)
    sys.exit(f"searched: {kind} {name}")
  except InputError as error:
    assert str(copy) in str(error), error
  shutil.rmtree(copy)
print("noticed", number + 1)
"""


def test_a_dtype_that_python_cannot_parse_is_refused(tmp_path):
  np.save(tmp_path / "lengths.npy", np.zeros(3, np.int64))
  data = (tmp_path / "lengths.npy").read_bytes()
  (tmp_path / "lengths.npy").write_bytes(data.replace(b"<i8", b"08i"))
  with pytest.raises(InputError, match="not a readable array"):
    sealed.array(tmp_path, "lengths", np.int64, remedy="build it again")


def test_a_hundred_corruptions_are_noticed(original, tmp_path):
  seed = str(int.from_bytes(os.urandom(3)))
  done = subprocess.run(
    [sys.executable, "-c", DAMAGE, str(original), str(tmp_path / "copy"), seed],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    check=False,
  )
  assert (done.returncode, done.stdout) == (0, "noticed 100\n"), f"seed {seed}: {done.stderr}"


def test_checksums_are_compared_before_the_first_search(folder):
  """Those of every file, and once."""
  opened = lib.open(folder)
  assert not opened.verified
  assert bm25.top_k(opened, ["common"], 1).ids_BxK.shape == (1, 1)
  assert opened.verified
  for search in (
    lambda index: bm25.top_k(index, ["common"], 1),
    lambda index: bm25.rescore(index, ["common"], np.zeros((1, 1), np.int32)),
  ):
    fresh = lib.open(folder)
    flip(folder / "segment-00001/data.npy", -1)
    with pytest.raises(InputError, match=r"data\.npy: its bytes changed"):
      search(fresh)
    flip(folder / "segment-00001/data.npy", -1)


def test_memory_mapped_and_read_only(folder):
  data = lib.open(folder).segments[0].data
  assert isinstance(data.base, np.memmap)
  assert not data.flags.writeable


def test_an_open_index_outlives_a_merge(folder):
  index = lib.open(folder, verify=True)
  expected = bm25.top_k(lib.open(folder), ["common w1"], 9)
  lib.merge(folder)
  assert_same(bm25.top_k(index, ["common w1"], 9), expected)


def test_analyzer_of_the_index_is_that_of_queries(tmp_path):
  lib.build(corpus.passages("Running dogs"), tmp_path / "i", analyzer=Analyzer("unicode"))
  index = lib.open(tmp_path / "i")
  assert bm25.top_k(index, ["run", "RUNNING"], 1).ids_BxK.tolist() == [[-1], [0]]
