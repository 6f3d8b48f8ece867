"""Every string that a model reads or writes, and the parser of answers (paper, sections 3.1-3.4).

Training and answering build their text with the same object, so they cannot differ; students,
teachers and metrics read answers with the same parser, so they cannot disagree.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from kard_jax.exemplars import Exemplar, before
from kard_jax.questions import LETTERS, Question


@runtime_checkable
class PassageLike(Protocol):
  """What a prompt needs of a passage."""

  @property
  def title(self) -> str:
    """What the passage is about; may be empty."""
    ...

  @property
  def text(self) -> str:
    """What it says."""
    ...


@dataclasses.dataclass(frozen=True)
class Parsed:
  """What a model wrote: the reasoning, and the position of the option it names (None: unparsed)."""

  rationale: str
  answer: int | None


@dataclasses.dataclass(frozen=True)
class Prompts:
  """The templates, one set for a dataset, as `str.format` takes them.

  Attributes:
    option: one option: `{letter}`, `{text}`.
    question: stem and options, for a student or teacher: `{question}`, `{options}`.
    query: stem and options, for a retriever or reranker: the same, the options without letters.
    knowledge: what the passages of a student's prompt stand in: `{passages}`.
    titled: a passage that has a title: `{title}`, `{text}`.
    separator: what stands between what is read and what is written where both are one text, as for
      a decoder-only student.
    answer: how an answer is stated: ends in `{letter}`, and what stands before is what the parser
      looks for. A rationale stands on the line before.
    example: a question among several of a prompt: `{question}`. What it begins with also tells the
      parser where a model goes on to questions that it makes up.
    explanation: a rationale that a teacher wrote or shall write: `{rationale}`.
    request: what a teacher is told first: `{answer}`, a statement of an answer.
    told: how a teacher is told the gold answer: `{letter}`, `{text}`.
    verdict: a rationale as a judge reads it, and the letter that it shall find: ends in `{letter}`
      (the words are the official code's).
  """

  option: str = "({letter}) {text}"
  question: str = "{question}\nOptions: {options}"
  query: str = "{question} {options}"
  knowledge: str = "\nKnowledge: {passages}"
  titled: str = "{title}: {text}"
  separator: str = "\n"
  answer: str = "Answer: {letter}"
  example: str = "Question: {question}"
  explanation: str = "Explanation: {rationale}"
  request: str = (
    "Explain the answer to a multiple-choice question: state the facts that decide it, and reason "
    "from them, step by step and in a few sentences, to the right option. Do not mention that the "
    "answer was given or that there were other questions. The last line names the option, in this "
    "form: {answer}"
  )
  told: str = "The right option is ({letter}) {text}"
  verdict: str = "{rationale} So, the answer is {letter}"

  def __post_init__(self) -> None:
    if not re.search(r"\w.*\{letter\}$", self.answer, re.DOTALL):
      raise ValueError(
        f"Prompts.answer must end in '{{letter}}' after a word, such as 'Answer: {{letter}}'; "
        f"it is {self.answer!r}"
      )

    if not self.verdict.endswith("{letter}") or "{rationale}" not in self.verdict:
      raise ValueError(
        f"Prompts.verdict must hold '{{rationale}}' and end in '{{letter}}'; it is {self.verdict!r}"
      )

  def question_text(self, q: Question) -> str:
    """The question with its lettered options."""
    options = (
      self.option.format(letter=letter, text=text)
      for letter, text in zip(LETTERS, q.options, strict=False)
    )
    return self.question.format(question=q.question, options=" ".join(options))

  def student_input(self, q: Question, passages: Sequence[PassageLike] = ()) -> str:
    """What the student reads: the question, then the passages, best first.

    The passages come last so that cutting a long prompt costs passages and never options.
    """
    text = self.question_text(q)
    if not passages:
      return text
    return text + self.knowledge.format(passages="\n".join(map(self.passage_text, passages)))

  def student_target(self, q: Question, rationale: str | None) -> str:
    """What the student learns to write: the rationale and the right answer, or that answer alone.

    Args:
      q: the question.
      rationale: a teacher's reasoning; None (or blank) trains on the answer alone.
    """
    answer = self.answer.format(letter=q.letter)
    rationale = (rationale or "").strip()
    return f"{rationale}\n{answer}" if rationale else answer

  def few_shot(
    self,
    q: Question,
    exemplars: Sequence[Exemplar],
    passages: Sequence[PassageLike] = (),
    *,
    rationales: bool,
  ) -> str:
    """What a model that was not trained for the task reads: solved examples, then the question.

    Questions and answers look as they do for a student, so `parse` reads what the model writes.

    Args:
      q: the question.
      exemplars: the examples, the last one nearest to the question. The question itself is passed
        over.
      passages: knowledge for the question, best first. With some, each example shows its own.
      rationales: whether the examples reason before they answer (chain of thought).

    Returns:
      a text that goes on with a rationale and its answer, or with the answer.
    """
    blocks = []
    for solved in before(q, exemplars):
      shown = [_Untitled(solved.passage)] if passages and solved.passage else []
      asked = self.example.format(question=self.student_input(solved.question, shown))
      target = self.student_target(solved.question, solved.rationale if rationales else None)
      blocks.append(asked + self.separator + target)
    asked = self.example.format(question=self.student_input(q, passages))
    return _BETWEEN.join([*blocks, asked + self.separator])

  def teacher(self, q: Question, exemplars: Sequence[Exemplar], *, gold: bool) -> str:
    """The request for a rationale: what is wanted, examples of it, and the question.

    Args:
      q: the question.
      exemplars: examples of rationales. The question itself is passed over.
      gold: whether the teacher is told the right option, as in the official code.

    Returns:
      a text that goes on with a rationale and a statement of the answer.
    """
    request = self.request.format(answer=self.answer.format(letter="X"))
    blocks = [
      self._asked(solved.question, gold)
      + self.explanation.format(rationale=self.student_target(solved.question, solved.rationale))
      for solved in before(q, exemplars)
    ]
    open_end = self._asked(q, gold) + self.explanation.format(rationale="").rstrip()
    return _BETWEEN.join([request, *blocks, open_end])

  def judge(self, q: Question, rationale: str, exemplars: Sequence[Exemplar]) -> str:
    """What a judge reads to find the option that a rationale leads to.

    Args:
      q: the question.
      rationale: a teacher's, without its statement of an answer.
      exemplars: examples, each with its verdict. The question itself is passed over.

    Returns:
      a text that goes on with the letter of an option and nothing before it, not even a space.
    """
    blocks = [
      self._asked(solved.question, False)
      + self.verdict.format(rationale=solved.rationale.strip(), letter=solved.question.letter)
      for solved in before(q, exemplars)
    ]
    open_end = self.verdict.format(rationale=rationale.strip(), letter="")
    return _BETWEEN.join([*blocks, self._asked(q, False) + open_end])

  def _asked(self, q: Question, gold: bool) -> str:
    """A question as teachers and judges read it, each part on lines of its own."""
    told = self.told.format(letter=q.letter, text=q.options[q.label]) + "\n" if gold else ""
    return self.example.format(question=self.question_text(q)) + "\n" + told

  def question_query(self, q: Question) -> str:
    """The query of BM25 by the question: the stem and the options, without letters."""
    return self.query.format(question=q.question, options="; ".join(q.options))

  def rationale_query(self, q: Question, rationale: str) -> str:
    """The query that finds silver passages: the rationale and the answer, as the official code."""
    return self.student_target(q, rationale)

  def reranker_query(self, q: Question) -> str:
    """What the reranker reads of a question: what BM25 does."""
    return self.question_query(q)

  def passage_text(self, passage: PassageLike) -> str:
    """A passage as students and rerankers read it: title and text, or the text alone."""
    if not passage.title:
      return passage.text
    return self.titled.format(title=passage.title, text=passage.text)

  def parse(self, text: str, options: Sequence[str]) -> Parsed:
    """Splits what a model wrote into rationale and answer.

    The last explicit statement of an answer counts: "Answer: B", "the answer is (B)", "option B is
    correct"; the option may be named by its letter or, exactly, by its text. A statement that names
    two options, or a letter beyond the options, leaves the text unparsed; a letter anywhere else
    ("cell A") is no statement.

    Args:
      text: a student's output or a teacher's completion; any string.
      options: the texts of the question's options.

    Returns:
      the rationale, which is the text before the "Answer:" that counts (all of the text where the
      answer is stated in prose), stripped; and the option's position, or None.
    """
    written, text = text, text.translate(_NARROW)  # as long, so that places are the same
    opening = _opening(self.answer.translate(_NARROW).removesuffix("{letter}").strip())
    options = tuple(option.translate(_NARROW) for option in options)
    text = self._until_next_question(text, opening, options)
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

  def _until_next_question(
    self, text: str, opening: re.Pattern[str], options: tuple[str, ...]
  ) -> str:
    """The text up to another question that follows an answer: a model's own, not what was asked."""
    marker = self.example.translate(_NARROW).partition("{question}")[0].strip()
    if not marker:
      return text
    next_question = re.compile(_CLOSING + _opening(marker).pattern, re.IGNORECASE)
    for at in (0, *(match.end() for match in opening.finditer(text))):
      vote = _vote(text, at, options)
      if vote and next_question.match(text, vote.end):
        return text[: vote.end]
    return text


class _Untitled(NamedTuple):
  """An exemplar's passage."""

  text: str
  title: str = ""


# Punctuation, letters and digits that are as wide as a Chinese character, and other scripts' stops.
_NARROW = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {
  ord(wide): narrow
  for wide, narrow in zip("\u3002\u3001\u060c\u061b\u0964\u3000", ".,,;. ", strict=True)
}
_BETWEEN = "\n\n"  # the parts of a prompt
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
