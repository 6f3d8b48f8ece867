"""Rows of released files as questions, in every form that is known, and what becomes of the rest.

A row holds its options and its answer as KARD's code does (`sent1`, `ending0` ..., `label`), as
MedQA (`options` by letter, `answer_idx`), OpenBookQA (`choices`, `answerKey`) or StrategyQA
(`answer` true or false). A row that is no usable question is left out and counted by reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from kard_jax import questions as questions_lib
from kard_jax.core.files import InputError
from kard_jax.questions import LETTERS, Question

YES_NO = ("yes", "no")
HIDDEN = "no label"  # also of whole splits, whose labels a leaderboard keeps
_IDS = ("id", "qid", "_id", "ID")
_STEMS = ("question", "question_stem", "sent1")
_ANSWERS = ("label", "answerKey", "answer_idx", "answer")
_YES, _NO = ("yes", "true"), ("no", "false")


class Rejected(NamedTuple):
  """A row that did not become a question.

  Attributes:
    split: where it would have stood.
    where: file and line.
    reason: of a few, to be counted.
    detail: the reason with the row's own values.
  """

  split: str
  where: str
  reason: str
  detail: str


class Splits(dict[str, list[Question]]):
  """Questions by split, with what was left out, and what a user should know of the splits.

  Attributes:
    rejected: rows that were left out.
    notes: sentences.
  """

  def __init__(
    self,
    splits: Mapping[str, Iterable[Question]] = {},
    rejected: Iterable[Rejected] = (),
    notes: Iterable[str] = (),
  ):
    super().__init__({split: list(some) for split, some in splits.items()})
    self.rejected = list(rejected)
    self.notes = list(notes)


class Unusable(Exception):
  """A row cannot become a question: the reason, and the same with the row's own values."""

  def __init__(self, reason: str, detail: str = ""):
    super().__init__(detail or reason)
    self.reason = reason


def read(
  rows: Iterable[tuple[str, Mapping[str, Any]]],
  split: str,
  rejected: list[Rejected],
  *,
  keep: Sequence[str] = (),
  options: Sequence[str] = (),
) -> list[Question]:
  """The questions of a file's rows.

  Args:
    rows: (where, row) of every row.
    split: whose they are.
    rejected: gets the rows that are left out.
    keep: other fields to keep.
    options: those of rows that list none.

  Returns:
    the questions in their order. One without an id is called `<split>-<row>`, from 0.
  """
  found: list[Question] = []
  lines: dict[str, str] = {}
  for number, (where, row) in enumerate(rows):
    try:
      question = of_row(row, where, id_of(row, split, number), keep, options)
      if question.id in lines:
        first = lines[question.id]
        raise Unusable("the id stands twice", f"the id {question.id!r} is that of {first}")
    except Unusable as error:
      rejected.append(Rejected(split, where, error.reason, str(error)))
      continue
    lines[question.id] = where
    found.append(question)
  return found


def demand(found: Sequence[Question], rejected: Sequence[Rejected], what: str) -> None:
  """Checks that there is a question at all.

  Raises:
    InputError: there is none; it names the first row and what is wrong with it.
  """
  if not found:
    first = rejected[0] if rejected else None
    why = f"the first of {len(rejected)}: {first.where}: {first.detail}" if first else "it is empty"
    raise InputError(f"{what}: no row of it can be used ({why})")


def id_of(row: Mapping[str, Any], split: str, number: int) -> str:
  """The id of a row, or `<split>-<number>` where it has none."""
  for name in _IDS:
    if not _blank(row.get(name)):
      return str(row[name])
  return f"{split}-{number:05d}"


def of_row(
  row: Mapping[str, Any],
  where: str,
  id: str,
  keep: Sequence[str] = (),
  options: Sequence[str] = (),
) -> Question:
  """Makes a question of a row; the arguments are those of `read`.

  Raises:
    Unusable: with the reason.
  """
  stem = next((row[name] for name in _STEMS if not _blank(row.get(name))), None)
  if stem is None:
    raise Unusable("no question", f"no question under {', '.join(_STEMS)}")
  inner = stem if isinstance(stem, Mapping) else row
  keys, texts = _options(inner if "choices" in inner else row, options)
  if isinstance(stem, Mapping):
    stem = stem.get("stem")
  if _blank(stem) or not isinstance(stem, str):
    raise Unusable("no question", f"the question is {stem!r}")
  empty = [LETTERS[i] for i, text in enumerate(texts) if _blank(text)]
  if empty:
    raise Unusable("an option is empty", f"option {', '.join(empty)} is empty")
  if not 2 <= len(texts) <= len(LETTERS):
    raise Unusable("the number of options", f"{len(texts)} options; 2 to {len(LETTERS)} are needed")
  label = _label(row, keys, texts)
  try:
    return questions_lib.parse(
      {
        "id": id,
        "question": stem.strip(),
        "options": [str(text).strip() for text in texts],
        "label": label,
        **{name: row[name] for name in keep if not _blank(row.get(name))},
      },
      where,
    )
  except InputError as error:
    raise Unusable("not a valid question", str(error).removeprefix(f"{where}: ")) from None


def _options(row: Mapping[str, Any], default: Sequence[str]) -> tuple[list[str], list[Any]]:
  """What names each option, and its text."""
  if "ending0" in row:
    count = next(i for i in range(len(row) + 1) if f"ending{i}" not in row)
    texts = [row[f"ending{i}"] for i in range(count)]
    while texts and _blank(texts[-1]):  # questions with fewer options than columns
      texts.pop()
    return list(LETTERS[: len(texts)]), texts
  listed = row.get("choices", row.get("options"))
  if isinstance(listed, Mapping) and isinstance(listed.get("text"), Sequence):
    texts = list(listed["text"])
    return [str(key) for key in listed.get("label", LETTERS[: len(texts)])], texts
  if isinstance(listed, Mapping):
    pairs = sorted(listed.items(), key=lambda pair: str(pair[0]))
    while pairs and _blank(pairs[-1][1]):
      pairs.pop()
    return [str(key) for key, _ in pairs], [text for _, text in pairs]
  if isinstance(listed, list) and all(isinstance(item, Mapping) for item in listed):
    return (
      [str(item.get("label", item.get("key", ""))) for item in listed],
      [item.get("text", item.get("value")) for item in listed],
    )
  if isinstance(listed, list):
    return list(LETTERS[: len(listed)]), listed
  if listed is None and default:
    return list(LETTERS[: len(default)]), list(default)
  there = ", ".join(map(str, row))
  raise Unusable("no options", f'no options under "choices", "options" or "ending0" of {there}')


def _label(row: Mapping[str, Any], keys: Sequence[str], options: Sequence[Any]) -> int:
  name = next((name for name in _ANSWERS if not _blank(row.get(name))), None)
  if name is None:
    raise Unusable(HIDDEN, f"no label under {', '.join(_ANSWERS)}")
  value = row[name]
  texts = [str(text).strip().casefold() for text in options]
  if texts == list(YES_NO) and (answer := _yes_or_no(value)) is not None:
    return 0 if answer else 1
  if isinstance(value, bool):
    raise Unusable("the label names no option", f'"{name}" is {value}')
  number = re.fullmatch(r"(-?\d+)(?:\.0+)?", str(value).strip())
  if number and str(value).strip() not in keys:
    if int(number[1]) == -1:
      raise Unusable(HIDDEN, f'"{name}" is {value!r}')
    if 0 <= int(number[1]) < len(options):
      return int(number[1])
  elif str(value).strip() in keys:
    return list(keys).index(str(value).strip())
  elif str(value).strip().upper() in keys:
    return list(keys).index(str(value).strip().upper())
  elif texts.count(str(value).strip().casefold()) == 1:
    return texts.index(str(value).strip().casefold())
  raise Unusable(
    "the label names no option",
    f"the answer {value!r} is none of the choices {', '.join(keys)}",
  )


def _yes_or_no(value: Any) -> bool | None:
  text = str(value).strip().casefold()
  return True if text in _YES else False if text in _NO else None


def _blank(value: Any) -> bool:
  """Nothing: also what tables and data frames write for it."""
  return value is None or value != value or (isinstance(value, str) and not value.strip())
