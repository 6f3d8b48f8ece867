"""Splits by question: one that stands in two is found, and held-out ones are drawn by a hash."""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Sequence
from typing import Any

from kard_jax.questions import Question
from tasks.question_rows import Rejected, Splits

_HELD_OUT_FIRST = ("test", "validation", "train")  # which split keeps a question that is in two


def hold_out(questions: Sequence[Question], count: int) -> tuple[list[Question], list[Question]]:
  """Draws questions by a hash of their ids: the same ones on every machine and in any order.

  Questions with the same text stay together.

  Args:
    questions: to draw from.
    count: how many are held out.

  Returns:
    those that stay and those that are held out, each in the given order.
  """
  groups: dict[Any, list[Question]] = collections.defaultdict(list)
  for question in _by_hash(questions):
    groups[same_but_for_order(question)].append(question)
  chosen: set[str] = set()
  for group in groups.values():
    if len(chosen) + len(group) <= count:
      chosen.update(question.id for question in group)
  return (
    [question for question in questions if question.id not in chosen],
    [question for question in questions if question.id in chosen],
  )


def first(questions: Sequence[Question], count: int) -> list[Question]:
  """Some of the questions, in their order: the same ones whichever others there are."""
  chosen = {question.id for question in _by_hash(questions)[:count]}
  return [question for question in questions if question.id in chosen]


def _by_hash(questions: Sequence[Question]) -> list[Question]:
  return sorted(questions, key=lambda q: hashlib.sha256(q.id.encode()).hexdigest())


def same(question: Question) -> tuple[str, ...]:
  """What two copies of a question share: the text and the options, but for case and spaces."""
  return tuple(" ".join(text.split()).casefold() for text in (question.question, *question.options))


def same_but_for_order(question: Question) -> tuple[str, ...]:
  """The same for questions whose options change places."""
  stem, *options = same(question)
  return (stem, *sorted(options))


def without_repeats(splits: Splits) -> Splits:
  """Leaves out of training what also stands in a held-out split, and of validation what is in test.

  Only the same text with the same options in the same order is the same question. Questions that
  repeat one of their own split stay: released counts include them.
  """
  owner: dict[tuple[str, ...], tuple[str, str]] = {}
  kept: dict[str, list[Question]] = {}
  rejected = list(splits.rejected)
  for split in _HELD_OUT_FIRST:
    kept[split] = []
    for question in splits.get(split, ()):
      there, id = owner.setdefault(same(question), (split, question.id))
      if there == split:
        kept[split].append(question)
        continue
      detail = f"the question {question.id!r} is {id!r} of {there}"
      rejected.append(Rejected(split, question.id, f"it stands in {there} too", detail))
  return Splits({split: kept[split] for split in splits}, rejected, splits.notes)


def repeats(splits: Splits) -> dict[str, Any]:
  """Counts what repeats and stays, for the record.

  Returns:
    by split, the questions that repeat an earlier one of it; how many of train have a held-out
    question's text and options in another order; and how many texts with the same options have two
    right answers.
  """
  within = {split: len(some) - len(set(map(same, some))) for split, some in splits.items()}
  held_out = {
    same_but_for_order(question)
    for split, some in splits.items()
    if split != "train"
    for question in some
  }
  answers = collections.defaultdict(set)
  for some in splits.values():
    for question in some:
      right = " ".join(question.options[question.label].split()).casefold()
      answers[same_but_for_order(question)].add(right)
  return {
    "within a split": within,
    "in train and held out, options in another order": sum(
      same_but_for_order(question) in held_out for question in splits.get("train", ())
    ),
    "with two right answers": sum(len(found) > 1 for found in answers.values()),
  }
