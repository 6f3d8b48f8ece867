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

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence

from kard_jax import questions as questions_lib
from kard_jax.core.files import InputError
from kard_jax.core.provenance import Stage
from kard_jax.questions import Question
from tasks import registry, vocabularies


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
  """Writes `questions/<split>.jsonl` and, for a size above 0, `vocabulary/sentencepiece.model`.

  Args:
    stage: the work directory and the record.
    dataset: what to read.
    vocabulary_size: pieces of a SentencePiece vocabulary trained on the passages and the training
      questions; 0 trains none (the dataset brings its own).
    held_out: the share of training questions that become validation questions where the dataset has
      none; they are drawn by a hash of the id, so the same ones each time.
    held_out_at_most: at most so many.
    test_questions: so many training questions become test questions instead, where the dataset has
      none: unlike those of a release, they may have a teacher's rationales, and so silver passages.
    train_questions: at most so many training questions are kept; they are among those of a larger
      number. The vocabulary is of all, so that it is the same one.

  Raises:
    InputError: as `Dataset.read_questions` and `read_passages`; little text for the vocabulary;
      more test questions than there are, or test questions that the dataset has already.
  """
  stage.reads_outside(dataset.inputs())
  splits = dataset.read_questions()
  if "validation" not in splits:
    count = min(held_out_at_most, int(held_out * len(splits["train"])))
    splits = _hold_out(splits, "validation", count)
  if test_questions and "test" in splits:
    raise InputError(
      f"TEST_QUESTIONS = {test_questions}: {dataset.name} has {len(splits['test'])} test questions "
      "already; set it to 0"
    )
  splits = _hold_out(splits, "test", test_questions)
  all_training = splits["train"]
  if train_questions is not None:
    splits |= {"train": _first(all_training, train_questions)}
  for split, rows in splits.items():
    questions_lib.write(stage.writes(f"questions/{split}.jsonl"), rows)
    print(f"{len(rows):>7,} {split} questions", flush=True)
  if vocabulary_size:
    path = stage.writes("vocabulary/sentencepiece.model")
    texts = _texts(dataset, all_training)
    size = vocabularies.train_sentencepiece(texts, path, vocabulary_size, model_type="bpe")
    print(f"{size:>7,} pieces in the vocabulary", flush=True)


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


def _hold_out(
  splits: Mapping[str, list[Question]], split: str, count: int
) -> dict[str, list[Question]]:
  """Makes some of the training questions those of another split."""
  train = splits["train"]
  if count >= len(train):
    raise InputError(f"{count} {split} questions cannot come from {len(train)} training questions")
  chosen = {q.id for q in _first(train, count)}
  if not chosen:
    return dict(splits)
  print(f"{count:>7,} of the training questions are held out for {split}", flush=True)
  return {
    **splits,
    "train": [q for q in train if q.id not in chosen],
    split: [q for q in train if q.id in chosen],
  }


def _first(questions: Sequence[Question], count: int) -> list[Question]:
  """The same ones each time, whichever others there are: by a hash of the id; in their order."""
  by_hash = sorted(questions, key=lambda q: hashlib.sha256(q.id.encode()).hexdigest())
  chosen = {q.id for q in by_hash[:count]}
  return [q for q in questions if q.id in chosen]
