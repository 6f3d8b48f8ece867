import json
import math

import pytest

from kard_jax import judge
from kard_jax.answer_parser import Parsed
from kard_jax.core.files import InputError
from kard_jax.exemplars import Exemplar
from kard_jax.judge import Case, FirstToKeep, LanguageModel, StatedAnswer, Verdict
from kard_jax.prompts import Prompts
from kard_jax.questions import Question
from kard_jax.teacher import RecordedTeacher, teach

PROMPTS = Prompts()
Q1 = Question("q1", "Which metal?", ("iron", "tin"), 1)
Q2 = Question("q2", "Is it heavy?", ("yes", "no", "maybe"), 0)
EXEMPLAR = Exemplar(Question("e", "Which gas?", ("air", "iron"), 0), "Iron is no gas.")


def likes(letters):
  """Scores that prefer a letter by the prompt's rationale."""

  def scores(prompts):
    rows = []
    for prompt in prompts:
      row = [-3.0] * 26
      for word, letter in letters.items():
        if prompt.endswith(f"{word} So, the answer is "):
          row["ABCDEFGHIJKLMNOPQRSTUVWXYZ".index(letter)] = -1.0
      rows.append(row)
    return rows

  return scores


def test_a_language_model_keeps_what_leads_it_to_gold():
  model = LanguageModel(likes({"tin.": "B", "air.": "A", "far.": "Z"}), PROMPTS, [EXEMPLAR])
  cases = [Case(Q1, Parsed(text, None)) for text in ("It is tin.", "It is air.", "It is far.")]
  verdicts = model(cases)
  assert [verdict.kept for verdict in verdicts] == [True, False, False]
  assert [verdict.reason for verdict in verdicts] == [
    "the judge picks the gold option",
    "the judge picks another option",
    "the judge picks another option",
  ]
  share = 1 / (1 + math.exp(-2))  # of two options, whatever other letters say
  assert verdicts[0].details == {"judge": {"option": 1, "probability": round(share, 4)}}
  assert verdicts[2].details == {"judge": {"option": 0, "probability": 0.5}}


def test_the_model_reads_examples_question_and_rationale():
  seen = []

  def scores(prompts):
    seen.extend(prompts)
    return [[0.0, 1.0]] * len(prompts)

  LanguageModel(scores, PROMPTS, [EXEMPLAR])([Case(Q1, Parsed("It is tin.", None))])
  assert seen == [PROMPTS.judge(Q1, "It is tin.", [EXEMPLAR])]
  assert "Which gas?" in seen[0]


def test_a_model_without_enough_letters_is_an_error():
  model = LanguageModel(lambda prompts: [[0.0, 0.0]] * len(prompts), PROMPTS)
  with pytest.raises(InputError, match="question 'q2' has 3 options, and the judge's vocab"):
    model([Case(Q2, Parsed("It is.", None))])


def test_the_next_judge_sees_what_the_first_rejects():
  seen = []

  def second(cases):
    seen.extend(case.parsed.rationale for case in cases)
    return [Verdict(case.parsed.rationale == "b", "second") for case in cases]

  cases = [Case(Q1, Parsed(*pair)) for pair in (("a", 1), ("b", None), ("c", 0))]
  verdicts = FirstToKeep([StatedAnswer(), second])(cases)
  assert [(verdict.kept, verdict.reason) for verdict in verdicts] == [
    (True, "states the gold answer"),
    (True, "second"),
    (False, "second"),
  ]
  assert seen == ["b", "c"]
  assert FirstToKeep([StatedAnswer(), second])(cases[:1])[0].kept
  assert seen == ["b", "c"]


def test_counts_at_each_filter():
  completions = {
    "q1": ["It is tin.\nAnswer: B", "It is tin.\nAnswer: B", "It is air.\nAnswer: A", ""],
    "q2": ["So it is.", "Perhaps it is."],
  }
  model = LanguageModel(likes({"So it is.": "A", "Perhaps it is.": "C", "air.": "A"}), PROMPTS)
  rows = list(
    teach(
      [Q1, Q2],
      RecordedTeacher(completions),
      PROMPTS,
      5,
      FirstToKeep([StatedAnswer(), model]),
      batch=2,
    )
  )
  assert [row["stated"] for row in rows] == [1, 1, 0, None, None, None]
  assert [row.get("judge", {}).get("option") for row in rows] == [None, None, 0, None, 0, 2]
  found = judge.counts(rows, [Q1, Q2], 5)
  assert found == {
    "asked": 10,
    "answered": 6,
    "empty": 1,
    "parsed": 3,
    "answer_match": 2,
    "judged": 3,
    "judge_match": 1,
    "kept": 2,
    "questions": 2,
    "questions_with_rationale": 2,
    "reasons": {
      "kept": {"states the gold answer": 1, "the judge picks the gold option": 1},
      "rejected": {"the judge picks another option": 2, "duplicate": 1, "empty": 1},
    },
  }
  assert judge.counts(rows, [Q2], 5)["answered"] == 2
  text = judge.table({"train": found, "test": judge.counts(rows, [Q2], 5)})
  lines = {line[:40].strip(): line[40:].split() for line in text.splitlines()}
  assert lines[""] == ["train", "test"]
  assert lines["answered"] == ["6", "2"]
  assert lines["lead the judge to gold"] == ["1", "1"]
  assert "rejected: duplicate" in text
  json.dumps(found)
