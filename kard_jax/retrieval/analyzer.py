"""Text to terms: the same words of question, rationale and passage meet as the same terms.

The English kind gives the terms of Lucene's English analyzer, which the paper's BM25 uses by way of
Pyserini: Unicode words, no possessive 's, lower case, no stop words, Porter stems.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import Stemmer

from kard_jax.core import files
from kard_jax.retrieval import vocabulary, word_break

KINDS = ("english", "unicode", "whitespace")

# Lucene's English stop words.
_STOP = (
  "a an and are as at be but by for if in into is it no not of on or such that the their then there"
  " these they this to was will with"
)
STOP_WORDS = frozenset(_STOP.split())

_APOSTROPHES = "'\u2019\uff07"  # typewriter's, printer's, full-width
_CACHED_WORDS = 1 << 16  # enough for queries; a corpus brings each word once
_OWN = threading.local()  # PyStemmer's object is not safe to share between threads


@dataclasses.dataclass(frozen=True)
class Analyzer:
  """Splits text into terms.

  Attributes:
    kind: "english"; "unicode" (words in lower case, for other languages); or "whitespace" (split at
      white space, nothing else).
  """

  kind: str = "english"

  def __post_init__(self) -> None:
    if self.kind not in KINDS:
      raise files.InputError(f"analyzer: the kind is one of {', '.join(KINDS)}, not {self.kind!r}")

  def __call__(self, text: str) -> list[str]:
    """The terms of a text, in order, repeated as often as they occur."""
    return [term for word in self.words(text) if (term := self.term(word))]

  def words(self, text: str) -> list[str]:
    """The words of a text as they stand there: what `term` is to be called on."""
    return text.split() if self.kind == "whitespace" else word_break.words(text)

  def term(self, word: str) -> str:
    """The term of one word; empty if it has none (a stop word)."""
    if self.kind == "whitespace":
      return word
    return _english(word) if self.kind == "english" else _lower(word)

  def terms(self, words: Sequence[str]) -> list[str]:
    """`term` of each of many words, several times faster than one by one."""
    if self.kind != "english":
      return [self.term(word) for word in words]
    # Of plain words most need nothing but lower case and Snowball's stemmer.
    lower = [word.lower() for word in words]
    plain = [
      len(word) > 2 and word[-1] not in "dgsyi" and word.isascii() and word not in STOP_WORDS
      for word in lower
    ]
    stems = iter(_stemmer().stemWords(list(itertools.compress(lower, plain))))
    return [
      next(stems) if is_plain else _english(word)
      for word, is_plain in zip(words, plain, strict=True)
    ]

  def table(self) -> vocabulary.Words:
    """An empty table of this kind's words, to cut many texts at once."""
    return vocabulary.Words(white_space=self.kind == "whitespace")

  def batch(self, texts: Iterable[str]) -> list[list[str]]:
    """The terms of each text."""
    table = self.table()
    ids, ends = table.cut(list(texts))
    terms = self.terms(table.new_words(0))
    found = []
    start = 0
    for end in ends.tolist():
      found.append([term for word in ids[start:end].tolist() if (term := terms[word])])
      start = end
    return found

  def to_json(self) -> dict[str, Any]:
    """The settings, as JSON values."""
    return dataclasses.asdict(self)

  @classmethod
  def from_json(cls, value: dict[str, Any]) -> Analyzer:
    """The analyzer of these settings.

    Raises:
      InputError: they are none that this code knows.
    """
    try:
      return cls(**value)
    except TypeError:
      raise files.InputError(f"analyzer: unknown settings {value!r}") from None


@functools.lru_cache(_CACHED_WORDS)
def _english(word: str) -> str:
  """The term of one word; empty for a stop word."""
  if len(word) > 1 and word[-1] in "sS" and word[-2] in _APOSTROPHES:
    word = word[:-2]
  word = _lower(word)
  return "" if word in STOP_WORDS else _stem(word)


def _lower(word: str) -> str:
  """Lower case as Java has it: character by character, and one character for one."""
  if not word.isascii():
    # Python also looks at a sigma's neighbours and keeps the dot of U+0130 as a mark of its own.
    word = word.replace("\u0130", "i").replace("\u03a3", "\u03c3")
  return word.lower()


def _stem(word: str) -> str:
  """Lucene's Porter stem of a lower-case word.

  Snowball's stemmer differs from it in a few ways. Each is met by giving it another word, one at
  which Lucene's arrives on its way and from which both go on alike.
  """
  if not word.isascii() and max(word) > "\uffff":
    # Java counts UTF-16 units: a letter past U+FFFF is two. Stand-ins are of no word, so are free.
    return _HALVES.sub(_joined, _stem(_WIDE.sub(_halves, word)))
  if len(word) <= 2:  # left alone; Snowball's cuts "as" to "a"
    return word
  if word[-1] in "dgsyi":  # so end all words that the two patterns know
    # Before -ed and -ing Lucene halves every double consonant but l, s and z ("trekking"), Snowball
    # those of English words only.
    if (match := _DOUBLED.fullmatch(word)) and _VOWEL.search(match[1]):
      word = match[1]
    # Lucene has the suffixes -bli ("possibly" as "possible") and -logi ("sociology" as
    # "sociological"), Snowball -abli alone.
    if (match := _SUFFIXED.fullmatch(word)) and _SYLLABLE.search(match[1]):
      word = match[1] + ("ble" if match[2] == "bl" else "log")
  return _stemmer().stemWord(word)


def _stemmer() -> Stemmer.Stemmer:
  """This thread's own."""
  try:
    return _OWN.stemmer
  except AttributeError:
    _OWN.stemmer = Stemmer.Stemmer("porter", 0)  # no cache: `_english` has one
    return _OWN.stemmer


# A y is a consonant at the beginning and after a vowel, so y's in a row are by turns the one and
# the other, and two of them are a double consonant only if the last is one.
_DOUBLED = re.compile(
  r"(.*(?:(?P<twin>[^aeioubdfgmnprtlszy])(?=(?P=twin)(?:ed|ing)s?)"
  r"|(?:(?:^|[aeiou])yy|[^aeiouy]y)(?:yy)*(?=y(?:ed|ing)s?))).(?:ed|ing)s?"
)
_VOWEL = re.compile("[aeiou]|[^aeiou]y")
_SUFFIXED = re.compile("(.*)(bl|log)(?:[iy](?:s|(?:ed|ing)s?)?|ies)")
_SYLLABLE = re.compile("[aeiou][^aeiou]|[^aeiouy]y[^aeiou]|^yy[^aeiou]")  # a vowel, a consonant

_WIDE = re.compile("[\U00010000-\U0010ffff]")
_HALVES = re.compile("([\ue000-\ue3ff])([\ue400-\ue7ff])")


def _halves(match: re.Match[str]) -> str:
  high, low = divmod(ord(match[0]) - 0x10000, 0x400)
  return chr(0xE000 + high) + chr(0xE400 + low)


def _joined(match: re.Match[str]) -> str:
  return chr(0x10000 + (ord(match[1]) - 0xE000 << 10) + ord(match[2]) - 0xE400)
