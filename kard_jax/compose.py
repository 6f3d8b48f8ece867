"""What is read of a question: its prompt as in training, or after solved examples (few-shot).

A prompt has a reader with a limit. What is cut is counted, and few-shot prompts are cut where it
hurts least: whole examples first, then the ends of passages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from kard_jax.exemplars import Exemplar
from kard_jax.prompts import PassageLike, Prompts
from kard_jax.questions import Question


class Prompt(NamedTuple):
  """What is read of a question.

  Attributes:
    text: the prompt.
    tokens: how many of its tokens are read; None where nobody counts.
    cut: how many the limit of length has taken away: of passages, of solved examples, of its end;
      None where nobody counts.
    exemplars: how many solved examples stand before the question; None where the method has none.
  """

  text: str
  tokens: int | None = None
  cut: int | None = None
  exemplars: int | None = None


class Reader(NamedTuple):
  """Who reads a prompt.

  Attributes:
    sizes: how many tokens texts have, however long they are.
    length: how many are read; what is longer loses its end.
  """

  sizes: Callable[[Sequence[str]], Sequence[int]]
  length: int


Compose = Callable[[Sequence[Question], Sequence[Sequence[PassageLike]]], Sequence[Prompt]]
"""`compose(questions, passages)`: for each question the prompt that holds it and its passages."""


def as_trained(prompts: Prompts, reader: Reader | None = None) -> Compose:
  """The prompts that students are trained with: the question, then its passages.

  Args:
    prompts: the templates.
    reader: cuts them at its length and counts; None counts nothing.
  """

  def compose(
    questions: Sequence[Question], passages: Sequence[Sequence[PassageLike]]
  ) -> list[Prompt]:
    texts = [prompts.student_input(q, found) for q, found in zip(questions, passages, strict=True)]
    if reader is None:
      return [Prompt(text) for text in texts]
    return [
      Prompt(text, min(size, reader.length), max(0, size - reader.length))
      for text, size in zip(texts, map(int, reader.sizes(texts)), strict=True)
    ]

  return compose


def few_shot(
  prompts: Prompts,
  exemplars: Sequence[Exemplar],
  reader: Reader | None = None,
  *,
  rationales: bool,
) -> Compose:
  """In-context prompts: solved examples, then the question.

  A prompt that is too long loses examples from the front, one after the other, and when none is
  left its passages lose words from the end. Never the question: one that is too long by itself is
  left to the reader, which cuts its end.

  Args:
    prompts: the templates.
    exemplars: those that are shown, in their order.
    reader: whose length prompts have to fit; None has room for any.
    rationales: whether examples show their rationale (chain of thought) or the answer alone.
  """
  shown = list(exemplars)

  def text(q: Question, passages: Sequence[PassageLike], count: int) -> str:
    whole = prompts.few_shot(q, shown[len(shown) - count :], passages, rationales=rationales)
    return whole.removesuffix(prompts.separator)  # readers put it there, as for other prompts

  def compose(
    questions: Sequence[Question], passages: Sequence[Sequence[PassageLike]]
  ) -> list[Prompt]:
    texts = [text(q, found, len(shown)) for q, found in zip(questions, passages, strict=True)]
    if reader is None:
      return [Prompt(whole, exemplars=len(shown)) for whole in texts]
    sizes = list(map(int, reader.sizes(texts)))
    whole, counts = list(sizes), [len(shown)] * len(texts)

    def too_long() -> list[int]:
      return [i for i, size in enumerate(sizes) if size > reader.length]

    def measure(places: Sequence[int]) -> None:
      again = reader.sizes([texts[i] for i in places]) if places else ()
      for i, size in zip(places, again, strict=True):
        sizes[i] = int(size)

    for count in reversed(range(len(shown))):
      places = too_long()
      for i in places:
        texts[i], counts[i] = text(questions[i], passages[i], count), count
      measure(places)
    places = [i for i in too_long() if passages[i]]
    for i in places:
      write = lambda some, q=questions[i]: text(q, some, 0)
      texts[i] = write(_shortened(passages[i], write, reader))
    measure(places)
    return [
      Prompt(shorter, read := min(size, reader.length), full - read, count)
      for shorter, size, full, count in zip(texts, sizes, whole, counts, strict=True)
    ]

  return compose


class _Cut(NamedTuple):
  """A passage without its end."""

  title: str
  text: str


def _shortened(
  passages: Sequence[PassageLike], write: Callable[[Sequence[PassageLike]], str], reader: Reader
) -> list[PassageLike]:
  """As many of the passages' first words as fit; none where the rest is too long already."""
  fits = lambda words: reader.sizes([write(_first(passages, words))])[0] <= reader.length
  least, most = 0, sum(len(passage.text.split()) for passage in passages)
  while least < most:
    middle = -(-(least + most) // 2)
    least, most = (middle, most) if fits(middle) else (least, middle - 1)
  return _first(passages, least)


def _first(passages: Sequence[PassageLike], words: int) -> list[PassageLike]:
  found: list[PassageLike] = []
  for passage in passages:
    kept = passage.text.split()[:words]
    if kept:
      found.append(_Cut(passage.title, " ".join(kept)))
    words -= len(kept)
  return found
