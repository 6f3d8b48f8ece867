"""Answers as models write them: plain, odd, hostile, in other scripts, and ChatGPT's own."""

import dataclasses
import gzip
import json
import pathlib
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kard_jax.answer_parser import Parsed
from kard_jax.prompts import Prompts
from kard_jax.questions import Question

DATA = pathlib.Path(__file__).parents[2] / "shared" / "data"
PROMPTS = Prompts()
METALS = ("iron", "tin", "copper", "tin ore")
QUESTION = Question("q", "Which metal is dug up?", METALS, 1)


@pytest.mark.parametrize(
  ("text", "answer"),
  [
    ("", None),
    (" \n", None),
    ("Answer:", None),
    ("It mines tin. Answer:", None),
    ("It mines tin. Answer", None),
    ("answer: b", 1),
    ("ANSWER : B", 1),
    ("it mines a metal", None),
    ("the answer is a metal", None),
    ("Answer: a metal", None),
    ("Answer: A metal", None),
    ("Answer: A Metal", None),
    ("Answer: A", 0),
    ("Answer: a", 0),
    ("Answer: B ... Answer: C", 2),
    ("Answer: B. Answer:", 1),
    ("Answer: B. Answer: E", None),
    ("So the correct answer is (B). Iron, copper and tin ore are not dug up.", 1),
    ("Answer: A or B", None),
    ("Answer: a or b", None),
    ("Answer: A, B", None),
    ("Answer: A, or B", None),
    ("Answer: B/C", None),
    ("Answer: (A) and (C)", None),
    ("Answer: A or A", 0),
    ("Answer: tin or iron", None),
    ("Answer: (B) iron", None),
    ("It mines tin.", None),
    ("Answer: Because", None),
    ("Answer: because B", None),
    ("Answer: B-12", None),
    ("Answer: B's", None),
    ("(B)", 1),
    ("B", 1),
    ("tin", 1),
    ("B is a letter", None),
    ("Answer: (B)", 1),
    ("Answer: [b]", 1),
    ("Answer: B.", 1),
    ("Answer: B .", 1),
    ("Answer: B) tin", 1),
    ("Answer: (B) tin.", 1),
    ("Answer: tin (B)", 1),
    ("Answer: Option B", 1),
    ("**Answer:** **B**", 1),
    ("Answer: \\boxed{B}", 1),
    ("Answer: “B”", 1),
    ("Answer: B because it mines tin", 1),
    ("Answer: B The metal is tin", 1),
    ("Answer: not B", None),
    ("Answer: E", None),
    ("Answer: (Z)", None),
    ("Answer: \u212a", None),  # the Kelvin sign, whose lower case is k
    ("answer is (C)", 2),
    ("So the correct answer, therefore, is most likely (C), copper.", 2),
    ("The correct option is D", 3),
    ("The correct option is D, not A.", 3),
    ("The answer is (B), and (C) is wrong.", 1),
    ("The answer is (B). The answer is not (A).", 1),
    ("The answer is not (A).", None),
    ("The answer should not be (A).", None),
    ("The answer cannot be (A).", None),
    ("It isn't iron, so the answer is (B).", 1),
    ("If the answer is (A), tin would be iron.", None),
    ("Option (D) is the best answer", 3),
    ("Option A is incorrect. Option B is correct.", 1),
    ("Option (A) is not correct.", None),
    ("They dig tin, making option (B) the correct answer. Option (A) is not a metal.", 1),
    ("So we choose answer (B) as the correct option.", 1),
    ("We can confidently select option B.", 1),
    ("Iron rusts, which leaves us with option (B). It is dug up.", 1),
    ("We go with (B), tin.", 1),
    ("It is not iron, making the correct answer (B) tin.", 1),
    ("So we can answer this question with (C) copper.", 2),
    ("The ratio is equivalent to answer choice (D).", 3),
    ("We cannot choose option (A).", None),
    ("One might choose option (A).", None),
    ("If we pick (A), it rusts.", None),
    ("That leaves options (A) and (B).", None),
    ("We choose (A) or (B).", None),
    ("Miners choose iron.", None),
    ("We choose a tin.", None),
    ("Answer: tin", 1),
    ("Answer: TIN.", 1),
    ("Answer: the tin", 1),
    ("Answer: tin ore", 3),
    ("Answer: tin  ore", 3),
    ("Answer: tin mine", None),
    ("Answer: tinker", None),
    ("Therefore, the answer is tin.", 1),
    ("The culture was seen in cell A.", None),
    ("It is rich in vitamin C.", None),
    ("... of tin. Answer: B", 1),
    ("Answer: B\n\nQuestion: next", 1),
  ],
)
def test_answers(text, answer):
  assert PROMPTS.parse(text, METALS).answer == answer


def test_option_texts():
  assert PROMPTS.parse("Answer: tin", ("tin", "Tin", "iron")).answer is None  # two options
  assert PROMPTS.parse("Answer: B vitamins", ("B vitamins", "iron")).answer == 0
  assert PROMPTS.parse("Answer: B Vitamins", ("B vitamins", "iron")).answer == 0
  assert PROMPTS.parse("Answer: A", ("B", "A")).answer == 0  # a letter is a letter
  assert PROMPTS.parse("Answer: a dog", ("cat", "dog")).answer == 1
  assert PROMPTS.parse("Answer: a dog", ("a dog", "dog")).answer == 0
  assert PROMPTS.parse("the answer is yes- it can", ("yes", "no")).answer == 0
  assert PROMPTS.parse("Answer: not sure", ("yes", "no")).answer is None
  assert PROMPTS.parse("Answer: 3.5", ("3", "4")).answer is None
  assert PROMPTS.parse("Answer: both A and B", ("x", "y", "both A and B")).answer == 2


@pytest.mark.parametrize(
  ("text", "rationale"),
  [
    ("It mines tin. Answer: B", "It mines tin."),
    ("It mines tin.\nAnswer:", "It mines tin."),
    ("It mines tin.\n**Answer:** B", "It mines tin."),
    ("It mines tin. The answer is (B).", "It mines tin. The answer is (B)."),
    ("Answer: B. Answer: C", "Answer: B."),
    ("Answer: B", ""),
    ("It mines tin.", "It mines tin."),
    ("Answer: Because it mines tin", "Answer: Because it mines tin"),
  ],
)
def test_rationales(text, rationale):
  assert PROMPTS.parse(text, METALS).rationale == rationale


PIECES = (
  "Answer: answer is the correct option (A) (B) A B C. c a or and , not tin iron ore ore. * ( ) "
  "making [d] because \u212a \u017f"
)
pieces = st.sampled_from([*PIECES.split(), "\n"])
noise = st.one_of(st.text(), st.lists(pieces).map(" ".join))
options = st.lists(
  st.one_of(st.text(min_size=1).filter(str.strip), pieces.filter(str.strip)),
  min_size=2,
  max_size=26,
)


@given(noise, options)
@example("Answer: \u212a", ["x", "y"])
@example("Answer: (", ["(", "..."])
def test_any_text_parses(text, options):
  parsed = PROMPTS.parse(text, options)
  assert parsed.answer is None or 0 <= parsed.answer < len(options)
  assert parsed.rationale == parsed.rationale.strip()
  assert parsed.rationale in text


@given(noise, options, st.data())
def test_what_students_learn_to_write_is_read_back(rationale, options, data):
  label = data.draw(st.integers(0, len(options) - 1))
  question = Question("q", "?", tuple(options), label)
  for target in (
    PROMPTS.student_target(question, rationale),
    f"{rationale} Answer: {question.letter}",
  ):
    assert PROMPTS.parse(target, options) == Parsed(rationale.strip(), label)


@given(st.text(), st.integers(0, 3))
def test_one_line_reads_as_two(rationale, label):
  """SentencePiece turns a newline into a space; both forms must give the same answer."""
  question = dataclasses.replace(QUESTION, label=label)
  target = PROMPTS.student_target(question, rationale)
  assert PROMPTS.parse(" ".join(target.split()), METALS).answer == label


def _real(questions, teacher):
  with gzip.open(DATA / teacher, "rt") as file:
    completions = [json.loads(line)["completions"] for line in file]
  rows = [json.loads(line) for line in (DATA / questions).read_text().splitlines()]
  return list(zip(rows, completions, strict=True))


@pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data")
def test_real_completions_that_state_an_answer_are_read():
  """ChatGPT was told the gold answer, so what it states is nearly always that one."""
  stated = right = total = 0
  for row, completions in _real("strategyqa/kard_train.jsonl", "strategyqa/teacher_train.jsonl.gz")[
    ::8
  ]:
    for completion in completions:
      answer = PROMPTS.parse(completion, ("yes", "no")).answer
      total += 1
      stated += answer is not None
      right += answer == row["label"]
  assert stated / total > 0.9
  assert right / stated > 0.97


@pytest.mark.parametrize(
  "unit",
  [
    "Answer: ",
    "Question: ",
    "Answer: B Question",
    "*",
    " ",
    "the ",
    "answer is the the ",
    "(A) is ",
    "choose the option ",
    "leaves us with ",
  ],
)
def test_degenerate_output_is_read_in_linear_time(unit):
  """A student that repeats itself for ever must not stop the scoring."""
  start = time.process_time()
  PROMPTS.parse(f"Answer: (B) {unit * (60_000 // len(unit))}x", METALS)
  assert time.process_time() - start < 2


@pytest.mark.parametrize(
  ("text", "parsed"),
  [
    ("It mines tin.\nAnswer: B\n\nQuestion: Next?\n(A) x\nAnswer: C", ("It mines tin.", 1)),
    ("It mines tin. Answer: B Question: Next? Options: (A) x Answer: C", ("It mines tin.", 1)),
    ("Answer: (B) tin.\n\n**Question:** Next?\nAnswer: C", ("", 1)),
    ("B\n\nQuestion: Next?\nAnswer: C", ("", 1)),
    ("It is iron.\nAnswer: A\n\nQuestion: Next?\nAnswer: C", ("It is iron.", 0)),
    ("It is iron. Answer: A Question: Next? Answer: C", ("It is iron.", 0)),
    ("It is iron.\nAnswer: A\nThat is all.", ("It is iron.", 0)),
    ("Answer: A or B\n\nQuestion: Next?\nAnswer: C", ("", None)),
    ("The question: is it tin? It is.\nAnswer: B", ("The question: is it tin? It is.", 1)),
    ("Question: which metal?\nAnswer: B", ("Question: which metal?", 1)),
    ("Answer: B? The question: which\nAnswer: C", ("Answer: B? The question: which", 2)),
  ],
)
def test_questions_that_a_model_makes_up_do_not_count(text, parsed):
  assert PROMPTS.parse(text, METALS) == Parsed(*parsed)


@pytest.mark.parametrize(
  ("text", "parsed"),
  [
    ("\u5b83\u662f\u9521\u3002\nAnswer\uff1a\uff22\u3002", ("\u5b83\u662f\u9521\u3002", 1)),
    (
      "\u5b83\uff08\u9521\uff09\u3002\nAnswer: \uff08B\uff09",
      ("\u5b83\uff08\u9521\uff09\u3002", 1),
    ),
    ("Answer: \u9521\u3002", ("", 1)),
    ("Answer: \u9521\u77ff\u3002", ("", 3)),
    ("\u0645\u0639\u062f\u0646.\nAnswer: B\u060c", ("\u0645\u0639\u062f\u0646.", 1)),
    ("\u9521", ("", 1)),
  ],
)
def test_other_scripts(text, parsed):
  options = ("\u94c1", "\u9521", "\u94dc", "\u9521\u77ff")
  assert PROMPTS.parse(text, options) == Parsed(*parsed)


@pytest.mark.parametrize("count", [2, 3, 5, 8, 26])
def test_any_number_of_options(count):
  options = tuple(f"thing {number}" for number in range(count))
  for label in range(count):
    question = Question("q", "Which?", options, label)
    assert PROMPTS.student_input(question).count("(") == count
    for text in (
      PROMPTS.student_target(question, "Because."),
      f"Because. The correct answer is ({question.letter}).",
      f"Answer: {options[label]}",
    ):
      assert PROMPTS.parse(text, options).answer == label
  if count < 26:
    assert PROMPTS.parse(f"Answer: {'ABCDEFGHIJKLMNOPQRSTUVWXYZ'[count]}", options).answer is None
