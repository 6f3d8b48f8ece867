"""The parser of answers: which option a text states, and the rationale before that statement.

Students, teachers, judges and metrics all read answers with it, so they cannot disagree.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from kard_jax.questions import LETTERS


@dataclasses.dataclass(frozen=True)
class Parsed:
  """What a model wrote: the reasoning, and the position of the option it names (None: unparsed)."""

  rationale: str
  answer: int | None


def parse(text: str, options: Sequence[str], statement: str, next_question: str = "") -> Parsed:
  """Splits what a model wrote into rationale and answer.

  The last explicit statement of an answer counts: "Answer: B", "the answer is (B)", "option B is
  correct", "we choose (B)"; the option may be named by its letter or, exactly, by its text. A
  statement that names two options, or a letter beyond the options, leaves the text unparsed; a
  letter anywhere else ("cell A") is no statement.

  Args:
    text: a student's output or a teacher's completion; any string.
    options: the texts of the question's options.
    statement: what stands before the letter where an answer is stated in form, such as "Answer:".
    next_question: what a question among several begins with, such as "Question:": where a model
      goes on to one after its answer, that is its own and does not count. "" looks for none.

  Returns:
    the rationale, which is the text before the statement in form that counts (all of the text
    where the answer is stated in prose), stripped; and the option's position, or None.
  """
  written, text = text, text.translate(_NARROW)  # as long, so that places are the same
  opening = _opening(statement.translate(_NARROW))
  options = tuple(option.translate(_NARROW) for option in options)
  if next_question:
    text = _until(text, opening, _opening(next_question.translate(_NARROW)), options)
    written = written[: len(text)]
  formal = [
    _Claim(match.end(), match.start(), vote.answer)
    for match in opening.finditer(text)
    if (vote := _vote(text, match.end(), options))
  ]
  claims = formal + list(_prose_claims(text, options))
  if claims:
    last = max(claims, key=lambda claim: claim.at)
    return Parsed(written[: last.start].strip(), last.answer)
  # Nothing is stated. All of it may be one option, as models without a rationale write.
  whole = _vote(text, 0, options)
  if whole and not text[whole.end :].strip(" \t\n.)]*\"'"):
    return Parsed("", whole.answer)
  # A marker that ends the text was cut short: it is not part of the rationale.
  cut = re.search(opening.pattern + r"\W*$", text, opening.flags)
  return Parsed(written[: cut.start() if cut else None].strip(), None)


def _until(
  text: str, opening: re.Pattern[str], question: re.Pattern[str], options: tuple[str, ...]
) -> str:
  """The text up to another question that follows an answer."""
  following = re.compile(_CLOSING + question.pattern, re.IGNORECASE)
  for at in (0, *(match.end() for match in opening.finditer(text))):
    vote = _vote(text, at, options)
    if vote and following.match(text, vote.end):
      return text[: vote.end]
  return text


# Punctuation, letters and digits that are as wide as a Chinese character, and other scripts' stops.
_NARROW = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {
  ord(wide): narrow
  for wide, narrow in zip("\u3002\u3001\u060c\u061b\u0964\u3000", ".,,;. ", strict=True)
}
_CLOSING = (
  r"[\s.)\]}$*_#\"'\u2019\u201d-]*"  # what may stand between an answer and the next question
)


class _Claim(NamedTuple):
  """A statement of an answer: claims are ordered by where they stand."""

  at: int  # where the option is named
  start: int | None  # where the marker stands that ends the rationale; None in prose
  answer: int | None  # None: names two options, or one that does not exist


class _Item(NamedTuple):
  """One naming of an option: `end` is where it stops."""

  end: int
  answer: int | None


# What may stand between "Answer:" and the option: quotes, markdown, LaTeX, words that add nothing.
_QUOTES = r"[\s*_`\"'\u201c\u201d\u2018\u2019$\\{]*"
_LEAD = re.compile(
  rf"{_QUOTES}(?:(?:the|correct|most|likely|option|choice|letter|answer|is|boxed|text)\b"
  rf"[:\s]*{_QUOTES}){{0,8}}",
  re.IGNORECASE,
)
_QUOTED = re.compile(_QUOTES)
_ARTICLE = re.compile(rf"{_QUOTES}(?:(?:an?|the)\s+)?", re.IGNORECASE)
# What may follow an option: the end, punctuation that ends a word, or words that begin a reason.
# Before anything else the letter or text is part of a longer phrase ("A metal", "iron ore").
_AFTER = (
  r"(?=\s*$|[ \t]*\n|\s*[.,;:!?)\]}*\"'\u2019\u201d$_`]+(?:\s|$)|[*_`\"'\u2019\u201d$}]+[.,;:!?]"
  r"|\s*[/&(\u2013\u2014]|\s*-\s|\s+(?i:because|since|as|due|which|so|therefore|for|but|or|and"
  r"|explanation|reason|answer|question)\b)"
)
# The last one is "Answer: B The metal ...": a sentence may follow, except after A and I, two words.
_LETTER = re.compile(
  rf"\(\s*([A-Za-z])\s*\)|\[\s*([A-Za-z])\s*\]|([A-Za-z]){_AFTER}|([B-HJ-Z])(?=\s+[A-Z])"
)
_JOIN = re.compile(
  r"\s*(?:(?:,\s*)?\b(?:or|and)\b|[,/&])\s*|[\s).:*\"'\u2013\u2014-]*", re.IGNORECASE
)
_SUBJECT = re.compile(r"\s+(?:is|are|was|would|does|has|can|cannot)\b", re.IGNORECASE)

# "The correct answer to this, therefore, is most likely (B)"
_COPULA = re.compile(r"\b(?:is|was|be|remains)(?=\W)", re.IGNORECASE)
_ADVERBS = re.compile(
  r"(?:[\s,]*\b(?:therefore|thus|then|still|also|actually|clearly|simply|indeed|probably|"
  r"(?:most\s+)?likely)\b)*[\s,:]*",
  re.IGNORECASE,
)
_ANSWER_WORD = re.compile(
  r"\b(?:answer|(?:correct|right|best|only|appropriate|likely|suitable)\s+(?:option|choice))\b",
  re.IGNORECASE,
)
_DENIAL = re.compile(
  r"\b(?:not|cannot|never|unlikely|incorrect|wrong|if|whether)\b|n't\b", re.IGNORECASE
)
_SENTENCE_END = re.compile(r"[.?!;]\s|\n")
_CLAUSE = re.compile(r",|\b(?:and|then|so)\b", re.IGNORECASE)
# "Option (B), tin, is therefore the correct answer", "making (B) the best choice"
_NAMED = r"(?:\b(?i:option|choice|answer)\s+([A-Z])\b|\(([A-Z])\))([^.?!\n()]{0,100}?)"
_RIGHT = (
  r"(?:the\s+)?(?:(?:only|most\s+likely)\s+)?"
  r"(?:(?:correct|right)\b(?!\s+(?:in|that)\b)|(?:best|most\s+\w+)\s+(?:answer|option|choice)\b)"
)
_REVERSE = (
  re.compile(
    rf"{_NAMED}\b(?:is|must\s+be|would\s+be|should\s+be)\s+"
    rf"(?:(?:therefore|thus|clearly|likely|indeed)\s+)?{_RIGHT}"
  ),
  re.compile(rf"\bmak(?:es|ing)\s+(?:\w+\s+){{0,3}}?{_NAMED}\s*\b{_RIGHT}"),
)


# "We choose answer (A) as the correct option", "which leaves us with (A)", "making the answer (B)".
# Only letters, as options or in brackets: rationales tell of people who choose iron, too.
_CHOICE = re.compile(
  r"\b(?:choos(?:e|ing)|select(?:ing)?|pick(?:ing)?|go(?:ing)?\s+with|leav(?:es?|ing)"
  r"|answer(?:ing)?\s+th(?:e|is)\s+question"
  r"|mak(?:es|ing)\s+the(?:\s+\w+)?\s+answer(?:\s+to\s+th(?:e|is)\s+question)?"
  r"|equivalent|corresponds)"
  r"(?:\s+(?:us|you|only|just|with|as|to|the|correct|right|best|remaining)\b){0,6}"
  r"\s+(?:(?:answer|option|choice)\s+(?:choice\s+)?(?=\(?[A-Z]\b)|(?=\([A-Z]\)))",
  re.IGNORECASE,
)
_DOUBT = re.compile(rf"{_DENIAL.pattern}|\b(?:may|might|could|would|to)\s+$", re.IGNORECASE)


@functools.lru_cache(maxsize=64)
def _opening(marker: str) -> re.Pattern[str]:
  """Finds the marker in any case, however its words are spaced; SentencePiece makes one line."""
  words = [re.escape(word) for word in re.findall(r"\w+|[^\w\s]", marker)]
  return re.compile(r"(?:[*_#`]{1,4}|(?<!\w))" + r"\s*".join(words), re.IGNORECASE)


@functools.lru_cache(maxsize=4096)
def _option_pattern(text: str) -> re.Pattern[str]:
  words = (text.strip().rstrip(".;,") or text).split()
  return re.compile(r"\s+".join(map(re.escape, words)) + _AFTER, re.IGNORECASE)


def _vote(text: str, at: int, options: tuple[str, ...]) -> _Item | None:
  """The option named at a place in the text, and there only; None where none is named."""
  first = _item(text, at, options)
  if first is None:
    return None
  join = _end(_JOIN, text, first.end)
  second = _item(text, join, options)
  if second and second.answer == first.answer:  # "(B) tin" names it twice
    return second
  if _SENTENCE_END.search(text, first.end, join):  # "(B). Iron is ...": another sentence
    return first
  if second and not _SUBJECT.match(text, second.end):
    return _Item(second.end, None)
  return first


def _item(text: str, at: int, options: tuple[str, ...]) -> _Item | None:
  """The longest naming of one option at a place: a letter, or the exact text of an option."""
  start = _end(_LEAD, text, at)
  letter: _Item | None = None
  if match := _LETTER.match(text, start):
    index = LETTERS.index(next(filter(None, match.groups())).upper())
    letter = _Item(match.end(), index if index < len(options) else None)
  starts = {start, _end(_QUOTED, text, at), _end(_ARTICLE, text, at)}
  named = {
    (match.end() - place, match.end(), index)
    for index, option in enumerate(options)
    for place in starts
    if (match := _option_pattern(option).match(text, place))
  }
  length, end, _ = max(named, default=(0, -1, -1))
  if letter and letter.end >= end:
    return letter
  answers = {index for size, _, index in named if size == length}
  if len(answers) > 1:  # two options have this text
    return _Item(end, None)
  return _Item(end, answers.pop()) if answers else None


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
  match = pattern.match(text, at)
  return match.end() if match else at


def _prose_claims(text: str, options: tuple[str, ...]) -> Iterator[_Claim]:
  """Statements in running text: "the correct answer is (B)", "option B is correct"."""
  for match in _COPULA.finditer(text):
    before = _SENTENCE_END.split(text[max(0, match.start() - 120) : match.start()])[-1]
    words = list(_ANSWER_WORD.finditer(before))
    if not words or _DENIAL.search(_CLAUSE.split(before[: words[-1].start()])[-1]):
      continue
    if _DENIAL.search(before, words[-1].end()):
      continue
    at = _end(_ADVERBS, text, match.end())
    if vote := _vote(text, at, options):
      yield _Claim(at, None, vote.answer)
  for pattern in _REVERSE:
    for match in pattern.finditer(text):
      if not _DENIAL.search(match[3]):
        index = LETTERS.index(match[1] or match[2])
        yield _Claim(match.start(), None, index if index < len(options) else None)
  for match in _CHOICE.finditer(text):
    before = _SENTENCE_END.split(text[max(0, match.start() - 120) : match.start()])[-1]
    if not _DOUBT.search(_CLAUSE.split(before)[-1]) and (vote := _vote(text, match.end(), options)):
      yield _Claim(match.end(), None, vote.answer)
