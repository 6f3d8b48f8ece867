"""Made-up texts for Lucene's golden values: odd ones for the analyzer, a small corpus for search.

They stand in the golden files too: the tests read those, only `write_lucene.py` needs this module.
"""

import itertools
import pathlib
import random

_TEXTS = pathlib.Path(__file__).with_name("lucene_texts.txt").read_text("utf-8").split("\n\n")
# One line, one text; each of its words is a text of its own as well.
_LINES = _TEXTS[0].split("\n")
_WORDS = _TEXTS[1].split()
_STOP = [
  "the",
  "the",
  "of",
  "and",
  "in",
  "to",
  "is",
  "a",
  "it",
  "was",
  "for",
  "with",
  "that",
  "are",
]
_MARKS = [",", ".", ";", ":", "!", "?", " -", "...", ")", '"', "'", " \u2013", "\u2019s"]

_INVISIBLE = "\u00a0 \u00ad \u034f \u061c \u180e \u200b \u200c \u200d \u200e \u2028 \u202f \u2060"
_LONG = [254, 255, 256, 300, 510, 511, 1000]
_BEYOND = "\U0001d49c"  # a letter of two UTF-16 units
# A character or more of every word-break class, and endings that the stemmer cuts.
_CLASSES = (
  "a1'.,:_\"#\u0301\u200d\ufe0f\u00ad\u05d0\u30ab\u304b\u6f22\ud55c\u0e44"
  "\U0001f600\U0001f3fd\U0001f1fa"
)
_PIECES = [
  *_CLASSES,
  *"bs2\u2019\uff07;- \n\u00b7\u05d1\u0e19\u00e9\u00df\u0130\u2177\u00bd\u00b2\u0663\u00a9\u2764",
  *"\U0001f44d\U0001f1f8",
  *"\u200c\u20e3\u094d\u30fc\uff9e\ufeff\u2060\u2024\uff0e\u180e\u00a0",
  *("ing", "ed", "ies", "ational", "logi", "bli"),
]


def odd() -> list[str]:
  """Texts that a word splitter, a lower-caser or a stemmer may get wrong."""
  texts = ["", " ", "\t\r\n", "the\nof and", "title\r\ntext", *_LINES]
  texts += [word for line in _LINES for word in line.split(" ")]
  texts += [f"left{mark}right{mark} {mark}s" for mark in _INVISIBLE.split(" ")]
  for unit, length in itertools.product("x\u00e91\u65e5\u30ab\u0e01", _LONG[:4]):
    texts.append(unit * length)
  texts += ["x" * length + "'s running" for length in _LONG]
  texts += [
    "x" * 254 + _BEYOND + "y",
    "a.b" * 120,
    "1," * 200 + "1",
    "_" * 300 + "a",
    _BEYOND * 130,
    "." * 300,
  ]
  rng = random.Random(7)
  for length in (2, 3, 4, 6, 9, 14, 25):
    texts += ["".join(rng.choice(_PIECES) for _ in range(length)) for _ in range(80)]
  texts += ["".join(pair) for pair in itertools.product(_CLASSES, repeat=2)]
  texts += ["".join(rng.choice(_CLASSES) for _ in range(3)) for _ in range(600)]
  return list(dict.fromkeys(texts))


def small() -> tuple[list[tuple[str, str]], list[str]]:
  """200 passages as (title, text) and 100 queries, of invented word salad."""
  rng = random.Random(3)
  lengths = [1, 1, 2, 3, 5, 8] + [int(2.718 ** rng.uniform(1.5, 6.0)) for _ in range(174)]
  passages = [("", _salad(rng, length)) for length in lengths]
  passages += [("", text) for text in ("the of and", "?!", "it is not.", "--- ...", "A")]
  passages += [("", "river " * 300), ("", "the river " * 40), ("", "copying copied copies copy")]
  passages += [("Biology", "the of"), ("The", "river"), ("River Stone", _salad(rng, 60))]
  passages += [("Moon", _salad(rng, length)) for length in (10, 40, 41, 80)]
  passages += [passages[n] for n in (3, 30, 30, 60, 182)]  # equal passages: ties
  rng.shuffle(passages)
  queries = ["", "the of and", "zyzzyva qwrtp", "zyzzyva river", "river", "RIVER river's Rivers"]
  queries += [
    "river river river stone",
    "moon " * 50 + "sun",
    "1492",
    "copy",
    "biologies",
    "\u6771 \u4eac",
    "\U0001f600 \u00a9",
  ]
  queries += [rng.choice(_WORDS) for _ in range(17)]
  queries += [_salad(rng, length) for length in [2, 3, 5, 8, 13, 20, 40] * 8]
  queries += [_salad(rng, length) for length in (60, 80, 100, 150, 200, 250, 300)]
  queries += [passages[n][1] for n in range(0, 70, 10)]
  return passages, queries


def _salad(rng: random.Random, length: int) -> str:
  words = []
  for _ in range(length):
    word = rng.choice(
      _STOP if rng.random() < 0.35 else _WORDS[: 1 + int(rng.random() ** 2 * len(_WORDS))]
    )
    word = word.capitalize() if rng.random() < 0.1 else word
    words.append(word + (rng.choice(_MARKS) if rng.random() < 0.12 else ""))
  return " ".join(words)
