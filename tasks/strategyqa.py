"""StrategyQA (Geva et al., 2021): yes or no, by steps that the question does not name.

`source` holds the release (strategyqa_train.json and strategyqa_test.json, or the repository's
train.json and dev.json) or the split of KARD's code (train, test; `sent1`, `ending0` ...), and the
evidence: strategyqa_train_paragraphs.json, or corpus.jsonl with queries.jsonl and qrels.tsv. The
published test labels are hidden, so a test split is made of labelled questions, as the paper did.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from kard_jax.core.files import InputError, PathLike
from kard_jax.prompts import Prompts
from kard_jax.questions import Question
from kard_jax.retrieval.passages import Passage
from kard_jax.teacher import RecordedTeacher
from tasks import question_rows, recorded, registry, splitting
from tasks.exemplars import STRATEGYQA
from tasks.question_rows import HIDDEN, YES_NO, Rejected, Splits
from tasks.releases import ROWS, Release, named, split_files

PROMPTS = Prompts(query="{question}")  # yes and no find nothing
HELD_OUT = 0.3  # of 2,290 labelled questions 687, as many as the paper's test split has
KEEP = ("term", "description", "facts", "decomposition")

_WITHIN = (r"(^|/)strategyqa[^/]*/", "")
_SPLITS = ("train", "validation", "test")
_KARD: Mapping[str, str] = {split: named(split, "kard_") for split in _SPLITS}
_RELEASED: tuple[Mapping[str, str], ...] = (
  {split: named(split, "strategyqa_") for split in _SPLITS},
  {split: named(split, "(?!teacher|kard)(?:[a-z0-9]+[_-])?") for split in _SPLITS},
)
_PARAGRAPHS = rf"(?:\w+_)?paragraphs{ROWS}"
_CORPUS, _QUERIES, _JUDGEMENTS = (rf"corpus{ROWS}", rf"queries{ROWS}", rf"qrels{ROWS}")
_NO_PARAGRAPH = ("no_evidence", "operation")  # what annotators wrote where they found none


def questions(seed: int, source: str | None) -> Splits:
  """The questions by split.

  - KARD's own split where it is there; its test questions, if they are not, are the release's other
    labelled ones.
  - Else the release's: a test split whose labels are hidden is left out, and its dev questions
    stand for it; without any, 30 % of the training questions do, by a hash of their ids.

  Args:
    seed: not needed.
    source: the folder, or an archive of it.

  Raises:
    InputError: there are no training questions, or a file is damaged.
  """
  del seed
  release, within = _find(source)
  kard = split_files(release, [_KARD], within)
  released = split_files(release, _RELEASED, within)
  rejected: list[Rejected] = []
  splits = Splits(rejected=rejected)
  found = {
    split: _questions(release, file, split, splits.rejected)
    for split, file in (kard or released).items()
  }
  question_rows.demand(found.get("train", []), splits.rejected, f"{release.place}: train")
  if kard and not found.get("test"):
    mine = {_key(question.question) for some in found.values() for question in some}
    others = [
      question
      for split, file in released.items()
      for question in _questions(release, file, split, splits.rejected)
      if _key(question.question) not in mine
    ]
    if others:
      found["test"] = others
      splits.notes.append(
        f"test: {len(others):,} labelled questions of the release that KARD does not train on"
      )
  if not found.get("test"):
    found.pop("test", None)
    if dev := found.pop("validation", []):
      found["test"] = dev
      splits.notes.append(f"test: the {len(dev):,} dev questions, as the test labels are hidden")
    else:
      found["train"], found["test"] = splitting.hold_out(
        found["train"], round(HELD_OUT * len(found["train"]))
      )
      splits.notes.append(
        f"test: {len(found['test']):,} of the labelled questions, chosen by a hash of their ids"
      )
  hidden = sum(row.reason == HIDDEN for row in splits.rejected)
  if hidden:
    splits.notes.append(f"{hidden:,} questions have no published label and are left out")
  gold = _gold(release, within)
  splits.update(
    {split: [_with_gold(question, gold) for question in some] for split, some in found.items()}
  )
  return splits


def passages(seed: int, source: str | None) -> Iterator[Passage]:
  """The evidence paragraphs, each once.

  Args:
    seed: not needed.
    source: as for `questions`.

  Raises:
    InputError: there are none, or a row is wrong.
  """
  del seed
  release, within = _find(source)
  found = _evidence_files(release, within)
  if not found:
    raise InputError(
      f"{release.place}: no evidence in it (strategyqa_train_paragraphs.json, or corpus.jsonl); "
      "give it, or another knowledge base (gin: KNOWLEDGE)"
    )
  seen: set[str] = set()
  for file in found:
    for where, row in release.rows(file):
      id, text = row.get("_id", row.get("id")), row.get("text", row.get("content"))
      if not isinstance(id, str) or not isinstance(text, str):
        raise InputError(f'{where}: a paragraph needs an id and a "text" or "content"')
      if id not in seen and text.strip():
        seen.add(id)
        yield Passage(id, str(row.get("title") or ""), text)


def teacher(seed: int, source: str | None) -> RecordedTeacher:
  """ChatGPT's completions, ten a question of KARD's training split, not filtered.

  Args:
    seed: not needed.
    source: as for `questions`.

  Raises:
    InputError: there are none, or they do not fit the questions.
  """
  del seed
  release, within = _find(source)
  files = split_files(release, [_KARD], within) or split_files(release, _RELEASED, within)
  rows = release.rows(files["train"]) if "train" in files else ()
  ids = [question_rows.id_of(row, "train", number) for number, (_, row) in enumerate(rows)]
  return recorded.teacher(release, ids, within=within)


def _find(source: PathLike | None) -> tuple[Release, str]:
  """The release, and what the path of its files matches."""
  if source is None:
    raise InputError("strategyqa: set the folder of its files (gin: SOURCE = '.../strategyqa')")
  release = Release(source)
  for within in _WITHIN:
    if any("train" in split_files(release, forms, within) for forms in ([_KARD], _RELEASED)):
      return release, within
  raise InputError(
    f"{source}: no training questions in it; strategyqa_train.json, train.json or kard_train.jsonl "
    "is looked for"
  )


def _questions(release: Release, file: str, split: str, rejected: list[Rejected]) -> list[Question]:
  return question_rows.read(release.rows(file), split, rejected, keep=KEEP, options=YES_NO)


def _evidence_files(release: Release, within: str) -> list[str]:
  # by the path's end, as a release has the paragraphs of train and of test
  if corpus := release.find(_CORPUS, within) or release.find(_CORPUS, "evidence/"):
    return [corpus]
  return release.every(_PARAGRAPHS, within)


def _gold(release: Release, within: str) -> dict[str, tuple[str, ...]]:
  """Text of a question -> ids of the paragraphs that annotators found for it."""
  if not _evidence_files(release, within):
    return {}
  known = {passage.id for passage in passages(0, str(release.place))}
  gold: dict[str, dict[str, None]] = collections.defaultdict(dict)
  for file in split_files(release, _RELEASED, within).values():
    for _, row in release.rows(file):
      for id in _leaves(row.get("evidence")):
        gold[_key(str(row.get("question")))][id] = None
  queries, judged = release.find(_QUERIES, within), release.find(_JUDGEMENTS, within)
  if queries and judged:
    texts = {row.get("_id"): str(row.get("text")) for _, row in release.rows(queries)}
    for where, row in release.rows(judged):
      if row.get("query-id") not in texts or "corpus-id" not in row:
        raise InputError(f"{where}: not a judgement of a question in {release.where(queries)}")
      gold[_key(texts[row["query-id"]])][row["corpus-id"]] = None
  return {text: tuple(id for id in ids if id in known) for text, ids in gold.items()}


def _with_gold(question: Question, gold: Mapping[str, tuple[str, ...]]) -> Question:
  return dataclasses.replace(question, gold=gold.get(_key(question.question), ()))


def _leaves(evidence: Any) -> Iterator[str]:
  if isinstance(evidence, str):
    if evidence not in _NO_PARAGRAPH:
      yield evidence
  elif isinstance(evidence, list):
    for part in evidence:
      yield from _leaves(part)


def _key(text: str) -> str:
  return " ".join(text.split()).casefold()


registry.register(
  "strategyqa",
  questions=questions,
  passages=passages,
  teacher=teacher,
  prompts=PROMPTS,
  exemplars=STRATEGYQA,
  published={"train": 1603, "test": 687},  # of 2,290; the paper's split, and as many by the hash
  extra_ids=100,
)
