"""Where words begin and end, and the numbers that they get."""

import gzip
import itertools
import json
import pathlib

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from kard_jax.retrieval import native, vocabulary, word_break
from kard_jax.retrieval.word_break import Class

DATA = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data"
SMILE, WOMAN, ZWJ, STYLE, KEYCAP = "\U0001f600", "\U0001f469", "\u200d", "\ufe0f", "\u20e3"
TONE, TAGS = "\U0001f3fd", "\U000e0067\U000e007f"

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden" / "lucene_words.jsonl"


def characters(*kinds):
  """A few of each class: the first, of one or two bytes as a rule, one between, and the last."""
  for kind in kinds:
    points = np.flatnonzero(word_break.class_table() == kind)
    yield from {chr(point) for point in (points[0], points[len(points) // 2], points[-1])}


# Classes that have to do with each other meet more often so than by chance.
TEXTS = st.one_of(
  st.text(st.sampled_from(list(characters(*Class)))),
  st.text(st.sampled_from("ab12_.,:'\"\u05d0\u05d1\u2019\u0301\U0001d400\uff11 ")),
  st.text(st.sampled_from(list(characters(*range(Class.PICTOGRAPH, Class.EMOJI_STYLE + 1))))),
)


@pytest.fixture(params=["compiled", "python"])
def backend(request, monkeypatch):
  """Both ways that a table of words works; the compiled one where it can be."""
  if request.param == "python":
    monkeypatch.setattr(vocabulary, "_library", lambda: None)
  elif native.library() is None:
    pytest.skip("no compiled kernels here")
  return request.param


def cut(texts, **settings):
  """The words of each text, by way of a table of words."""
  table = vocabulary.Words(**settings)
  ids, ends = table.cut(texts)
  words = table.new_words(0)
  return [[words[number] for number in part] for part in np.split(ids, ends)[:-1]]


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("", []),
    ("Mr. O'Neil's e.g. U.S.A. isn't", ["Mr", "O'Neil's", "e.g", "U.S.A", "isn't"]),
    ("3.14 10,000.5 1;2 1:2 1.a a,b", ["3.14", "10,000.5", "1;2", *"121aab"]),
    ("a:b 'tis dogs' a''b a..b", ["a:b", "tis", "dogs", "a", "b", "a", "b"]),
    ("a_b __ _1_ _", ["a_b", "_1_"]),
    ("H\u2082O x\u00b2 \u00bd", ["H", "O", "x"]),
    ("cafe\u0301 \u0301a co\u00adop a\u200bb", ["cafe\u0301", "a", "co\u00adop", "a", "b"]),
    (
      "\u4e2d\u6587 \u3072\u3089 \u30ab\u30ca_\u30ab\u30abx",
      [*"\u4e2d\u6587\u3072\u3089", "\u30ab\u30ca_\u30ab\u30ab", "x"],
    ),
    (
      "\ud55c\uad6d\uc5b4 \u0e44\u0e17\u0e22abc \u0e31",
      ["\ud55c\uad6d\uc5b4", "\u0e44\u0e17\u0e22", "abc", "\u0e31"],
    ),
    ('\u05d0"\u05d1"\u05d2 \u05d0\' a\' a"b', ['\u05d0"\u05d1', "\u05d2", "\u05d0'", *"aab"]),
    ("a.\u05d0' a\u05d0'\u05d1'", ["a.\u05d0", "a\u05d0'\u05d1'"]),
    (f"{SMILE}{SMILE} {WOMAN}{ZWJ}{WOMAN}", [SMILE, SMILE, f"{WOMAN}{ZWJ}{WOMAN}"]),
    # A tag sequence follows a first emoji only, a skin tone a single joiner only.
    (f"{SMILE}{ZWJ}{WOMAN}{STYLE}{TAGS}", [f"{SMILE}{ZWJ}{WOMAN}{STYLE}"]),
    (f"{SMILE}{STYLE}{ZWJ}{ZWJ}{TONE}", [f"{SMILE}{STYLE}", TONE]),
    (f"{SMILE}{STYLE}{ZWJ}{TONE}", [f"{SMILE}{STYLE}{ZWJ}{TONE}"]),
    (f"{SMILE}{STYLE}{TAGS}", [f"{SMILE}{STYLE}{TAGS}"]),
    (f"#{STYLE}{KEYCAP} 1{STYLE}{KEYCAP}2 #a", [f"#{STYLE}{KEYCAP}", f"1{STYLE}{KEYCAP}2", "a"]),
    ("\U0001f1fa\U0001f1f8\U0001f1eb \u00a9", ["\U0001f1fa\U0001f1f8", "\u00a9"]),
    ("x" * 600, ["x" * 255, "x" * 255, "x" * 90]),
    ("a" * 254 + ".b", ["a" * 254, "b"]),
    ("\U0001d400" * 200, ["\U0001d400" * 127, "\U0001d400" * 73]),
    ("_" * 300 + "a", ["_" * 254 + "a"]),
    ("a\ud800b", ["a", "b"]),  # half a character
  ],
)
def test_words(text, words, backend):
  assert word_break.words(text) == words
  assert cut([text]) == [words]


def test_words_are_lucenes(backend):
  with GOLDEN.open(encoding="ascii") as file:
    golden = [json.loads(line) for line in file]
  assert len(golden) > 1000
  for row, words in zip(golden, cut([row["text"] for row in golden]), strict=True):
    assert words == row["words"], ascii(row["text"])


@hypothesis.given(st.lists(TEXTS, max_size=5))
@hypothesis.settings(max_examples=300, deadline=None)
def test_kernel_agrees_with_reference(texts):
  if native.library() is None:
    pytest.skip("no compiled kernels here")
  assert cut(texts) == [word_break.words(text) for text in texts]


@hypothesis.given(st.lists(st.tuples(TEXTS, st.integers(1, 300)), min_size=1, max_size=4))
@hypothesis.settings(max_examples=100, deadline=None)
def test_kernel_agrees_where_words_are_cut(parts):
  if native.library() is None:
    pytest.skip("no compiled kernels here")
  text = "".join((part * times)[:700] for part, times in parts)
  assert cut([text]) == [word_break.words(text)]
  for word in word_break.words(text):
    assert len(word.encode("utf-16-le")) <= 2 * word_break.LONGEST


@hypothesis.given(st.lists(st.text(st.sampled_from("ab\u00e9\0 \t\n\x1c\x85\xa0\u3000\ud800"))))
@hypothesis.settings(deadline=None)
def test_white_space_is_pythons(texts):
  assert cut(texts, white_space=True) == [text.split() for text in texts]


def test_every_white_space_character():
  text = "a".join(map(chr, range(0x110000)))
  assert cut([text], white_space=True) == [text.split()]


def test_numbers_grow_with_each_batch(backend):
  table = vocabulary.Words()
  ids, ends = table.cut(["b a b", "", "c"])
  assert ids.dtype == np.int32
  assert ends.dtype == np.int64
  assert (ids.tolist(), ends.tolist()) == ([0, 1, 0, 2], [3, 3, 4])
  assert table.new_words(0) == ["b", "a", "c"]
  assert table.cut(["d a", "D"])[0].tolist() == [3, 1, 4]
  assert table.new_words(3) == ["d", "D"]
  assert table.new_words(5) == []
  assert len(table) == 5
  with pytest.raises(IndexError, match="no word 6"):
    table.new_words(6)
  assert [part.tolist() for part in table.cut([])] == [[], []]


@pytest.mark.parametrize("form", ["{}", "{:x}", "beginning{}", "{}.{}"])
def test_many_words(form, backend):
  # So many that the table grows many times, and that the hashes (32 bits) of some are the same.
  count = 250_000 if backend == "compiled" else 2_000
  words = [form.format(number, number) for number in range(count)]
  table = vocabulary.Words()
  assert np.array_equal(table.cut([" ".join(words)] * 2)[0], [*range(count)] * 2)
  assert table.new_words(0) == words


def test_more_words_than_expected(backend):
  table = vocabulary.Words()
  ids, _ = table.cut(["a," * 10_000])  # a word for every two bytes
  assert ids.tolist() == [0] * 10_000


def test_class_table_is_read_only():
  with pytest.raises(ValueError, match="read-only"):
    word_break.class_table()[0] = 1


@pytest.mark.parametrize("name", ["strategyqa/evidence/corpus", "corpora/openstax_biology"])
def test_kernel_agrees_on_collections(name):
  path = DATA / f"{name}.jsonl.gz"
  if not path.exists():
    pytest.skip(f"{path.name} is not here")
  if native.library() is None:
    pytest.skip("no compiled kernels here")
  with gzip.open(path, "rt", encoding="utf-8") as file:
    texts = [json.loads(line)["text"] for line in itertools.islice(file, 0, None, 4)]
  assert cut(texts) == [word_break.words(text) for text in texts]
