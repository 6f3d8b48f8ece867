import dataclasses
import json

import pytest

from kard_jax import teacher
from kard_jax.core.files import InputError
from kard_jax.judge import StatedAnswer, Verdict
from kard_jax.prompts import Prompts
from kard_jax.questions import Question
from kard_jax.teacher import RecordedTeacher, teach

PROMPTS = Prompts()
QUESTIONS = [
  Question("q1", "Which metal?", ("iron", "tin"), 1),
  Question("q2", "Is it heavy?", ("yes", "no"), 0),
]
COMPLETIONS = {
  "q1": [
    " It mines tin.\nAnswer: B\n",
    "It mines iron.\nAnswer: A",
    "It mines  something.",
    "",
    " \n",
    "Answer: B",
    "It mines tin. Answer: B",
    "It mines iron.\nAnswer: B",
    "It mines tin. Answer: A",
  ],
  "q2": ["Iron is heavy, so the answer is (A)."],
}


def _rows(judge, samples=10):
  return list(teach(QUESTIONS, RecordedTeacher(COMPLETIONS, "gpt"), PROMPTS, samples, judge))


def test_rationales_are_cleaned_judged_and_explained():
  rows = _rows(StatedAnswer())
  assert [(row["rationale"], row["kept"], row["reason"]) for row in rows] == [
    ("It mines tin.", True, "states the gold answer"),
    ("It mines iron.", False, "states another answer"),
    ("It mines  something.", False, "states no answer"),
    ("", False, "empty"),
    ("", False, "empty"),
    ("", False, "empty"),  # nothing but an answer
    ("It mines tin.", False, "duplicate"),
    ("It mines iron.", True, "states the gold answer"),  # the first one was not kept
    ("It mines tin.", False, "states another answer"),
    ("Iron is heavy, so the answer is (A).", True, "states the gold answer"),
  ]
  assert [row["sample"] for row in rows] == [*range(9), 0]
  assert {row["question_id"] for row in rows[:9]} == {"q1"}
  assert {row["teacher"] for row in rows} == {"gpt"}


def test_unstated_rationales_may_be_kept():
  kept = {row["rationale"]: row["kept"] for row in _rows(StatedAnswer(keep_unstated=True))}
  assert kept["It mines  something."]
  assert not kept[""]


def test_another_judge_may_decide():
  def short(cases):
    assert {case.question.id for case in cases} <= {"q1", "q2"}
    return [Verdict(len(case.parsed.rationale) < 14, "short") for case in cases]

  kept = [row["rationale"] for row in _rows(short) if row["kept"]]
  assert kept == ["It mines tin."]


def test_samples_bound_what_is_asked_for():
  assert [row["sample"] for row in _rows(StatedAnswer(), samples=2)] == [0, 1, 0]


def test_rows_come_as_the_teacher_answers():
  """A launcher writes as it goes: the second question must not be asked before it is needed."""
  rows = teach([QUESTIONS[0], Question("q3", "?", ("a", "b"), 0)],
               RecordedTeacher(COMPLETIONS, "gpt"), PROMPTS, 1, StatedAnswer())  # fmt: skip
  assert next(rows)["question_id"] == "q1"
  with pytest.raises(InputError, match="teacher gpt: no completions for the question 'q3'"):
    next(rows)


def _write(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def test_rationales_read_back(tmp_path):
  rows = _rows(StatedAnswer())
  path = _write(tmp_path / "rationales.jsonl", rows)
  assert teacher.read_rationales(path, QUESTIONS) == rows


def test_a_file_from_elsewhere_needs_two_fields(tmp_path):
  given = [
    {"question_id": id, "rationale": text, "note": 1}
    for id, text in (("q1", "a"), ("q2", "b"), ("q1", "c"))
  ]
  rows = teacher.read_rationales(_write(tmp_path / "r.jsonl", given), QUESTIONS)
  assert [(row["question_id"], row["sample"], row["kept"], row["note"]) for row in rows] == [
    ("q1", 0, True, 1),
    ("q2", 0, True, 1),
    ("q1", 1, True, 1),
  ]


GOOD = {
  "question_id": "q1",
  "sample": 0,
  "rationale": "r",
  "teacher": "t",
  "kept": True,
  "reason": "",
}


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"question_id": "q9"}, "a rationale for the unknown question 'q9'"),
    ({"question_id": 1}, '"question_id" must be str'),
    ({"rationale": None}, '"rationale" must be str'),
    ({"rationale": " "}, "the rationale is empty"),
    ({"sample": "1"}, '"sample" must be int'),
    ({"sample": True}, '"sample" must be int'),
    ({"kept": 1}, '"kept" must be bool'),
    ({"sample": 0}, "sample 0 of question 'q1' is already on line 1"),
  ],
)
def test_bad_rationales_name_file_and_line(tmp_path, change, message):
  path = _write(tmp_path / "r.jsonl", [GOOD, GOOD | {"sample": 1} | change])
  with pytest.raises(InputError, match=f"r.jsonl:2: .*{message}"):
    teacher.read_rationales(path, QUESTIONS)


@pytest.mark.parametrize("name", ["question_id", "rationale"])
def test_a_missing_field_is_named(tmp_path, name):
  path = _write(tmp_path / "r.jsonl", [{key: GOOD[key] for key in GOOD if key != name}])
  with pytest.raises(InputError, match=f'r.jsonl:1: the field "{name}" is missing'):
    teacher.read_rationales(path, QUESTIONS)


def test_an_empty_file_is_an_error(tmp_path):
  with pytest.raises(InputError, match="no rationale"):
    teacher.read_rationales(_write(tmp_path / "r.jsonl", []), QUESTIONS)


def test_a_teacher_needs_name_and_call():
  @dataclasses.dataclass(frozen=True)
  class Mute:
    name: str = "mute"

    def __call__(self, question: Question, samples: int) -> list[str]:
      return []

  assert isinstance(Mute(), teacher.Teacher)
  assert list(teach(QUESTIONS, Mute(), PROMPTS, 3, StatedAnswer())) == []
