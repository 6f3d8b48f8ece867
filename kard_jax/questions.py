"""One multiple-choice question: the record that every stage of KARD reads (the paper's x and y).

A file of questions is JSON lines, `{"id", "question", "options": [..], "label": int, ...}`; what
else a line holds travels along untouched. Nothing here needs JAX.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from kard_jax.core import files
from kard_jax.core.files import InputError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # what names an option in a prompt; hence at most 26 options

_NAMED = ("id", "question", "options", "label", "gold")


@dataclasses.dataclass(frozen=True)
class Question:
  """A question, its options and which of them is right.

  Attributes:
    id: unique within a file, and what every other file calls the question by.
    question: the stem, without the options.
    options: two or more texts, in the order of their letters.
    label: the position of the right option.
    gold: ids of the passages known to hold the fact, where that is known; hit@k counts them.
    extra: the other fields of the JSON line, kept on read and write.
  """

  id: str
  question: str
  options: tuple[str, ...]
  label: int
  gold: tuple[str, ...] = ()
  extra: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

  @property
  def letter(self) -> str:
    """The letter of the right option."""
    return LETTERS[self.label]

  def to_json(self) -> dict[str, Any]:
    """The JSON object that `parse` turns back into this question."""
    row: dict[str, Any] = {
      "id": self.id,
      "question": self.question,
      "options": list(self.options),
      "label": self.label,
    }
    if self.gold:
      row["gold"] = list(self.gold)
    return row | {key: value for key, value in self.extra.items() if key not in _NAMED}


def parse(row: Mapping[str, Any], where: str) -> Question:
  """Makes a question of a JSON object, or says what is wrong with it.

  Args:
    row: the object.
    where: file and line, or another name of the row's place; every message begins with it.

  Raises:
    InputError: a field is missing, empty or of the wrong type, there are fewer than 2 or more than
      26 options, or the label names none of them.
  """
  for name in ("id", "question", "options", "label"):
    if name not in row:
      raise InputError(f'{where}: the field "{name}" is missing (there are: {", ".join(row)})')
  for name in ("id", "question"):
    _check_text(row[name], f'{where}: "{name}"')
  options = _texts(row["options"], f'{where}: "options"')
  if not 2 <= len(options) <= len(LETTERS):
    raise InputError(
      f'{where}: "options" holds {len(options)}; a question needs from 2 to {len(LETTERS)}'
    )
  label = row["label"]
  if isinstance(label, bool) or not isinstance(label, int):
    raise InputError(f'{where}: "label" must be a whole number (0 is option A), not {label!r}')
  if not 0 <= label < len(options):
    raise InputError(
      f'{where}: "label" is {label}, outside the {len(options)} options (0 to {len(options) - 1})'
    )
  return Question(
    id=row["id"],
    question=row["question"],
    options=options,
    label=label,
    gold=_texts(row.get("gold", []), f'{where}: "gold"'),
    extra={key: value for key, value in row.items() if key not in _NAMED},
  )


def read(path: files.PathLike) -> list[Question]:
  """Reads a file of questions (`.jsonl`, or gzip with `.gz`).

  Raises:
    InputError: as `parse`, or the file is missing, empty, not JSON, or repeats an id.
  """
  questions: list[Question] = []
  lines: dict[str, int] = {}
  for line, row in files.read_jsonl(path):
    question = parse(row, f"{path}:{line}")
    if question.id in lines:
      raise InputError(
        f"{path}:{line}: the id {question.id!r} is already that of line {lines[question.id]}"
      )
    lines[question.id] = line
    questions.append(question)
  if not questions:
    raise InputError(f"{path}: there is no question in the file")
  return questions


def write(path: files.PathLike, questions: Iterable[Question]) -> int:
  """Writes questions as JSON lines, whole or not at all, and returns how many there were."""
  return files.write_jsonl(path, (question.to_json() for question in questions))


def _check_text(value: Any, what: str) -> None:
  if not isinstance(value, str):
    raise InputError(f"{what} must be a text, not {value!r}")
  if not value.strip():
    raise InputError(f"{what} is empty")
  try:
    value.encode()
  except UnicodeEncodeError:
    raise InputError(f"{what} is not valid Unicode: {value!r}") from None


def _texts(value: Any, what: str) -> tuple[str, ...]:
  if not isinstance(value, list | tuple):
    raise InputError(f"{what} must be a list of texts, not {value!r}")
  for position, item in enumerate(value):
    _check_text(item, f"{what}[{position}]")
  return tuple(value)
