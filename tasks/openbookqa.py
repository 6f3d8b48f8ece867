"""OpenBookQA (Mihaylov et al., 2018): school science, each question made from one fact of a book.

`source` holds the release (OpenBookQA-V1-Sep2018, also as its archive), of which the "additional"
files are read (train_complete.jsonl ..., which name the fact that a question was made from) or else
the "main" ones; or the form of KARD's code (train, dev, test; `sent1`, `ending0` ...); or it is
`tfds:openbookqa`. The facts (openbook.txt, crowdsourced-facts.txt; from TFDS, those that questions
name) are the knowledge base, and a question's own is its gold passage.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from kard_jax.core.files import InputError
from kard_jax.questions import Question
from kard_jax.retrieval.passages import Passage
from kard_jax.teacher import RecordedTeacher
from tasks import question_rows, recorded, registry, tfds_datasets
from tasks.exemplars import OPENBOOKQA
from tasks.question_rows import Rejected, Splits
from tasks.releases import Release, named, split_files

_LOG = logging.getLogger(__name__)

KEEP = ("fact1",)

_WITHIN = (r"(^|/)(openbookqa|obqa)[^/]*/", "")
_NAMES = {"train": "train", "validation": "dev", "test": "test"}
_FORMS: tuple[Mapping[str, str], ...] = (
  {split: rf"{name}_complete\.jsonl(\.gz)?" for split, name in _NAMES.items()},
  {split: named(split) for split in _NAMES},
)
_FACTS = {"openbook": "openbook.txt", "crowdsourced": "crowdsourced-facts.txt"}
_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'})


class Matched(NamedTuple):
  """How many questions have their fact in the knowledge base, and the facts that are not there."""

  found: int
  asked: int
  missing: tuple[str, ...]


def questions(seed: int, source: str | None) -> Splits:
  """The questions by split.

  Some training questions repeat another's text under an id of its own; they stay.

  Args:
    seed: not needed.
    source: the folder, an archive of it, or `tfds:openbookqa`.

  Raises:
    InputError: there are no training questions, or a file is damaged.
  """
  del seed
  splits = _from_tfds(source) if tfds_datasets.is_named(source) else _from_files(source)
  known = {normalised(passage.text): passage.id for passage in _facts(source)}
  for split, some in splits.items():
    splits[split] = [_with_gold(question, known) for question in some]
    matched = match(splits[split])
    if known and matched.asked:
      _LOG.info("openbookqa, %s: %d of %d facts found", split, matched.found, matched.asked)
    if known and matched.missing:
      _LOG.warning(
        "openbookqa, %s: the facts of %d questions are not among the passages (the first: %r); "
        "these questions do not count in hit@k",
        split,
        len(matched.missing),
        matched.missing[0],
      )
  return splits


def passages(seed: int, source: str | None) -> Iterator[Passage]:
  """The facts, `openbook/<line>` and `crowdsourced/<line>`, each once.

  Where a fact stands twice (but for quotes, case, spaces and the final period) the first is kept:
  two would share a question's gold fact.

  Args:
    seed: not needed.
    source: as for `questions`.

  Raises:
    InputError: there are none, or a file has no fact.
  """
  del seed
  none = True
  for passage in _facts(source):
    none = False
    yield passage
  if none:
    raise InputError(
      f"{source}/openbook.txt: no such file; give the facts, or another knowledge base "
      "(gin: KNOWLEDGE)"
    )


def teacher(seed: int, source: str | None) -> RecordedTeacher:
  """The completions of ChatGPT (20 a training question, not filtered).

  Args:
    seed: not needed.
    source: the folder or archive.

  Raises:
    InputError: there are none, or they do not fit the training questions one to one.
  """
  del seed
  if tfds_datasets.is_named(source):
    raise InputError(f"{source}: TFDS has no rationales, and its questions have another order")
  release, files, within = _find(source)
  rows = enumerate(release.rows(files["train"]))
  ids = [question_rows.id_of(row, "train", number) for number, (_, row) in rows]
  return recorded.teacher(release, ids, within=within)


def match(some: list[Question]) -> Matched:
  """Counts the questions whose fact is a passage, of those that name one."""
  asked = [question for question in some if "fact1" in question.extra]
  missing = tuple(question.extra["fact1"] for question in asked if not question.gold)
  return Matched(len(asked) - len(missing), len(asked), missing)


def normalised(fact: str) -> str:
  """A fact without what its copies differ in: quotes, case, spaces, the final period."""
  words = _unquoted(fact).lower().replace('"', " ").split()
  return re.sub(r"\s+([,.;:!?])", r"\1", " ".join(words)).rstrip(" .")


def _from_files(source: str | None) -> Splits:
  release, files, _ = _find(source)
  rejected: list[Rejected] = []
  found = {}
  for split, file in files.items():
    found[split] = question_rows.read(release.rows(file), split, rejected, keep=KEEP)
    mine = [row for row in rejected if row.split == split]
    question_rows.demand(found[split], mine, release.where(file))
  return Splits(found, rejected)


def _from_tfds(source: str | None) -> Splits:
  rejected: list[Rejected] = []
  found = {}
  for split, examples in tfds_datasets.splits(str(source), ("question", "answerKey")).items():
    rows = (
      (f"{source}, {split}, example {number}", _row(example))
      for number, example in enumerate(examples)
    )
    found[split] = question_rows.read(rows, split, rejected, keep=KEEP)
  question_rows.demand(found.get("train", []), rejected, f"{source}: train")
  return Splits(found, rejected)


def _row(example: Mapping[str, Any]) -> dict[str, Any]:
  """An example of TFDS as a row of the release."""
  asked = example["question"]
  choices = [
    {"label": key.removeprefix("choice_"), "text": asked[key].decode()}
    for key in sorted(asked)
    if key.startswith("choice_")
  ]
  return {
    "question": {"stem": asked["stem"].decode(), "choices": choices},
    "answerKey": int(example["answerKey"]),
    "fact1": example["fact1"].decode(),
  }


def _facts(source: str | None) -> Iterator[Passage]:
  """The facts that are there, perhaps none."""
  seen: set[str] = set()
  for kind, where, lines in _fact_lines(source):
    before = len(seen)
    for line, text in enumerate(lines, 1):
      fact = _unquoted(text)
      if fact and normalised(fact) not in seen:
        seen.add(normalised(fact))
        yield Passage(f"{kind}/{line}", "", fact)
    if len(seen) == before:
      raise InputError(f"{where}: there is no fact in the file")


def _fact_lines(source: str | None) -> Iterator[tuple[str, str, Iterable[str]]]:
  if tfds_datasets.is_named(source):
    facts = [
      example["fact1"].decode()
      for examples in tfds_datasets.splits(str(source), ("fact1",)).values()
      for example in examples
    ]
    yield "fact", str(source), sorted(set(facts))
    return
  release, _, within = _find(source)
  for kind, name in _FACTS.items():
    if file := release.find(re.escape(name), within):
      yield kind, release.where(file), release.text(file).splitlines()


def _find(source: str | None) -> tuple[Release, dict[str, str], str]:
  """The release, the file of each split, and what the path of its files matches."""
  if source is None:
    raise InputError("openbookqa: set the folder of its files (gin: SOURCE = '.../openbookqa')")
  release = Release(source)
  for within in _WITHIN:
    found = split_files(release, _FORMS, within)
    if "train" in found:
      return release, found, within
  raise InputError(
    f"{source}: no training questions in it; train_complete.jsonl or train.jsonl is looked for"
  )


def _with_gold(question: Question, known: Mapping[str, str]) -> Question:
  gold = known.get(normalised(str(question.extra.get("fact1", ""))))
  return dataclasses.replace(question, gold=(gold,) if gold else ())


def _unquoted(text: str) -> str:
  """A fact without the double quotes that openbook.txt puts around each line."""
  text = text.translate(_QUOTES).strip()
  if len(text) > 1 and text[0] == text[-1] == '"':
    text = text[1:-1].strip()
  return text


registry.register(
  "openbookqa",
  questions=questions,
  passages=passages,
  teacher=teacher,
  exemplars=OPENBOOKQA,
  published={"train": 4_957, "validation": 500, "test": 500},
  extra_ids=100,
)
