"""A solved example that stands before a question in a prompt (paper, sections 3.1 and 4).

A teacher sees some and writes rationales in their manner; a judge and the few-shot baselines see
them too. `Prompts` puts them into words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kard_jax.questions import Question


class Exemplar(NamedTuple):
  """A question with its solution.

  Attributes:
    question: with its right option.
    rationale: reasoning that leads to that option. It does not end in a statement of the answer,
      which each prompt adds in its own form.
    passage: a short text that could have been retrieved for the question; "" is none.
  """

  question: Question
  rationale: str
  passage: str = ""


def before(question: Question, exemplars: Sequence[Exemplar]) -> list[Exemplar]:
  """The exemplars that a question may follow: all but itself, for it would read its own answer."""
  return [exemplar for exemplar in exemplars if exemplar.question.question != question.question]
