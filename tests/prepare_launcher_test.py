"""Preparing: which training questions become those of other splits, which are kept, the counts."""

import dataclasses
import json

import pytest

from kard_jax import questions as questions_lib
from kard_jax.core.files import InputError
from kard_jax.core.provenance import Stage
from kard_jax.questions import Question
from launch import prepare
from tasks import splitting
from tasks.dataset import Dataset
from tasks.question_rows import Rejected, Splits

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
  with pytest.raises(InputError, match="36 test questions cannot come from 36 training"):
    made(test_questions=36)


def test_test_questions_from_training_ones_take_the_place_of_the_datasets(made):
  given = {"train": TRAIN[2:], "test": TRAIN[:2]}
  assert [q.id for q in made(given)["test"]] == ["q0", "q1"]
  asked = made(given, test_questions=5)
  assert len(asked["test"]) == 5
  assert not {"q0", "q1"} & {q.id for some in asked.values() for q in some}


def test_what_is_left_out_is_counted(made, tmp_path, capsys):
  again = [dataclasses.replace(TRAIN[3], id="again"), dataclasses.replace(TRAIN[4], id="twice")]
  shouted = dataclasses.replace(TRAIN[5], id="shouted", question="QUESTION  5?")
  swapped = dataclasses.replace(TRAIN[6], id="swapped", options=("no", "yes"))
  rejected = [Rejected("train", "train.jsonl:9", "no label", "no label under x")]
  splits = made(
    Splits(
      {
        "train": [*TRAIN, again[1]],
        "validation": [shouted],
        "test": [again[0], swapped],
      },
      rejected,
      ["a note"],
    )
  )
  assert {q.id for q in TRAIN} - {q.id for q in splits["train"]} == {"q3", "q5"}
  assert [q.id for q in splits["test"]] == ["again", "swapped"]
  counts = json.loads((tmp_path / "prepared.json").read_text())
  assert counts["splits"]["train"] == {
    "rows": 42, "questions": 41, "left out": 3, "written": 39, "published": None,
  }  # fmt: skip
  assert counts["rejected"] == {
    "no label": 1, "it stands in test too": 1, "it stands in validation too": 1,
  }  # fmt: skip
  assert counts["rejected rows"][0]["where"] == "train.jsonl:9"
  assert counts["repeats"]["within a split"]["train"] == 1
  assert counts["repeats"]["in train and held out, options in another order"] == 1
  assert counts["options"] == {"2": 42}
  out = capsys.readouterr().out
  assert "1 rows are left out: no label" in out
  assert "a note" in out


def test_questions_with_the_same_text_are_held_out_together():
  twins = [dataclasses.replace(q, id=f"{q.id}-twin", options=("no", "yes")) for q in TRAIN]
  for count in (1, 2, 15, 40):
    stay, held = splitting.hold_out([*TRAIN, *twins], count)
    assert len(held) == count - count % 2
    assert not {q.question for q in stay} & {q.question for q in held}
    mixed = splitting.hold_out([*twins, *TRAIN], count)[1]
    assert {q.id for q in mixed} == {q.id for q in held}
