"""Rows of every known form, and why others are left out."""

import pytest

from kard_jax.core.files import InputError
from tasks import question_rows
from tasks.question_rows import YES_NO

METALS = ("tin", "iron", "zinc")
BY_LETTER = [{"text": text, "label": key} for key, text in zip("ABC", METALS, strict=True)]
BY_NUMBER = [{"text": text, "label": key} for key, text in zip("123", METALS, strict=True)]
ENDINGS = {f"ending{number}": text for number, text in enumerate(METALS)}


@pytest.mark.parametrize(
  "row",
  [
    {"sent1": "Q?", **ENDINGS, "label": 1},
    {"sent1": "Q?", "sent2": "", **ENDINGS, "ending3": "", "label": "1"},
    {"sent1": "Q?", **ENDINGS, "ending3": None, "ending4": float("nan"), "label": 1.0},
    {"question": "Q?", "options": {"C": "zinc", "A": "tin", "B": "iron"}, "answer_idx": "B"},
    {"question": "Q?", "options": {"A": "tin", "B": "iron", "C": "zinc"}, "answer": "Iron"},
    {"question": "Q?", "options": ["tin", "iron", "zinc"], "label": "b"},
    {
      "question": "Q?",
      "options": [{"key": row["label"], "value": row["text"]} for row in BY_LETTER],
      "answer_idx": "B",
      "answer": "iron",
    },
    {"question": {"stem": "Q?", "choices": BY_LETTER}, "answerKey": "B"},
    {"question": {"stem": "Q?", "choices": BY_NUMBER}, "answerKey": "2"},
    {
      "question_stem": "Q?",
      "choices": {"text": list(METALS), "label": ["A", "B", "C"]},
      "answerKey": "B",
    },
  ],
)
def test_every_form_is_the_same_question(row):
  question = question_rows.of_row(row, "f:1", "q")
  assert (question.question, question.options, question.label) == ("Q?", METALS, 1)


@pytest.mark.parametrize(
  ("answer", "label"), [(True, 0), (False, 1), ("true", 0), ("No", 1), ("yes", 0)]
)
def test_yes_or_no(answer, label):
  row = {"qid": 7, "question": "Q?", "answer": answer, "facts": ["f"], "term": ""}
  (question,) = question_rows.read(
    [("f:1", row)], "train", [], keep=("facts", "term"), options=YES_NO
  )
  assert (question.id, question.options, question.label) == ("7", YES_NO, label)
  assert question.extra == {"facts": ["f"]}


GOOD = {"question": "Q?", "options": ["tin", "iron"], "label": 0}


@pytest.mark.parametrize(
  ("change", "reason"),
  [
    ({"question": " "}, "no question"),
    ({"question": None}, "no question"),
    ({"question": {"choices": []}}, "no question"),
    ({"options": ["tin", " "]}, "an option is empty"),
    ({"options": ["tin"]}, "the number of options"),
    ({"options": [f"o{i}" for i in range(27)]}, "the number of options"),
    ({"options": None}, "no options"),
    ({"label": None}, "no label"),
    ({"label": -1}, "no label"),
    ({"label": 2}, "the label names no option"),
    ({"label": "E"}, "the label names no option"),
    ({"label": True}, "the label names no option"),
    ({"question": "\ud800"}, "not a valid question"),
  ],
)
def test_what_is_left_out_and_why(change, reason):
  rejected = []
  rows = [("f:1", GOOD), ("f:2", GOOD | change), ("f:3", GOOD)]
  found = question_rows.read(rows, "dev", rejected)
  assert [question.id for question in found] == ["dev-00000", "dev-00002"]  # ids are rows'
  ((split, where, why, detail),) = rejected
  assert (split, where, why) == ("dev", "f:2", reason)
  assert detail


def test_an_id_that_stands_twice():
  rejected = []
  rows = [("f:1", GOOD | {"id": 5}), ("f:2", GOOD | {"id": "5"})]
  assert len(question_rows.read(rows, "train", rejected)) == 1
  assert rejected[0].detail == "the id '5' is that of f:1"
  with pytest.raises(InputError, match=r"train: no row .*the first of 1: f:2: the id '5'"):
    question_rows.demand([], rejected, "train")
