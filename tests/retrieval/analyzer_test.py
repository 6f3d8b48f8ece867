"""Text to terms."""

import concurrent.futures
import json
import pathlib
import re

import hypothesis
import pytest
from hypothesis import strategies as st

from kard_jax.core.files import InputError
from kard_jax.retrieval import analyzer as module
from kard_jax.retrieval import native, vocabulary
from kard_jax.retrieval.analyzer import STOP_WORDS, Analyzer

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden" / "lucene_tokens.jsonl"


@pytest.mark.parametrize(
  ("text", "terms"),
  [
    ("", []),
    ("   \n\t .,;!? --- ___", []),
    ("the of AND", []),
    ("Mines MINING mined", ["mine", "mine", "mine"]),
    ("the miner's tin; the miner\u2019s tin", ["miner", "tin", "miner", "tin"]),
    ("don't", ["don't"]),
    ("'quoted' rock'n'roll'", ["quot", "rock'n'rol"]),
    ("it's IT\uff07S", []),  # "it" is a stop word once the 's is gone
    ("as us is x", ["us", "x"]),
    ("H2O 2023 3rd", ["h2o", "2023", "3rd"]),
    ("snake_case", ["snake_cas"]),
    ("U.S. 3.14 10,000", ["u.", "3.14", "10,000"]),
    ("(B) tin/iron", ["b", "tin", "iron"]),
    ("NAÏVE Ärger", ["naïv", "ärger"]),
    ("हिन्दी 中文", ["हिन्दी", "中", "文"]),
    ("cafe\u0301", ["cafe\u0301"]),  # a combining mark stays with its letter
    ("generalizations relational", ["gener", "relat"]),
    ("\u039f\u0394\u039f\u03a3 \u0130I", ["\u03bf\u03b4\u03bf\u03c3", "ii"]),  # no final sigma
  ],
)
def test_english(text, terms):
  assert Analyzer()(text) == terms


@pytest.mark.parametrize(
  ("word", "stem"),
  [
    ("trekking", "trek"),  # Snowball's: trekk
    ("revved", "rev"),
    ("a11eds", "a1"),
    ("naïïed", "naï"),
    ("skkied", "skki"),  # no double before -ed itself
    ("skking", "skking"),  # no vowel before -ing
    ("hissed", "hiss"),
    ("byyed", "by"),  # the second y is a consonant,
    ("yyed", "yy"),  # and here a vowel
    ("ayyed", "ayi"),
    ("ayyyed", "ayi"),  # one y less, then i for y
    ("possibly", "possibl"),  # Snowball's: possibli
    ("assemblies", "assembl"),
    ("notably", "notabl"),
    ("bly", "bly"),
    ("sociology", "sociolog"),  # Snowball's: sociologi
    ("apologies", "apolog"),
    ("biology", "biologi"),  # no consonant after the vowels before -logi
    ("as", "as"),
    ("\U0001d400s", "\U0001d400"),  # three units of UTF-16,
    ("to\U0001d400ed", "to\U0001d400"),  # and no short syllable, which would get an e
  ],
)
def test_stems_are_lucenes(word, stem):
  assert module._stem(word) == stem


@pytest.mark.parametrize("way", ["compiled", "python"])
def test_terms_are_lucenes(way, monkeypatch):
  if way == "python":
    monkeypatch.setattr(vocabulary, "_library", lambda: None)
  elif native.library() is None:
    pytest.skip("no compiled kernels here")
  with GOLDEN.open(encoding="utf-8", newline="\n") as file:
    golden = [json.loads(line) for line in file]
  found = Analyzer().batch(row["text"] for row in golden)
  assert len(golden) > 100
  for row, terms in zip(golden, found, strict=True):
    assert terms == row["terms"], row["text"]


def test_unicode_keeps_every_word():
  text = "The Miner's MINES, \u039f\u0394\u039f\u03a3 \u0130"
  terms = ["the", "miner's", "mines", "\u03bf\u03b4\u03bf\u03c3", "i"]
  assert Analyzer("unicode")(text) == terms


def test_stop_words_are_lucenes_thirty_three():
  assert len(STOP_WORDS) == 33


def test_whitespace():
  assert Analyzer("whitespace")("The  cats'\nRUN the") == ["The", "cats'", "RUN", "the"]


def test_unknown_kind_is_named():
  with pytest.raises(InputError, match=r"english, unicode, whitespace, not 'german'"):
    Analyzer("german")
  with pytest.raises(InputError, match="unknown settings"):
    Analyzer.from_json({"language": "english"})


@pytest.mark.parametrize("kind", ["english", "unicode", "whitespace"])
def test_survives_json(kind):
  analyzer = Analyzer(kind)
  assert Analyzer.from_json(json.loads(json.dumps(analyzer.to_json()))) == analyzer


@pytest.mark.parametrize("kind", ["english", "unicode", "whitespace"])
@hypothesis.given(st.lists(st.text(), max_size=4))
def test_batch_is_each(kind, texts):
  analyzer = Analyzer(kind)
  found = analyzer.batch(texts)
  assert found == [analyzer(text) for text in texts]
  for text, terms in zip(texts, found, strict=True):
    assert terms == [term for word in analyzer.words(text) if (term := analyzer.term(word))]


@hypothesis.given(st.lists(st.text(), max_size=4))
def test_properties(texts):
  analyzer = Analyzer()
  found = analyzer.batch(texts)
  for terms in found:
    for term in terms:
      assert term
      assert term not in STOP_WORDS or len(term) > 2  # "ass" has the stem "ass", "ands" has "and"
      assert not re.search(r"\s", term)
  # Words do not depend on what stands around them.
  assert analyzer(" . ".join(texts)) == [term for terms in found for term in terms]


def test_threads_agree():
  words = [f"word{number}ing running flies" for number in range(3000)]
  expected = Analyzer().batch(words)
  module._english.cache_clear()
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    results = list(pool.map(lambda _: Analyzer().batch(words), range(8)))
  assert all(result == expected for result in results)
