"""The index on disk: its bytes, its numbers, and what it says when it was damaged."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from kard_jax.core.files import InputError, sha256
from kard_jax.retrieval import index as lib
from kard_jax.retrieval import passages as passages_lib
from kard_jax.retrieval.analyzer import Analyzer
from kard_jax.retrieval.passages import Passage
from tests.retrieval import corpus

WHITE = Analyzer("whitespace")
TEXTS = ["b a b", "c", "a d e a", "b"]


def random_texts(count: int, seed: int = 0) -> list[str]:
  rng = np.random.default_rng(seed)
  return [
    " ".join(f"w{word}" for word in rng.zipf(1.3, rng.integers(1, 20)) % 200) for _ in range(count)
  ]


def test_postings_of_a_small_corpus(tmp_path):
  index = lib.build(corpus.passages(*TEXTS), tmp_path / "i", analyzer=WHITE)
  assert list(index.terms) == ["a", "b", "c", "d", "e"]
  assert index.offsets.tolist() == [0, 2, 4, 5, 6, 7]
  assert index.passages.tolist() == [0, 2, 0, 3, 1, 2, 2]
  expected = corpus.bm25(TEXTS, list(index.terms))
  scores = [
    expected[term][position]
    for term, position in zip((0, 0, 1, 1, 2, 3, 4), index.passages, strict=True)
  ]
  # Rounded once: the very float32 nearest to the float64 score.
  assert index.scores.tolist() == np.float32(scores).tolist()


@pytest.mark.parametrize(("k1", "b"), [(0.9, 0.4), (1.2, 0.75), (0.0, 0.0), (2.0, 1.0)])
def test_postings_equal_the_formula_over_several_batches(tmp_path, monkeypatch, k1, b):
  monkeypatch.setattr(lib, "_BATCH", 64)
  texts = random_texts(300)
  index = lib.build(corpus.passages(*texts), tmp_path / "i", analyzer=WHITE, k1=k1, b=b)
  dense = np.zeros((len(index.terms), len(texts)))
  for term in range(len(index.terms)):
    span = slice(index.offsets[term], index.offsets[term + 1])
    assert (np.diff(index.passages[span]) > 0).all()
    dense[term, index.passages[span]] = index.scores[span]
  expected = np.array(corpus.bm25(texts, list(index.terms), k1=k1, b=b))
  assert ((expected > 0) == (dense > 0)).all()
  np.testing.assert_allclose(dense, expected, rtol=1e-7)


def test_batch_size_does_not_reach_the_bytes(tmp_path, monkeypatch):
  items = corpus.passages(*random_texts(300))
  lib.build(items, tmp_path / "a")
  monkeypatch.setattr(lib, "_BATCH", 7)
  lib.build(iter(items), tmp_path / "b")
  assert sha256(tmp_path / "a") == sha256(tmp_path / "b")


def test_hash_seed_does_not_reach_the_bytes_and_jax_is_not_imported(tmp_path):
  code = (
    "import sys; from kard_jax.retrieval import index, passages;"
    "items = [passages.Passage(str(n), 'Title', f'word{n % 13} tail{n % 7}') for n in range(99)];"
    "passages.write(items, sys.argv[1] + '/p');"
    "index.build(passages.Passages(sys.argv[1] + '/p'), sys.argv[1] + '/i');"
    "assert 'jax' not in sys.modules and 'tensorflow' not in sys.modules"
  )
  hashes = set()
  for seed in ("0", "1"):
    folder = tmp_path / seed
    folder.mkdir()
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, env=environment)
    hashes.add((sha256(folder / "p"), sha256(folder / "i")))
  assert len(hashes) == 1


def test_title_is_indexed(tmp_path):
  index = lib.build([Passage("a", "Tin", "mined here"), Passage("b", "", "iron")], tmp_path / "i")
  assert list(index.terms) == ["here", "iron", "mine", "tin"]


def test_query_terms_are_sorted_repeated_and_known(tmp_path):
  index = lib.build(corpus.passages(*TEXTS), tmp_path / "i", analyzer=WHITE)
  assert index.query("d a zz d b") == [0, 1, 3, 3]
  assert index.query("") == []


def test_stop_words_alone(tmp_path):
  with np.errstate(all="raise"):
    index = lib.build(corpus.passages("the of", "and"), tmp_path / "i")
  assert (len(index), len(index.terms), len(index.scores)) == (2, 0, 0)
  assert index.query("the tin") == []


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"k1": -0.1}, "k1"),
    ({"k1": float("nan")}, "k1"),
    ({"b": 1.5}, "b has"),
    ({"b": float("nan")}, "b has"),
  ],
)
def test_settings_are_checked(tmp_path, settings, message):
  with pytest.raises(InputError, match=message):
    lib.build(corpus.passages("x"), tmp_path / "i", **settings)


def test_no_passages(tmp_path):
  with pytest.raises(InputError, match="no passages"):
    lib.build([], tmp_path / "i")


def test_failed_build_leaves_the_old(tmp_path):
  lib.build(corpus.passages(*TEXTS), tmp_path / "i")
  before = sha256(tmp_path / "i")

  def broken():
    yield Passage("a", "", "x")
    raise InputError("passages.jsonl:2: broken")

  with pytest.raises(InputError, match="jsonl:2"):
    lib.build(broken(), tmp_path / "i")
  assert sha256(tmp_path / "i") == before
  assert [path.name for path in tmp_path.iterdir()] == ["i"]


def test_corpus_is_checked(tmp_path):
  passages_lib.write(corpus.passages(*TEXTS), tmp_path / "p")
  passages_lib.write(corpus.passages(*TEXTS[::-1]), tmp_path / "q")
  passages, others = (passages_lib.Passages(tmp_path / name) for name in "pq")
  index = lib.build(passages, tmp_path / "i")
  lib.check_corpus(index, passages)
  with pytest.raises(InputError, match=r"other passages.*launch/index\.py"):
    lib.check_corpus(index, others)
  passages.corpus = others.corpus  # as if the records had changed under their header
  with pytest.raises(InputError, match="the passages changed"):
    lib.build(passages, tmp_path / "i")


ARRAYS = ["offsets", "passages", "scores", "terms_data", "terms_offsets"]


@pytest.fixture
def folder(tmp_path):
  return lib.build(corpus.passages(*random_texts(50)), tmp_path / "i") and tmp_path / "i"


def refused(folder, *needles, verify=False):
  with pytest.raises(InputError) as error:
    lib.open(folder, verify=verify)
  for needle in (*needles, "build the index again with launch/index.py"):
    assert needle in str(error.value)
  assert "\n" not in str(error.value)


def test_header_says_what_the_index_is(folder):
  header = json.loads((folder / "header.json").read_text())
  assert (header["kind"], header["version"]) == ("kard_jax bm25 index", 1)
  assert (header["k1"], header["b"], header["analyzer"]) == (0.9, 0.4, {"kind": "english"})
  assert header["passages"] == 50
  assert sorted(header["files"]) == [f"{name}.npy" for name in ARRAYS]
  lib.open(folder, verify=True)


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("keep", [0, 10, -1])
def test_cut_file(folder, name, keep):
  path = folder / f"{name}.npy"
  path.write_bytes(path.read_bytes()[:keep])
  refused(folder, str(path), "bytes where")


@pytest.mark.parametrize("name", ARRAYS)
def test_grown_file(folder, name):
  path = folder / f"{name}.npy"
  path.write_bytes(path.read_bytes() + b"x")
  refused(folder, str(path), "bytes where")


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("where", [0, 9, 40, 130, -1])
def test_flipped_byte(folder, name, where):
  path = folder / f"{name}.npy"
  data = bytearray(path.read_bytes())
  data[where] ^= 1
  path.write_bytes(data)
  refused(folder, str(path), verify=True)


@pytest.mark.parametrize("name", ARRAYS)
def test_missing_file(folder, name):
  (folder / f"{name}.npy").unlink()
  refused(folder, str(folder / f"{name}.npy"), "no such file")


@pytest.mark.parametrize(
  "text", ["", "{", "[]", "null", "{}", '{"files": 3, "sha256": 1}', "\xff\xfe"]
)
def test_header_is_no_header(folder, text):
  (folder / "header.json").write_bytes(text.encode("latin-1"))
  refused(folder, "header.json")


def test_missing_header_and_folder(folder):
  (folder / "header.json").unlink()
  refused(folder, "header.json", "no such file")
  refused(folder / "nowhere", "header.json", "no such file")


def test_other_version(folder):
  text = (folder / "header.json").read_text()
  (folder / "header.json").write_text(text.replace('"version": 1', '"version": 2'))
  refused(folder, "format version 2, this code reads version 1")


def test_edited_header(folder):
  text = (folder / "header.json").read_text()
  assert '"k1": 0.9' in text
  (folder / "header.json").write_text(text.replace('"k1": 0.9', '"k1": 1.2'))
  refused(folder, "header.json", "changed")


def test_passages_are_no_index(tmp_path):
  passages_lib.write(corpus.passages("x"), tmp_path / "p")
  refused(tmp_path / "p", "this is a 'kard_jax passages'")


def test_swapped_arrays(folder):
  # Same size, and an array: only its type gives it away without checksums.
  (folder / "passages.npy").write_bytes((folder / "scores.npy").read_bytes())
  refused(folder, "passages.npy", "int32")
  refused(folder, "passages.npy", verify=True)


def test_memory_mapped_and_read_only(folder):
  index = lib.open(folder)
  assert isinstance(index.scores.base, np.memmap)
  assert not index.scores.flags.writeable
