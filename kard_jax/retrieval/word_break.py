"""Where words begin and end: Unicode's rules (UAX #29) as Lucene's StandardTokenizer has them.

Each character has a class (`word_break.txt`: Unicode 12.1, as Lucene 9 shows it; kept as a file of
our own because an index must find the same words for as long as it lives, whatever the installed
libraries know of newer characters). A word is the longest stretch that one of these rules allows:

* letters, digits, Katakana (not next to letters) and what joins them: `_` joins all, a full stop or
  an apostrophe two letters or two digits, a colon two letters, a comma two digits;
* one ideograph or Hiragana; a run of Thai, Lao, Khmer or Burmese; an emoji sequence; a flag.

Marks and format characters stay with what they follow. All else lies between words. Lucene reads
255 UTF-16 units at a time, so a longer word is cut there. This module is the reference;
`native/words.c` does the same many times faster.
"""

from __future__ import annotations

import enum
import functools
import importlib.resources
import re

import numpy as np

LONGEST = 255  # UTF-16 units of one word


class Class(enum.IntEnum):
  """What a character is to the rules. `native/words.c` has the same numbers."""

  OTHER = 0
  ALETTER = 1
  NUMERIC = 2
  EXTENDNUMLET = 3
  SINGLE_QUOTE = 4
  DOUBLE_QUOTE = 5
  MIDLETTER = 6
  MIDNUM = 7
  MIDNUMLET = 8
  HEBREW_LETTER = 9
  KATAKANA = 10
  ALONE = 11  # ideographs and Hiragana: each a word
  SOUTHEAST_ASIAN = 12
  REGIONAL_INDICATOR = 13  # two of them make a flag
  PICTOGRAPH = 14
  PICTOGRAPH_LETTER = 15  # a letter and an emoji, such as U+2139
  KEYCAP_BASE = 16  # "#" and "*", words only under a keycap
  # From here on: what stays with the character before.
  EXTEND = 17
  SOUTHEAST_ASIAN_EXTEND = 18  # may also begin a word
  ZWJ = 19
  MODIFIER = 20  # the skin tones
  TAG = 21
  TAG_END = 22
  KEYCAP = 23
  TEXT_STYLE = 24
  EMOJI_STYLE = 25


# A text is matched as a string of one letter a character: its class, in the enumeration's order.
_LETTERS = "oA1_'\":,.HKWSRPI#eszMTtkvF"


@functools.cache
def class_table() -> np.ndarray:
  """The class of each code point: uint8 [0x110000], not to be written to."""
  table = np.zeros(0x110000, np.uint8)
  data = importlib.resources.files(__package__).joinpath("word_break.txt")
  for line in data.read_text(encoding="ascii").splitlines():
    if not line.startswith("#"):
      span, name = line.split()
      first, last = span.split("..")
      table[int(first, 16) : int(last, 16) + 1] = Class[name.upper()]
  table.flags.writeable = False
  return table


def words(text: str) -> list[str]:
  """The words of a text, in order, as they stand there."""
  classes = text.translate(_letters())  # a str is itself a table from numbers to letters
  rule, emoji, start = _rules()
  found = []
  at = 0
  while first := start.search(classes, at):
    at = first.start()
    end = _longest(rule, text, classes, at)
    if classes[at] == "I":
      end = max(end, _longest(emoji, text, classes, at))
    if end > at:
      found.append(text[at:end])
      at = end
    else:
      at += 1
  return found


def _longest(rule: re.Pattern[str], text: str, classes: str, at: int) -> int:
  """Where the word that begins at `at` ends; `at` itself if none does."""
  match = rule.match(classes, at, at + LONGEST)
  if match and len(text[at : match.end()].encode("utf-16-le")) > 2 * LONGEST:
    units = LONGEST  # Characters past U+FFFF take two.
    end = at
    while (units := units - (2 if text[end] > "\uffff" else 1)) >= 0:
      end += 1
    match = rule.match(classes, at, end)
  return match.end() if match else at


@functools.cache
def _letters() -> str:
  """The class letter of each code point."""
  return np.frombuffer(_LETTERS.encode(), np.uint8)[class_table()].tobytes().decode()


@functools.cache
def _rules() -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str]]:
  """A word of any kind; an emoji; a character that may begin a word. All over class letters."""
  # `re` takes the first alternative that fits, not the longest, so they are written such that the
  # two are the same: which one applies shows at its next character, or the longer one stands first.
  extend = "[eszMTtkvF]*"
  joiner = f"(?:_{extend})"
  # After a joining mark a Hebrew letter has no quotation mark of its own, hence the nested runs.
  letters = f"(?:[:.']{extend}[AIH]{extend})"
  letter = f"[AI]++{extend}{letters}*"
  hebrew = f"H{extend}(?:'{extend}|\"{extend}H{extend}|{letters}+)?"
  number = f"1++{extend}(?:[,.']{extend}1{extend})*"
  group = f"(?:(?:K{extend})+|(?:{letter}|{hebrew}|{number})+)"
  word = f"{joiner}*{group}(?:{joiner}+{group})*{joiner}*"
  alone = f"W{extend}"
  southeast_asian = f"(?:[Ss]{extend})+"
  flag = f"R{extend}R{extend}"

  # Two styles (v, F) are no marks here; a joiner (z) right before a pictograph takes it in.
  mark = "[eszMTtk]*"
  picture = "[PI](?:[esMTtk]|z[PI]?)*"
  tone = f"M{mark}(?:(?<=z){picture}F?)?"  # a skin tone takes no style
  tagged = f"z*[PI]{mark}FT+t"  # without a style the tags are marks
  emoji = f"{tagged}|(?:z*{picture}F?|{tone})(?:z+{picture}F?|z{tone})*"
  keycap = f"#{mark}F?k{mark}"
  rule = re.compile("|".join([word, alone, southeast_asian, flag, keycap, emoji]))
  return rule, re.compile(emoji), re.compile("[AIH1K_WSsRPzM#]")
