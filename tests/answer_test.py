"""Answering: what reaches the student, what a row records, who wins a vote, what a file holds."""

import itertools
import json
import time
from collections import Counter

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from kard_jax import answer
from kard_jax.answer import Scored, Written
from kard_jax.compose import Prompt
from kard_jax.core import files
from kard_jax.core.files import InputError
from kard_jax.prompts import Prompts
from kard_jax.questions import Question
from kard_jax.retrieval.passages import Passage

PROMPTS = Prompts()
QUESTIONS = [
  Question(f"q{i}", f"Which metal is dug up near X{i}?", ("tin", "iron", "gold"), i % 3)
  for i in range(7)
]
PASSAGES = [Passage(f"p{i}", f"Title {i}", f"text of {i}") for i in range(30)]


def bm25(questions, k):
  """The i-th question finds i passages, and no more: the first finds none."""
  return [
    [Scored(p, 30.0 - n) for n, p in enumerate(PASSAGES[: int(q.id[1:])][:k])] for q in questions
  ]


def every(questions, k):
  return [[Scored(p, 30.0 - n) for n, p in enumerate(PASSAGES[:k])] for _ in questions]


def backwards(questions, candidates):
  assert len(questions) == len(candidates)
  return [
    [Scored(s.passage, float(n)) for n, s in enumerate(ranking)][::-1] for ranking in candidates
  ]


class Student:
  """Answers B every time, and remembers what it was given."""

  def __init__(self, output="Because.\nAnswer: B"):
    self.read = []
    self.output = output

  def __call__(self, texts, samples):
    self.read += texts
    return [[self.output] * samples for _ in texts]


def run(retrieve=None, rerank=None, generate=None, questions=QUESTIONS, **keywords):
  """The rows; what a question took is another number each time, so it stays out of them."""
  rows = answer.answer(
    questions,
    prompts=PROMPTS,
    retrieve=retrieve,
    rerank=rerank,
    generate=generate or Student(),
    **keywords,
  )
  return [{name: row[name] for name in row if name != "seconds"} for row in rows]


def test_without_a_retriever_the_prompt_is_the_question():
  student = Student()
  rows = run(generate=student)
  assert student.read == [PROMPTS.student_input(q) for q in QUESTIONS]
  assert rows[1] == {
    "question_id": "q1",
    "passages": [],
    "retrieved": [],
    "samples": [{"rationale": "Because.", "answer": 1}] * 5,
    "answer": 1,
    "label": 1,
  }


def test_the_best_passages_are_read_and_ten_are_recorded():
  student = Student()
  rows = run(every, generate=student, passages=2)
  assert student.read == [PROMPTS.student_input(q, PASSAGES[:2]) for q in QUESTIONS]
  assert all(row["passages"] == ["p0", "p1"] for row in rows)
  assert rows[0]["retrieved"] == [{"id": f"p{i}", "score": 30.0 - i} for i in range(10)]


def test_more_passages_than_ten_are_all_recorded():
  row = run(every, passages=12)[0]
  assert len(row["retrieved"]) == len(row["passages"]) == 12


def test_the_reranker_decides_what_is_read():
  student, asked = Student(), []

  def retrieve(questions, k):
    asked.append(k)
    return every(questions, k)

  rows = run(retrieve, backwards, student, candidates=20)
  assert asked == [20]
  assert student.read == [PROMPTS.student_input(q, [PASSAGES[19]]) for q in QUESTIONS]
  assert rows[0]["passages"] == ["p19"]
  assert [p["id"] for p in rows[0]["retrieved"]] == [f"p{i}" for i in range(19, 9, -1)]
  assert rows[0]["retrieved"] != run(retrieve, None, student, candidates=20)[0]["retrieved"]


def test_the_order_before_reranking_is_recorded():
  row = run(every, backwards, candidates=20)[0]
  assert [p["id"] for p in row["retrieved_before"]] == [f"p{i}" for i in range(10)]
  assert row["retrieved_before"][0]["score"] == 30.0
  assert "retrieved_before" not in run(every)[0]


def test_prompts_are_composed_and_what_is_known_of_them_is_recorded():
  student = Student()

  def compose(questions, passages):
    assert [len(found) for found in passages] == [2] * len(questions)
    return [Prompt(f"Asked: {q.id}", 40 + i, i, 3) for i, q in enumerate(questions)]

  rows = run(every, generate=student, compose=compose, passages=2)
  assert student.read == [f"Asked: q{i}" for i in range(7)]
  assert [rows[2][name] for name in ("prompt_tokens", "cut_tokens", "exemplars")] == [42, 2, 3]
  assert not {"prompt_tokens", "cut_tokens", "exemplars"} & set(run(every)[0])


def test_a_batch_shares_the_time_that_it_took():
  def slow(texts, samples):
    time.sleep(0.07)
    return Student()(texts, samples)

  rows = list(
    answer.answer(QUESTIONS, prompts=PROMPTS, retrieve=None, rerank=None, generate=slow, batch=4)
  )
  assert 0.07 / 4 <= rows[0]["seconds"] == rows[3]["seconds"] < rows[4]["seconds"]
  assert 0.07 / 3 <= rows[6]["seconds"] < 1


def test_what_a_sample_is_worth_is_recorded_where_it_is_known():
  texts = [Written("Answer: A", -1.23456, 4), Written("Answer: B", None, 5), "Answer: C"]
  row = run(generate=lambda prompts, samples: [texts for _ in prompts], samples=3)[0]
  assert row["samples"] == [
    {"rationale": "", "answer": 0, "log_prob": -1.2346, "tokens": 4},
    {"rationale": "", "answer": 1, "tokens": 5},
    {"rationale": "", "answer": 2},
  ]


def test_short_and_empty_lists():
  student = Student()
  for rerank in (None, backwards):
    rows = run(bm25, rerank, student, passages=3)
    assert [len(row["passages"]) for row in rows] == [0, 1, 2, 3, 3, 3, 3]
    assert [len(row["retrieved"]) for row in rows] == [0, 1, 2, 3, 4, 5, 6]
  assert student.read[0] == PROMPTS.student_input(QUESTIONS[0])


def test_silver_is_a_retriever_that_looks_up():
  silver = {q.id: [Scored(PASSAGES[20 + i], 9.0)] for i, q in enumerate(QUESTIONS)}
  rows = run(lambda questions, k: [silver[q.id][:k] for q in questions])
  assert [row["passages"] for row in rows] == [[f"p{20 + i}"] for i in range(7)]


def test_questions_are_taken_a_batch_at_a_time():
  sizes, taken = [], itertools.count()

  def questions():
    for i in itertools.count():
      next(taken)
      yield Question(f"q{i}", "Which?", ("a", "b"), 0)

  def retrieve(chunk, k):
    sizes.append(len(chunk))
    return every(chunk, k)

  rows = answer.answer(
    questions(), prompts=PROMPTS, retrieve=retrieve, rerank=None, generate=Student(), batch=4
  )
  assert sizes == []  # nothing is read before a row is wanted
  assert [row["question_id"] for row in itertools.islice(rows, 5)] == [f"q{i}" for i in range(5)]
  assert sizes == [4, 4]
  assert next(taken) == 8


@pytest.mark.parametrize("batch", [1, 3, 7, 100])
def test_the_batch_changes_no_row(batch):
  assert run(bm25, backwards, batch=batch) == run(bm25, backwards)


def test_unparsed_samples_are_kept_and_do_not_vote():
  texts = ["", "cell A", "Answer: C", "It is so.\nAnswer: Z", "Answer: C"]
  row = run(generate=lambda prompts, samples: [texts for _ in prompts])[0]
  assert [sample["answer"] for sample in row["samples"]] == [None, None, 2, None, 2]
  assert row["answer"] == 2
  row = run(generate=Student("no idea"))[0]
  assert row["answer"] is None
  assert row["samples"][0] == {"rationale": "no idea", "answer": None}


def test_rows_are_json_whatever_numbers_the_callables_return():
  numpy_scores = lambda questions, k: [[Scored(PASSAGES[0], np.float32(0.1))] for _ in questions]
  for row in run(numpy_scores):
    assert json.loads(json.dumps(row)) == row


@hypothesis.given(st.lists(st.none() | st.integers(0, 4), max_size=12))
def test_vote(answers):
  counts = Counter(a for a in answers if a is not None)
  winner = answer.vote(answers)
  if not counts:
    assert winner is None
    return
  best = [a for a in counts if counts[a] == max(counts.values())]
  assert winner == min(best, key=answers.index)


def test_a_tie_goes_to_the_answer_sampled_first():
  assert answer.vote([None, 2, 1, 1, 2]) == 2
  assert answer.vote([1, 2, 2, 1]) == 1
  assert answer.vote([3, 0, 0]) == 0
  assert answer.vote([None, None]) is None
  assert answer.vote([]) is None


@pytest.mark.parametrize(
  ("keywords", "says"),
  [
    ({"rerank": backwards}, "give `retrieve` too"),
    ({"samples": 0}, "`samples` is 0"),
    ({"passages": -1}, "`passages` is -1"),
    ({"candidates": 0, "retrieve": every}, "`candidates` is 0"),
    ({"batch": 0}, "`batch` is 0"),
    ({"retrieve": every, "rerank": backwards, "passages": 9, "candidates": 8}, "8 candidates"),
  ],
)
def test_what_cannot_be_meant_is_refused_at_the_call(keywords, says):
  with pytest.raises(InputError, match=says):
    answer.answer(
      QUESTIONS,
      prompts=PROMPTS,
      generate=Student(),
      **({"retrieve": None, "rerank": None} | keywords),
    )


def test_a_callable_that_loses_a_question_is_named():
  short = lambda questions, *_: [[Scored(PASSAGES[0], 1.0)] for _ in questions[1:]]
  with pytest.raises(ValueError, match="retrieve returned 6 lists for 7"):
    run(short)
  with pytest.raises(ValueError, match="rerank returned 6 lists for 7"):
    run(every, short)
  with pytest.raises(ValueError, match="compose returned 6 lists for 7"):
    run(compose=lambda questions, passages: [Prompt("Asked")] * 6)
  with pytest.raises(ValueError, match="generate returned 6 lists for 7"):
    run(generate=lambda texts, samples: [["Answer: A"] * samples for _ in texts[1:]])
  with pytest.raises(ValueError, match="4 samples for question 'q0'"):
    run(generate=lambda texts, samples: [["Answer: A"] * (samples - 1) for _ in texts])


# Reading rows back.


def test_read_gives_what_answer_yielded_in_the_order_of_the_questions(tmp_path):
  rows = run(bm25)
  files.write_jsonl(tmp_path / "rd.jsonl", reversed(rows))
  assert answer.read(tmp_path / "rd.jsonl", QUESTIONS) == rows


def broken(**changes):
  """The rows of a sound file, the third of them changed."""
  rows = run(bm25)
  rows[2] = rows[2] | changes
  return [{k: v for k, v in row.items() if v is not ...} for row in rows]


@pytest.mark.parametrize(
  ("rows", "says"),
  [
    (broken(question_id="zebra"), r"rd.jsonl:3: 'zebra' is none of the 7 questions"),
    (broken(question_id=...), r'rd.jsonl:3: "question_id" must be a text'),
    (broken(question_id="q1"), r"rd.jsonl:3: a second prediction for question 'q1'"),
    (broken(label=0), r"rd.jsonl:3: made when the label of 'q2' was 0; it is 2"),
    (broken(label=...), r"rd.jsonl:3: made when the label of 'q2' was None"),
    (broken(answer=3), r'rd.jsonl:3: "answer" must be null or .* one of the 3 options'),
    (broken(answer=True), r'rd.jsonl:3: "answer" must be null'),
    (broken(answer="B"), r'rd.jsonl:3: "answer" must be null'),
    (broken(answer=...), r'rd.jsonl:3: "answer" must be null'),
    (broken(passages=[7]), r'rd.jsonl:3: "passages" is not a list as'),
    (broken(passages=...), r'rd.jsonl:3: "passages" is not a list as'),
    (broken(retrieved=["p1"]), r'rd.jsonl:3: "retrieved" is not a list as'),
    (broken(samples="Answer: A"), r'rd.jsonl:3: "samples" is not a list as'),
    (broken(samples=[{"answer": 1}]), r'rd.jsonl:3: "samples" is not a list as'),
    (broken(samples=[{"rationale": "r", "answer": -1}]), r'rd.jsonl:3: "answer" must be null'),
    (broken()[2:], r"rd.jsonl: 2 of 7 questions have no prediction \(q0, q1\)"),
    (broken()[:2], r"rd.jsonl: 5 of 7 questions have no prediction \(q2, q3, q4, \.\.\.\)"),
    ([], r"rd.jsonl: 7 of 7 questions have no prediction"),
  ],
)
def test_a_broken_file_is_refused_with_its_line(tmp_path, rows, says):
  files.write_jsonl(tmp_path / "rd.jsonl", rows)
  with pytest.raises(InputError, match=says):
    answer.read(tmp_path / "rd.jsonl", QUESTIONS)


def test_no_file(tmp_path):
  with pytest.raises(InputError, match=r"rd.jsonl: no such file"):
    answer.read(tmp_path / "rd.jsonl", QUESTIONS)
