"""Text to terms."""

import concurrent.futures
import json
import re

import hypothesis
import pytest
from hypothesis import strategies as st

from kard_jax.core.files import InputError
from kard_jax.retrieval.analyzer import STOP_WORDS, Analyzer


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
    ("it's", []),  # "it" is a stop word once the 's is gone
    ("as us is x", ["us", "x"]),
    ("H2O 2023 3rd", ["h2o", "2023", "3rd"]),
    ("snake_case", ["snake", "case"]),
    ("(B) tin/iron", ["b", "tin", "iron"]),
    ("NAÏVE Ärger", ["naïv", "ärger"]),
    ("हिन्दी 中文", ["हिन्दी", "中文"]),
    ("cafe\u0301", ["cafe\u0301"]),  # a combining mark stays with its letter
    ("generalizations relational", ["gener", "relat"]),
  ],
)
def test_english(text, terms):
  assert Analyzer()(text) == terms


def test_stop_words_are_lucenes_thirty_three():
  assert len(STOP_WORDS) == 33


def test_whitespace():
  assert Analyzer("whitespace")("The  cats'\nRUN the") == ["The", "cats'", "RUN", "the"]


def test_unknown_kind_is_named():
  with pytest.raises(InputError, match=r"english, whitespace, not 'german'"):
    Analyzer("german")
  with pytest.raises(InputError, match="unknown settings"):
    Analyzer.from_json({"language": "english"})


@pytest.mark.parametrize("kind", ["english", "whitespace"])
def test_survives_json(kind):
  analyzer = Analyzer(kind)
  assert Analyzer.from_json(json.loads(json.dumps(analyzer.to_json()))) == analyzer


@hypothesis.given(st.lists(st.text(), max_size=4))
def test_properties(texts):
  analyzer = Analyzer()
  found = analyzer.batch(texts)
  assert found == [analyzer(text) for text in texts]
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
  from kard_jax.retrieval import analyzer as module

  module._english.cache_clear()
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    results = list(pool.map(lambda _: Analyzer().batch(words), range(8)))
  assert all(result == expected for result in results)
