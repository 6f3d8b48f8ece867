"""Synthetic passages and queries whose words are as unevenly frequent as those of a language.

A word is a stop word with probability `STOP_SHARE`, else a pseudo-word of rank 1 to `VOCABULARY`
with probability in proportion to 1 / (rank + SHIFT) (Zipf and Mandelbrot's law). With the constants
here a query of 39 terms touches about 110,000 postings among 200,000 passages. NumPy only, and all
of it follows from a seed: passages come in blocks, each with a generator of its own, so they are
the same however many are wanted.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

VOCABULARY = 500_000
SHIFT = 68.0
STOP_SHARE = 0.22
WORDS = (60, 140)  # in a passage, least and most

_BLOCK = 10_000  # passages of one random generator
_SENTENCE = 20  # words
_STOP_WORDS = (
  "the of and to in a is that for it was as with be by on not at are this or an but if they will"
  " into no then their there such these"
)
_STOPS = len(_STOP_WORDS.split())
_ONSETS = "b c d f g h j k l m n p r s t v w z br cr dr fr gr pl pr sh sl sp st tr"
_SYLLABLES = [onset + vowel for onset in _ONSETS.split() for vowel in "aeiou"]
_CODAS = ("", "n", "r", "l", "t", "m", "x", "rd", "nk", "sk")  # no "s", "ed", "ing": few stems meet


def write(folder: Path, passages: int, *, seed: int, parts: int) -> list[Path]:
  """Writes `part-00000.jsonl` and so on: BEIR's layout, ids that sort as the passages stand.

  Args:
    folder: to write into; made if it is not there.
    passages: how many, all parts together.
    seed: of the whole.
    parts: how many files (some indexers take one file a thread).
  """
  folder.mkdir(parents=True, exist_ok=True)
  paths = [folder / f"part-{part:05d}.jsonl" for part in range(parts)]
  size = -(-passages // parts)
  with contextlib.ExitStack() as stack:
    out = [stack.enter_context(path.open("wb", buffering=1 << 20)) for path in paths]
    for number, text in enumerate(texts(passages, seed=seed)):
      out[number // size].write(b'{"_id":"%010d","title":"","text":"%b"}\n' % (number, text))
  return paths


def texts(passages: int, *, seed: int) -> Iterator[bytes]:
  """The texts of passages, in order; ASCII, no quotes."""
  words = _words()
  for start in range(0, passages, _BLOCK):
    random = np.random.default_rng([seed, 0, start // _BLOCK])
    # A whole block is drawn even if less is wanted, so that its beginning does not depend on that.
    lengths = random.integers(WORDS[0], WORDS[1] + 1, _BLOCK)
    drawn = [words[index] for index in _draw(random, int(lengths.sum())).tolist()]
    end = 0
    for length in lengths[: passages - start].tolist():
      begin, end = end, end + length
      sentences = (drawn[at : min(at + _SENTENCE, end)] for at in range(begin, end, _SENTENCE))
      yield b". ".join([b" ".join(sentence).capitalize() for sentence in sentences]) + b"."


def queries(count: int, terms: int, *, seed: int) -> list[str]:
  """Queries of `terms` terms each on average, stop words besides."""
  words = _words()
  random = np.random.default_rng([seed, 1])
  made = []
  for content in random.poisson(terms, count).tolist():
    drawn = _draw(random, int(max(1, content) / (1 - STOP_SHARE) + random.random()))
    made.append(b" ".join(words[index] for index in drawn.tolist()).decode())
  return made


def _draw(random: np.random.Generator, count: int) -> np.ndarray:
  """Indices into `_words`."""
  # The law's distribution function turned round, where the rank is taken for continuous.
  spread = np.log((VOCABULARY + SHIFT) / SHIFT)
  ranks = (SHIFT * np.expm1(random.random(count) * spread)).astype(np.int64)
  stop = random.random(count) < STOP_SHARE
  inner = np.expm1(random.random(int(stop.sum())) * np.log1p(_STOPS))
  ranks = np.minimum(ranks, VOCABULARY - 1) + _STOPS
  ranks[stop] = np.minimum(inner.astype(np.int64), _STOPS - 1)
  return ranks


@functools.cache
def _words() -> list[bytes]:
  """Stop words, then pseudo-words: two syllables for the most frequent, three or more later."""
  made, base = [], len(_SYLLABLES)
  for rank in range(VOCABULARY):
    # Multiplied by a number without common factors, so that neighbours in rank do not look alike.
    coda, left = rank % len(_CODAS), rank // len(_CODAS)
    length = 2 if left < base**2 else 3
    left = left * 7919 % base**length
    word = _CODAS[coda]
    for _ in range(length):
      left, syllable = divmod(left, base)
      word = _SYLLABLES[syllable] + word
    made.append(word.encode())
  return [word.encode() for word in _STOP_WORDS.split()] + made
