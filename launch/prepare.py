"""Puts a dataset's questions, and a vocabulary if it has none, into a work directory.

Example:
  python launch/prepare.py --gin_file=gin_configs/recipes/quickstart/1_prepare.gin
"""

from __future__ import annotations

if __name__ == "__main__":  # run the module gin can import, with the project's root on the path
  import pathlib
  import sys

  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])
  from kard_jax.core import config

  sys.exit(config.launch("prepare", __doc__ or ""))

import collections
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from kard_jax import questions as questions_lib
from kard_jax.core import files
from kard_jax.core.files import InputError
from kard_jax.core.provenance import Stage
from kard_jax.questions import Question
from tasks import registry, splitting, vocabularies
from tasks.question_rows import Splits
from tasks.workdir import SPLITS


def prepare(
  stage: Stage,
  *,
  dataset: registry.Dataset,
  vocabulary_size: int = 0,
  held_out: float = 0.1,
  held_out_at_most: int = 500,
  test_questions: int = 0,
  train_questions: int | None = None,
) -> None:
  """Writes `questions/<split>.jsonl`, `prepared.json`, and perhaps a vocabulary.

  No question stands in two splits: what does is left out of train (or, if it is in test, of
  validation). `prepared.json` counts what was read, left out (and why, row by row), held out and
  written.

  Args:
    stage: the work directory and the record.
    dataset: what to read.
    vocabulary_size: pieces of a SentencePiece vocabulary trained on the passages and the training
      questions, `vocabulary/sentencepiece.model`; 0 trains none (the dataset brings its own).
    held_out: the share of training questions that become validation questions where the dataset has
      none; they are drawn by a hash of the id, so the same ones each time.
    held_out_at_most: at most so many.
    test_questions: so many training questions become the test questions, in place of the dataset's:
      unlike those of a release, they may have a teacher's rationales, and so silver passages.
    train_questions: at most so many training questions are kept; they are among those of a larger
      number. The vocabulary is of all, so that it is the same one.

  Raises:
    InputError: as `Dataset.read_questions` and `read_passages`; little text for the vocabulary;
      more test questions than there are.
  """
  stage.reads_outside(dataset.inputs())
  read = dataset.read_questions()
  splits = splitting.without_repeats(read)
  if "validation" not in splits:
    count = min(held_out_at_most, int(held_out * len(splits["train"])))
    splits = _hold_out(splits, "validation", count)
  if test_questions:
    splits = _hold_out(splits, "test", test_questions)
  all_training = splits["train"]
  if train_questions is not None and train_questions < len(all_training):
    splits["train"] = splitting.first(all_training, train_questions)
    splits.notes.append(f"{train_questions:,} of {len(all_training):,} training questions are kept")
  for split, rows in splits.items():
    questions_lib.write(stage.writes(f"questions/{split}.jsonl"), rows)
  counted = _counts(dataset, read, splits)
  files.write_json(stage.writes("prepared.json"), counted)
  _show(counted)
  if vocabulary_size:
    path = stage.writes("vocabulary/sentencepiece.model")
    texts = _texts(dataset, all_training)
    size = vocabularies.train_sentencepiece(texts, path, vocabulary_size, model_type="bpe")
    print(f"{size:>7,} pieces in the vocabulary", flush=True)


def _hold_out(splits: Splits, split: str, count: int) -> Splits:
  """Makes some of the training questions those of another split."""
  train = splits["train"]
  if count >= len(train):
    raise InputError(f"{count} {split} questions cannot come from {len(train)} training questions")
  stay, chosen = splitting.hold_out(train, count)
  if not chosen:
    return splits
  notes = [*splits.notes, f"{len(chosen):,} of the training questions are held out for {split}"]
  if split in splits:
    notes.append(f"the dataset's own {len(splits[split]):,} {split} questions are not used")
  return Splits(splits | {"train": stay, split: chosen}, splits.rejected, notes)


def _counts(dataset: registry.Dataset, read: Splits, written: Splits) -> dict[str, Any]:
  """What `prepared.json` says."""
  left_out = collections.Counter(row.split for row in written.rejected)
  damaged = collections.Counter(row.split for row in read.rejected)
  published = dict(dataset.published)
  return {
    "dataset": dataset.name,
    "splits": {
      split: {
        "rows": len(read.get(split, ())) + damaged[split],
        "questions": len(read.get(split, ())),
        "left out": left_out[split],
        "written": len(written.get(split, ())),
        "published": published.get(split),
      }
      for split in SPLITS
    },
    "options": {
      str(size): count
      for size, count in sorted(
        collections.Counter(len(q.options) for some in written.values() for q in some).items()
      )
    },
    "rejected": dict(collections.Counter(row.reason for row in written.rejected).most_common()),
    "repeats": splitting.repeats(written),
    "notes": list(written.notes),
    "rejected rows": [row._asdict() for row in written.rejected],
  }


def _texts(dataset: registry.Dataset, train: Sequence[Question]) -> Iterator[str]:
  """What a student reads: prompts as it will see them (with any passage), and every passage.

  BPE, because unigram makes a piece of each name that it has seen often, and letters of others.
  """
  passages = list(dataset.read_passages())
  for question, passage in zip(train, itertools.cycle(passages), strict=False):
    yield dataset.prompts.student_input(question, (passage,))
    yield dataset.prompts.student_target(question, None)
    yield dataset.prompts.reranker_query(question)
  for passage in passages:
    yield dataset.prompts.passage_text(passage)


def _show(counted: dict[str, Any]) -> None:
  for split, row in counted["splits"].items():
    if not row["written"]:
      continue
    told, published = "", row["published"]
    if published is not None:
      told = f" (of {row['questions']:,} read; {published:,} were published)"
    print(f"{row['written']:>7,} {split} questions{told}", flush=True)
  for reason, count in counted["rejected"].items():
    print(f"{count:>7,} rows are left out: {reason}", flush=True)
  for what, count in counted["repeats"].items():
    total = sum(count.values()) if isinstance(count, dict) else count
    if total:
      print(f"{total:>7,} questions repeat another, {what}: they stay", flush=True)
  for note in counted["notes"]:
    print(f"        {note}", flush=True)
