"""Preparing: which training questions become those of other splits, and which are kept."""

import pytest

from kard_jax import questions as questions_lib
from kard_jax.core.files import InputError
from kard_jax.core.provenance import Stage
from kard_jax.questions import Question
from launch import prepare
from tasks.dataset import Dataset

TRAIN = [Question(f"q{i}", f"Question {i}?", ("yes", "no"), i % 2) for i in range(40)]


@pytest.fixture
def made(tmp_path):
  def make(splits=None, **settings):
    dataset = Dataset("some", lambda *_: splits or {"train": TRAIN}, lambda *_: iter(()))
    with Stage("prepare", tmp_path, {}).running() as stage:
      prepare.prepare(stage, dataset=dataset, **settings)
    names = ("train", "validation", "test")
    paths = {name: tmp_path / f"questions/{name}.jsonl" for name in names}
    return {n: questions_lib.read(path) for n, path in paths.items() if path.exists()}

  return make


def test_test_questions_come_from_training_and_nothing_is_lost(made):
  splits = made(test_questions=6)
  assert {name: len(some) for name, some in splits.items()} == {
    "train": 30,
    "validation": 4,
    "test": 6,
  }
  assert sorted(q.id for some in splits.values() for q in some) == sorted(q.id for q in TRAIN)
  assert [q.id for q in splits["train"]] == [q.id for q in TRAIN if q in splits["train"]]
  assert made(test_questions=6) == splits


def test_fewer_training_questions_are_among_those_of_more(made):
  ten, twenty, every = (made(train_questions=n)["train"] for n in (10, 20, None))
  assert [len(some) for some in (ten, twenty, every)] == [10, 20, 36]
  assert {q.id for q in ten} < {q.id for q in twenty} < {q.id for q in every}
  assert made(train_questions=10)["validation"] == made()["validation"]
  assert len(made(train_questions=10_000)["train"]) == 36


def test_splits_that_cannot_be(made):
  with pytest.raises(InputError, match="TEST_QUESTIONS = 5: some has 2 test questions already"):
    made({"train": TRAIN[2:], "test": TRAIN[:2]}, test_questions=5)
  with pytest.raises(InputError, match="36 test questions cannot come from 36 training"):
    made(test_questions=36)
  assert len(made({"train": TRAIN[2:], "test": TRAIN[:2]})["test"]) == 2
