"""OpenBookQA (Mihaylov et al., 2018): school science, each question made from one fact of a book.

The folder `source` holds the files of the dataset's "additional" version and the teacher's
completions: train_complete.jsonl, dev_complete.jsonl, openbook.txt, crowdsourced-facts.txt and
teacher_train.jsonl.gz. The book's facts and the crowd's are the knowledge base; a question's gold
passage is the fact that it was made from (`fact1`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from etils import epath

from kard_jax import questions as questions_lib
from kard_jax.core import files
from kard_jax.core.files import InputError
from kard_jax.questions import Question
from kard_jax.retrieval.passages import Passage
from kard_jax.teacher import RecordedTeacher
from tasks import registry
from tasks.exemplars import OPENBOOKQA

_LOG = logging.getLogger(__name__)

_SPLITS = {"train": "train_complete.jsonl", "validation": "dev_complete.jsonl"}
_FACTS = {"openbook": "openbook.txt", "crowdsourced": "crowdsourced-facts.txt"}
_COMPLETIONS = "teacher_train.jsonl.gz"
_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'})


class Matched(NamedTuple):
  """How many questions have their fact in the knowledge base, and the facts that are not there."""

  found: int
  asked: int
  missing: tuple[str, ...]


def questions(seed: int, source: str | None) -> dict[str, list[Question]]:
  """Reads both splits; dev, which the dataset's papers tune on, is validation.

  Some training questions repeat another's text under an id of its own; they stay.

  Args:
    seed: not needed.
    source: the folder.

  Raises:
    InputError: a file is missing, or a row is not a question.
  """
  del seed
  folder = _folder(source)
  known = {normalised(passage.text): passage.id for passage in passages(0, source)}
  result = {}
  for split, name in _SPLITS.items():
    result[split] = [
      _question(row, f"{folder / name}:{line}", known)
      for line, row in files.read_jsonl(folder / name)
    ]
    matched = match(result[split])
    _LOG.info("%s: %d of %d facts found", folder / name, matched.found, matched.asked)
    if matched.missing:
      _LOG.warning(
        "%s: the facts of %d questions are not among the passages (the first: %r); these questions "
        "do not count in hit@k",
        folder / name,
        len(matched.missing),
        matched.missing[0],
      )
  return result


def passages(seed: int, source: str | None) -> Iterator[Passage]:
  """Reads the facts, `openbook/<line>` and `crowdsourced/<line>`, each once.

  Where a fact stands twice (but for quotes, case, spaces and the final period) the first is kept:
  two would share a question's gold fact.

  Args:
    seed: not needed.
    source: the folder.

  Raises:
    InputError: a file is missing, or has no fact.
  """
  del seed
  folder = _folder(source)
  seen: set[str] = set()
  for kind, name in _FACTS.items():
    before = len(seen)
    for line, text in enumerate(_text(folder / name).splitlines(), 1):
      fact = _unquoted(text)
      if fact and normalised(fact) not in seen:
        seen.add(normalised(fact))
        yield Passage(f"{kind}/{line}", "", fact)
    if len(seen) == before:
      raise InputError(f"{folder / name}: there is no fact in the file")


def teacher(seed: int, source: str | None) -> RecordedTeacher:
  """The completions of ChatGPT (gpt-3.5-turbo-0613, 20 a training question, not filtered).

  Args:
    seed: not needed.
    source: the folder.

  Raises:
    InputError: the rows do not fit the training questions one to one.
  """
  del seed
  folder = _folder(source)
  path, train = folder / _COMPLETIONS, folder / _SPLITS["train"]
  ids = [_field(row, "id", f"{train}:{line}") for line, row in files.read_jsonl(train)]
  completions: dict[str, list[str]] = {}
  for line, row in files.read_jsonl(path):
    where = f"{path}:{line}"
    index = _field(row, "index", where)
    if index != len(completions) or index >= len(ids):
      raise InputError(
        f"{where}: the index of row {len(completions)} of {len(ids)} is wanted, not {index!r}"
      )
    completions[ids[index]] = list(_field(row, "completions", where))
  if len(completions) != len(ids):
    raise InputError(f"{path}: {len(completions)} rows for the {len(ids)} questions of {train}")
  return RecordedTeacher(completions, name="gpt-3.5-turbo-0613")


def match(some: list[Question]) -> Matched:
  """Counts the questions whose fact is a passage."""
  missing = tuple(question.extra["fact1"] for question in some if not question.gold)
  return Matched(len(some) - len(missing), len(some), missing)


def normalised(fact: str) -> str:
  """A fact without what its copies differ in: quotes, case, spaces, the final period."""
  words = _unquoted(fact).lower().replace('"', " ").split()
  return re.sub(r"\s+([,.;:!?])", r"\1", " ".join(words)).rstrip(" .")


def _question(row: Mapping[str, Any], where: str, known: Mapping[str, str]) -> Question:
  stem = _field(row, "question", where)
  choices = _field(stem, "choices", where)
  labels = [_field(choice, "label", where) for choice in choices]
  answer, fact = _field(row, "answerKey", where), _field(row, "fact1", where)
  if answer not in labels:
    raise InputError(f"{where}: the answer {answer!r} is none of the choices {', '.join(labels)}")
  gold = known.get(normalised(fact))
  return questions_lib.parse(
    {
      "id": _field(row, "id", where),
      "question": _field(stem, "stem", where),
      "options": [_field(choice, "text", where) for choice in choices],
      "label": labels.index(answer),
      "gold": [gold] if gold else [],
      "fact1": fact,
    },
    where,
  )


def _unquoted(text: str) -> str:
  """A fact without the double quotes that openbook.txt puts around each line."""
  text = text.translate(_QUOTES).strip()
  if len(text) > 1 and text[0] == text[-1] == '"':
    text = text[1:-1].strip()
  return text


def _folder(source: str | None) -> epath.Path:
  if source is None:
    raise InputError("openbookqa: set the folder of its files (gin: SOURCE = '.../openbookqa')")
  return epath.Path(source)


def _text(path: epath.Path) -> str:
  if not path.exists():
    raise InputError(f"{path}: no such file")
  try:
    return path.read_text(encoding="utf-8")
  except UnicodeDecodeError as error:
    raise InputError(f"{path}: not UTF-8 ({error})") from None


def _field(row: Any, name: str, where: str) -> Any:
  if not isinstance(row, Mapping) or name not in row:
    raise InputError(f'{where}: the field "{name}" is missing')
  return row[name]


registry.register(
  "openbookqa",
  questions=questions,
  passages=passages,
  teacher=teacher,
  exemplars=OPENBOOKQA,
  extra_ids=100,
)
