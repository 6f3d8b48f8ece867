"""Text to terms: the same words of question, rationale and passage meet as the same terms.

The English kind follows Lucene's English analyzer, which the paper's BM25 uses by way of Pyserini:
lower-case, no possessive 's, no stop words, Porter stems.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import threading
import unicodedata
from collections.abc import Iterable
from typing import Any

import Stemmer

from kard_jax.core import files

KINDS = ("english", "whitespace")

# Lucene's English stop words.
_STOP = (
  "a an and are as at be but by for if in into is it no not of on or such that the their then there"
  " these they this to was will with"
)
STOP_WORDS = frozenset(_STOP.split())

_APOSTROPHES = "'\u2019\uff07"  # typewriter's, printer's, full-width
_CACHED_WORDS = 1 << 20  # bounds memory on a corpus with endless odd words
_LOCK = threading.Lock()  # PyStemmer's object is not safe to share between threads


@dataclasses.dataclass(frozen=True)
class Analyzer:
  """Splits text into terms.

  Attributes:
    kind: "english", or "whitespace" (split at white space, nothing else).
  """

  kind: str = "english"

  def __post_init__(self) -> None:
    if self.kind not in KINDS:
      raise files.InputError(f"analyzer: the kind is one of {', '.join(KINDS)}, not {self.kind!r}")

  def __call__(self, text: str) -> list[str]:
    """The terms of a text, in order, repeated as often as they occur."""
    if self.kind == "whitespace":
      return text.split()
    words = _word().findall(text.lower().replace("_", " "))
    return [term for word in words if (term := _english(word))]

  def batch(self, texts: Iterable[str]) -> list[list[str]]:
    """The terms of each text."""
    return [self(text) for text in texts]

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
  """The term of one lower-case word; empty for a stop word."""
  if len(word) > 1 and word[-1] == "s" and word[-2] in _APOSTROPHES:
    word = word[:-2]
  if word in STOP_WORDS:
    return ""
  if len(word) <= 2:  # Lucene's stemmer leaves these as they are; Snowball's cuts "as" to "a"
    return word
  with _LOCK:
    return _stemmer().stemWord(word)


@functools.cache
def _stemmer() -> Stemmer.Stemmer:
  return Stemmer.Stemmer("porter", 0)  # no cache of its own: `_english` is the cache


@functools.cache
def _word() -> re.Pattern[str]:
  """Letters and digits of any script with their combining marks; apostrophes stay inside words."""
  # Characters beyond 1 << 16 would make the class slow: `re` then tries range after range.
  marks = "".join(char for char in map(chr, range(1 << 16)) if unicodedata.category(char)[0] == "M")
  letter = f"[\\w{marks}]"  # \w alone cuts Hindi words at their vowel signs
  return re.compile(f"{letter}+(?:[{_APOSTROPHES}]{letter}+)*")
