"""Recorded search spaces: StrategyQA's rationales and passages as KARD's own pipeline found them.

The folder `source` holds `kard_search_spaces/` (spaces.jsonl.gz, passages.jsonl.gz) and
`strategyqa/` (kard_train.jsonl, teacher_train.jsonl.gz). A space has, for a question and one of
ChatGPT's rationales, 32 of 39.9 million Wikipedia paragraphs by the rationale and 32 by the
question, all with BM25's scores for the rationale. Questions are split by a hash of seed and id, so
that no question of validation or test is trained on with another rationale.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from etils import epath

from kard_jax.core import files
from kard_jax.core.files import InputError
from kard_jax.questions import Question
from kard_jax.retrieval.passages import Passage
from tasks import question_rows, registry
from tasks.dataset import Reciter
from tasks.exemplars import STRATEGYQA
from tasks.question_rows import YES_NO, Rejected
from tasks.releases import Release
from tasks.strategyqa import PROMPTS

HELD_OUT = {"test": 0.3, "validation": 0.1}  # shares of the questions

_SPACES = "kard_search_spaces/spaces.jsonl.gz"
_PASSAGES = "kard_search_spaces/passages.jsonl.gz"
_QUESTIONS = "strategyqa/kard_train.jsonl"
_COMPLETIONS = "strategyqa/teacher_train.jsonl.gz"


class Space(NamedTuple):
  """A rationale's candidates as they were recorded, (passage, score under the rationale)."""

  question: str
  sample: int
  rationale_index: int
  by_rationale: list[tuple[str, float]]
  by_question: list[tuple[str, float]]


def questions(seed: int, source: str | None) -> dict[str, list[Question]]:
  """The questions that have a space, split by question.

  Args:
    seed: of the split.
    source: the folder.

  Raises:
    InputError: a file is missing, a row is wrong, or spaces and questions do not belong together.
  """
  folder = _folder(source)
  every = _all_questions(folder)
  wanted = {space.question for space in spaces(source)}
  order = sorted(wanted, key=lambda id: hashlib.sha256(f"{seed}/{id}".encode()).hexdigest())
  result, start = {}, 0
  for split, share in HELD_OUT.items():
    count = round(share * len(order))
    result[split] = order[start : start + count]
    start += count
  chosen = {"train": order[start:], **result}
  return {split: [every[id] for id in sorted(ids)] for split, ids in chosen.items()}


def passages(seed: int, source: str | None) -> Iterator[Passage]:
  """The paragraphs of all spaces.

  Args:
    seed: not needed.
    source: the folder.

  Raises:
    InputError: the file is missing or a row is wrong.
  """
  del seed
  path = _folder(source) / _PASSAGES
  for line, row in files.read_jsonl(path):
    title, _, text = _field(row, "text", f"{path}:{line}").partition(" . ")
    yield Passage(_field(row, "docid", f"{path}:{line}"), title if text else "", text or title)


def teacher(seed: int, source: str | None) -> Reciter:
  """The rationales that spaces were made for; the pipeline had kept all of them.

  Args:
    seed: not needed.
    source: the folder.

  Raises:
    InputError: a file is missing, or has no such rationale.
  """
  del seed
  folder = _folder(source)
  ids = list(_all_questions(folder))
  path = folder / _COMPLETIONS
  completions = {
    _field(row, "index", f"{path}:{line}"): _field(row, "completions", f"{path}:{line}")
    for line, row in files.read_jsonl(path)
  }
  rows = []
  for space in spaces(source):
    written = completions.get(ids.index(space.question), [])
    if not 0 <= space.rationale_index < len(written):
      raise InputError(
        f"{path}: no rationale {space.rationale_index} of {space.question}, which {_SPACES} names"
      )
    rows.append(
      {
        "question_id": space.question,
        "sample": space.sample,
        "rationale": written[space.rationale_index],
        "kept": True,
        "teacher": "gpt-3.5-turbo-0301",
      }
    )
  return Reciter.of(rows, PROMPTS)


def spaces(source: str | None) -> list[Space]:
  """The recorded lists; the samples of a question count its rationales in their order.

  For `ground.ground.recorded`.

  Raises:
    InputError: the file is missing, or a row is wrong.
  """
  folder = _folder(source)
  path = folder / _SPACES
  every = list(_all_questions(folder).values())
  found: dict[tuple[int, int], tuple[str, Any, Any]] = {}
  for line, row in files.read_jsonl(path):
    where = f"{path}:{line}"
    index, number = _field(row, "question_index", where), _field(row, "rationale_index", where)
    if not 0 <= index < len(every) or every[index].question != _field(row, "question", where):
      raise InputError(f"{where}: is not of question {index} of {folder / _QUESTIONS}")
    if (index, number) in found:
      raise InputError(f"{where}: a second space of rationale {number} of question {index}")
    lists = [_scored(_field(row, side, where), where) for side in ("r", "q")]
    found[index, number] = (every[index].id, *lists)
  samples: dict[int, int] = {}
  result = []
  for (index, number), (id, by_rationale, by_question) in sorted(found.items()):
    sample = samples[index] = samples.get(index, -1) + 1
    result.append(Space(id, sample, number, by_rationale, by_question))
  return result


def _all_questions(folder: epath.Path) -> dict[str, Question]:
  release, rejected = Release(folder / _QUESTIONS), list[Rejected]()
  found = question_rows.read(release.rows(""), "train", rejected, options=YES_NO)
  if rejected:  # rows are counted, so none may be left out
    raise InputError(f"{rejected[0].where}: {rejected[0].detail}")
  return {question.id: question for question in found}


def _scored(pairs: Any, where: str) -> list[tuple[str, float]]:
  try:
    return [(str(id), float(score)) for id, score in pairs]
  except (TypeError, ValueError):
    raise InputError(f'{where}: "r" and "q" are lists of [passage, score]') from None


def _folder(source: str | None) -> epath.Path:
  if source is None:
    raise InputError("kard_search_spaces: set the folder of its files (gin: SOURCE = '...')")
  return epath.Path(source)


def _field(row: Mapping[str, Any], name: str, where: str) -> Any:
  if name not in row:
    raise InputError(f'{where}: the field "{name}" is missing')
  return row[name]


registry.register(
  "kard_search_spaces",
  questions=questions,
  passages=passages,
  teacher=teacher,
  prompts=PROMPTS,
  exemplars=STRATEGYQA,
)
