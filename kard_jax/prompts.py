"""Every string that a model reads or writes (paper, sections 3.1-3.4).

Training and answering build their text with the same object, so they cannot differ.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from kard_jax import answer_parser
from kard_jax.answer_parser import Parsed
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
    """Splits what a model wrote into rationale and answer, see `answer_parser.parse`.

    Args:
      text: a student's output or a teacher's completion; any string.
      options: the texts of the question's options.
    """
    statement = self.answer.removesuffix("{letter}").strip()
    next_question = self.example.partition("{question}")[0].strip()
    return answer_parser.parse(text, options, statement, next_question)


class _Untitled(NamedTuple):
  """An exemplar's passage."""

  text: str
  title: str = ""


_BETWEEN = "\n\n"  # the parts of a prompt
