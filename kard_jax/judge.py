"""Judges of rationales: the answer that one states, or the option a language model reads out of it.

The paper keeps what a language model follows to the gold option (section 3.1); a rationale that
states the gold answer itself needs no model. Each verdict comes with its reason.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from kard_jax.answer_parser import Parsed
from kard_jax.core.files import InputError
from kard_jax.exemplars import Exemplar
from kard_jax.prompts import Prompts
from kard_jax.questions import Question


class Verdict(NamedTuple):
  """A judge's decision on one rationale, and why.

  Attributes:
    kept: the decision.
    reason: in words, the same for all rationales that share it.
    details: further fields of the rationale's row.
  """

  kept: bool
  reason: str
  details: Mapping[str, Any] = types.MappingProxyType({})


class Case(NamedTuple):
  """A rationale to be judged."""

  question: Question
  parsed: Parsed


Judge = Callable[[Sequence[Case]], Sequence[Verdict]]
"""`judge(cases)`: a verdict for each, in their order."""

LetterScores = Callable[[Sequence[str]], Sequence[Sequence[float]]]
"""`scores(prompts)`: for each the log-probabilities that A, B, ... come next, as many as known."""


@dataclasses.dataclass(frozen=True)
class StatedAnswer:
  """Judges a rationale by the answer that it states, read by the one parser.

  Attributes:
    keep_unstated: what becomes of a rationale that states no answer.
  """

  keep_unstated: bool = False

  def __call__(self, cases: Sequence[Case]) -> list[Verdict]:
    """Keeps what states the gold answer."""
    return [self._one(question, parsed) for question, parsed in cases]

  def _one(self, question: Question, parsed: Parsed) -> Verdict:
    if parsed.answer is None:
      return Verdict(self.keep_unstated, "states no answer")
    if parsed.answer == question.label:
      return Verdict(True, "states the gold answer")
    return Verdict(False, "states another answer")


@dataclasses.dataclass(frozen=True)
class LanguageModel:
  """Judges a rationale by the option that a language model finds likeliest after reading it.

  Attributes:
    scores: the model.
    prompts: how it is asked.
    exemplars: that stand before.
  """

  scores: LetterScores
  prompts: Prompts
  exemplars: Sequence[Exemplar] = ()

  def __call__(self, cases: Sequence[Case]) -> list[Verdict]:
    """Keeps what leads the model to the gold option.

    Details: `judge`, the option that it picks, and the probability of that among the options.
    """
    texts = [
      self.prompts.judge(question, parsed.rationale, self.exemplars) for question, parsed in cases
    ]
    verdicts = []
    for (question, _), row in zip(cases, self.scores(texts), strict=True):
      scores = [float(score) for score in row[: len(question.options)]]
      if len(scores) < len(question.options):
        raise InputError(
          f"question {question.id!r} has {len(question.options)} options, and the judge's "
          f"vocabulary tells {len(scores)} letters apart; take another judge (JUDGE_MODEL)"
        )
      picked = max(range(len(scores)), key=scores.__getitem__)
      share = 1 / sum(math.exp(score - scores[picked]) for score in scores)
      details = {"judge": {"option": picked, "probability": round(share, 4)}}
      kept = picked == question.label
      reason = "the judge picks the gold option" if kept else "the judge picks another option"
      verdicts.append(Verdict(kept, reason, details))
    return verdicts


@dataclasses.dataclass(frozen=True)
class FirstToKeep:
  """Several judges, one after the other: a rationale is kept if any keeps it.

  Attributes:
    judges: the next one sees what those before it rejected; the last one's reason stands.
  """

  judges: Sequence[Judge]

  def __call__(self, cases: Sequence[Case]) -> list[Verdict]:
    """Keeps what any judge keeps."""
    verdicts: dict[int, Verdict] = {}
    for judge in self.judges:
      open_cases = [i for i in range(len(cases)) if i not in verdicts or not verdicts[i].kept]
      if not open_cases:
        break
      verdicts.update(zip(open_cases, judge([cases[i] for i in open_cases]), strict=True))
    return [verdicts[i] for i in range(len(cases))]


def counts(
  rows: Sequence[Mapping[str, Any]], questions: Sequence[Question], samples: int
) -> dict[str, Any]:
  """How many rationales there are at each filter.

  Args:
    rows: of `rationales.jsonl`, as `kard_jax.teacher.teach` yields them.
    questions: that were asked about; rows of others are passed over.
    samples: rationales that were wanted of each.

  Returns:
    `asked`, `answered`; of these `empty` and `parsed`, the ones that state an answer; of these
    `answer_match`; `judged` by a model, and of these `judge_match`; `kept`, `questions` and those
    `questions_with_rationale`; `reasons`, the rows of each reason, kept or not.
  """
  labels = {question.id: question.label for question in questions}
  mine = [row for row in rows if row["question_id"] in labels]
  judged = [row for row in mine if "judge" in row]
  reasons: dict[str, collections.Counter[str]] = {
    "kept": collections.Counter(),
    "rejected": collections.Counter(),
  }
  for row in mine:
    reasons["kept" if row["kept"] else "rejected"][row["reason"]] += 1
  return {
    "asked": len(questions) * samples,
    "answered": len(mine),
    "empty": sum(not row["rationale"] for row in mine),
    "parsed": sum(row["stated"] is not None for row in mine),
    "answer_match": sum(row["stated"] == labels[row["question_id"]] for row in mine),
    "judged": len(judged),
    "judge_match": sum(row["judge"]["option"] == labels[row["question_id"]] for row in judged),
    "kept": sum(row["kept"] for row in mine),
    "questions": len(questions),
    "questions_with_rationale": len({row["question_id"] for row in mine if row["kept"]}),
    "reasons": {name: dict(found.most_common()) for name, found in reasons.items()},
  }


def table(by_split: Mapping[str, Mapping[str, Any]]) -> str:
  """The counts as text, one column a split."""
  names = {
    "asked": "asked for",
    "answered": "answered",
    "empty": "empty",
    "parsed": "state an answer",
    "answer_match": "state the gold answer",
    "judged": "read by the judge",
    "judge_match": "lead the judge to gold",
    "kept": "kept",
    "questions": "questions",
    "questions_with_rationale": "questions with a rationale",
  }
  judged = any(found["judged"] for found in by_split.values())
  lines = [" " * _WIDTH + "".join(f"{split:>12}" for split in by_split)]
  for key, name in names.items():
    if judged or not key.startswith("judge"):
      lines.append(_line(name, [found[key] for found in by_split.values()]))
  for kept in ("kept", "rejected"):
    reasons = dict.fromkeys(r for found in by_split.values() for r in found["reasons"][kept])
    for reason in reasons:
      values = [found["reasons"][kept].get(reason, 0) for found in by_split.values()]
      lines.append(_line(f"{kept}: {reason}", values))
  return "\n".join(lines)


_WIDTH = 40


def _line(name: str, values: Sequence[int]) -> str:
  return name.ljust(_WIDTH) + "".join(f"{value:>12,}" for value in values)
