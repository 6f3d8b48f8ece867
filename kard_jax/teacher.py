"""Ask a teacher for rationales and keep those that a judge confirms (paper, section 3.1).

A teacher is a callable, so an API, a file of completions and a script are the same to the chain.
All that it wrote goes to `rationales.jsonl`; what is not kept stays there with the reason.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from kard_jax.core import files
from kard_jax.core.files import InputError
from kard_jax.judge import Case, Judge, Verdict
from kard_jax.prompts import Prompts
from kard_jax.questions import Question


@runtime_checkable
class Teacher(Protocol):
  """What writes rationales; `name` tells in each row who it was."""

  @property
  def name(self) -> str:
    """The teacher's name, as rows carry it."""
    ...

  def __call__(self, question: Question, samples: int) -> list[str]:
    """At most `samples` completions: a rationale each, with or without a stated answer."""
    ...


@dataclasses.dataclass(frozen=True)
class RecordedTeacher:
  """Completions that exist already.

  Attributes:
    completions: question id to completions, in the order they were sampled.
    name: the teacher that wrote them.
  """

  completions: Mapping[str, Sequence[str]]
  name: str = "recorded"

  def __call__(self, question: Question, samples: int) -> list[str]:
    """The first `samples` completions of the question; all of them if there are fewer.

    Raises:
      InputError: none were recorded for this question.
    """
    if question.id not in self.completions:
      raise InputError(
        f"teacher {self.name}: no completions for the question {question.id!r}"
        " (gin: TEACH_SPLITS, the splits that are asked about)"
      )
    return list(self.completions[question.id][:samples])


def teach(
  questions: Iterable[Question],
  teacher: Teacher,
  prompts: Prompts,
  samples: int,
  judge: Judge,
  batch: int = 1,
) -> Iterator[dict[str, Any]]:
  """Asks for rationales and judges them, some questions at a time.

  Args:
    questions: the training questions; others must not be asked about, the gold answer is used.
    teacher: what writes the rationales.
    prompts: the parser that tells a rationale from the answer it states.
    samples: how many rationales a question (the paper's l).
    judge: which to keep.
    batch: questions whose rationales are judged together.

  Yields:
    rows of `rationales.jsonl`. `rationale` is stripped and comes without its "Answer: X", which a
    student's target states anew; `stated` is the position of the option that it names, or None.
    Not kept, and not judged, is one that is "empty", or a "duplicate" of one kept before for the
    same question.
  """
  remaining = iter(questions)
  while chunk := list(itertools.islice(remaining, batch)):
    cases = [
      Case(question, prompts.parse(completion, question.options))
      for question in chunk
      for completion in teacher(question, samples)
    ]
    # Equal rationales that state the same are judged alike, and once.
    unique = list(dict.fromkeys(case for case in cases if case.parsed.rationale))
    verdicts = dict(zip(unique, judge(unique), strict=True)) if unique else {}
    sample: collections.Counter[str] = collections.Counter()
    kept: set[tuple[str, str]] = set()
    for case in cases:
      id, rationale = case.question.id, case.parsed.rationale
      verdict = verdicts.get(case, Verdict(False, "empty"))
      if verdict.kept and (id, rationale) in kept:
        verdict = verdict._replace(kept=False, reason="duplicate")
      if verdict.kept:
        kept.add((id, rationale))
      yield {
        "question_id": id,
        "sample": sample[id],
        "rationale": rationale,
        "teacher": teacher.name,
        "kept": verdict.kept,
        "reason": verdict.reason,
        "stated": case.parsed.answer,
        **verdict.details,
      }
      sample[id] += 1


def read_rationales(path: files.PathLike, questions: Iterable[Question]) -> list[dict[str, Any]]:
  """Reads a file of rationales back, each for a question that is known.

  Args:
    path: rows with `question_id` and `rationale`. A row without `kept` is kept, one without
      `sample` is numbered within its question: a file from elsewhere needs no more than those two.
    questions: those that the rationales may be for.

  Raises:
    InputError: naming file and line: an unknown question, a field that is missing or of the wrong
      type, a kept rationale that is empty, or a (question, sample) that repeats; or the file is
      missing or empty.
  """
  known = {question.id for question in questions}
  lines: dict[tuple[str, int], int] = {}
  counts: dict[str, int] = {}
  rows: list[dict[str, Any]] = []
  for line, raw in files.read_jsonl(path):
    where = f"{path}:{line}"
    question_id = _field(raw, "question_id", str, where)
    if question_id not in known:
      raise InputError(f"{where}: a rationale for the unknown question {question_id!r}")
    number = counts.get(question_id, 0)
    row: dict[str, Any] = {
      "sample": number,
      "teacher": "unknown",
      "kept": True,
      "reason": "given",
    } | raw
    for name, kind in (("rationale", str), ("sample", int), ("kept", bool)):
      _field(row, name, kind, where)
    if row["kept"] and not row["rationale"].strip():
      raise InputError(f"{where}: the rationale is empty")
    key = (question_id, row["sample"])
    if key in lines:
      raise InputError(
        f"{where}: sample {key[1]} of question {key[0]!r} is already on line {lines[key]}"
      )
    lines[key] = line
    counts[question_id] = number + 1
    rows.append(row)
  if not rows:
    raise InputError(f"{path}: there is no rationale in the file")
  return rows


def _field(row: Mapping[str, Any], name: str, kind: type, where: str) -> Any:
  if name not in row:
    raise InputError(f'{where}: the field "{name}" is missing (there are: {", ".join(row)})')
  value = row[name]
  if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
    raise InputError(f'{where}: "{name}" must be {kind.__name__}, not {value!r}')
  return value
