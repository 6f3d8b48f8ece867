import dataclasses

import pytest

from kard_jax.answer_parser import Parsed
from kard_jax.exemplars import Exemplar
from kard_jax.prompts import Prompts
from kard_jax.questions import Question

PROMPTS = Prompts()
METALS = ("iron", "tin", "copper", "tin ore")
QUESTION = Question("q", "Which metal is dug up?", METALS, 1)


@dataclasses.dataclass(frozen=True)
class Page:
  title: str
  text: str


def test_student_reads_question_first_and_passages_last():
  pages = [Page("Vorinel", "It mines tin."), Page("", "No title.")]
  bare = "Which metal is dug up?\nOptions: (A) iron (B) tin (C) copper (D) tin ore"
  assert PROMPTS.question_text(QUESTION) == bare
  assert PROMPTS.student_input(QUESTION) == bare
  assert PROMPTS.student_input(QUESTION, pages) == (
    bare + "\nKnowledge: Vorinel: It mines tin.\nNo title."
  )


def test_student_writes_rationale_and_answer_or_answer_alone():
  assert PROMPTS.student_target(QUESTION, " It mines tin.\n") == "It mines tin.\nAnswer: B"
  assert PROMPTS.student_target(QUESTION, None) == "Answer: B"
  assert PROMPTS.student_target(QUESTION, " ") == "Answer: B"


def test_queries():
  assert PROMPTS.question_query(QUESTION) == "Which metal is dug up? iron; tin; copper; tin ore"
  assert PROMPTS.reranker_query(QUESTION) == PROMPTS.question_query(QUESTION)
  assert PROMPTS.rationale_query(QUESTION, "It mines tin.") == "It mines tin.\nAnswer: B"


def test_braces_in_data_are_text():
  question = Question("q", "What is {question}?", ("{letter}", "}{"), 0)
  assert PROMPTS.student_input(question, [Page("{text}", "{0}")]) == (
    "What is {question}?\nOptions: (A) {letter} (B) }{\nKnowledge: {text}: {0}"
  )


def test_a_dataset_may_word_the_answer_otherwise():
  prompts = Prompts(answer="### Response = {letter}")
  assert prompts.student_target(QUESTION, "r") == "r\n### Response = B"
  assert prompts.parse("r ### response = B", METALS) == Parsed("r", 1)
  for template in ("{letter}", "Answer", "Answer: {letter}!", ": {letter}"):
    with pytest.raises(ValueError, match="must end in"):
      Prompts(answer=template)


SOLVED = (
  Exemplar(
    Question("s0", "Which gas do plants take up?", ("oxygen", "carbon dioxide"), 1),
    "Leaves make sugar of carbon dioxide.",
    "Plants take up carbon dioxide.",
  ),
  Exemplar(Question("s1", "Is ice cold?", ("yes", "no", "never"), 0), "Ice is frozen water."),
)


def test_few_shot_shows_examples_as_a_student_would_see_them():
  assert PROMPTS.few_shot(QUESTION, SOLVED, rationales=False) == (
    "Question: Which gas do plants take up?\nOptions: (A) oxygen (B) carbon dioxide\nAnswer: B\n\n"
    "Question: Is ice cold?\nOptions: (A) yes (B) no (C) never\nAnswer: A\n\n"
    "Question: Which metal is dug up?\nOptions: (A) iron (B) tin (C) copper (D) tin ore\n"
  )
  pages = [Page("Vorinel", "It mines tin."), Page("", "No title.")]
  assert PROMPTS.few_shot(QUESTION, SOLVED, pages, rationales=True) == (
    "Question: Which gas do plants take up?\nOptions: (A) oxygen (B) carbon dioxide\n"
    "Knowledge: Plants take up carbon dioxide.\n"
    "Leaves make sugar of carbon dioxide.\nAnswer: B\n\n"
    "Question: Is ice cold?\nOptions: (A) yes (B) no (C) never\nIce is frozen water.\nAnswer: A\n\n"
    "Question: Which metal is dug up?\nOptions: (A) iron (B) tin (C) copper (D) tin ore\n"
    "Knowledge: Vorinel: It mines tin.\nNo title.\n"
  )
  without = PROMPTS.few_shot(QUESTION, SOLVED, rationales=True)
  assert "Leaves make" in without
  assert "Knowledge" not in without


def test_a_teacher_is_told_the_gold_answer_or_not():
  told = PROMPTS.teacher(QUESTION, SOLVED, gold=True)
  assert told.count("The right option is (B) tin\n") == 1
  assert told.count("The right option is") == 3
  assert told.endswith(
    "Options: (A) iron (B) tin (C) copper (D) tin ore\nThe right option is (B) tin\nExplanation:"
  )
  assert "Explanation: Leaves make sugar of carbon dioxide.\nAnswer: B\n\nQuestion: Is ice" in told
  blind = PROMPTS.teacher(QUESTION, SOLVED, gold=False)
  assert "The right option" not in blind
  assert blind.startswith(PROMPTS.request.format(answer="Answer: X"))
  other = Prompts(answer="### Response = {letter}")
  assert "form: ### Response = X" in other.teacher(QUESTION, (), gold=False)


def test_a_judge_goes_on_with_a_letter():
  assert PROMPTS.judge(QUESTION, " It mines tin.\n", SOLVED) == (
    "Question: Which gas do plants take up?\nOptions: (A) oxygen (B) carbon dioxide\n"
    "Leaves make sugar of carbon dioxide. So, the answer is B\n\n"
    "Question: Is ice cold?\nOptions: (A) yes (B) no (C) never\n"
    "Ice is frozen water. So, the answer is A\n\n"
    "Question: Which metal is dug up?\nOptions: (A) iron (B) tin (C) copper (D) tin ore\n"
    "It mines tin. So, the answer is "
  )
  for verdict in ("{rationale} So, the answer is", "So, the answer is {letter}"):
    with pytest.raises(ValueError, match="verdict must hold"):
      Prompts(verdict=verdict)


def test_no_prompt_shows_the_answer_of_its_own_question():
  asked = SOLVED[0].question
  prompts = [
    PROMPTS.few_shot(asked, SOLVED, rationales=True),
    PROMPTS.few_shot(asked, SOLVED, rationales=False),
    PROMPTS.teacher(asked, SOLVED, gold=False),
    PROMPTS.judge(asked, "r", SOLVED),
  ]
  for prompt in prompts:
    assert prompt.count(asked.question) == 1
    assert "Leaves" not in prompt
    assert "Is ice cold?" in prompt


def test_braces_in_exemplars_are_text():
  solved = Exemplar(Question("b", "{question}?", ("{letter}", "{text}"), 1), "{rationale}", "{0}")
  for prompt in (
    PROMPTS.few_shot(QUESTION, [solved], [Page("", "{1}")], rationales=True),
    PROMPTS.teacher(QUESTION, [solved], gold=True),
    PROMPTS.judge(QUESTION, "{rationale}", [solved]),
  ):
    assert "(A) {letter} (B) {text}" in prompt
    assert "{rationale}" in prompt


def test_prompts_in_another_language():
  prompts = Prompts(
    question="{question}\n\u9009\u9879\uff1a{options}",
    knowledge="\n\u77e5\u8bc6\uff1a{passages}",
    answer="\u7b54\u6848\uff1a{letter}",
    example="\u95ee\u9898\uff1a{question}",
  )
  question = Question("z", "\u5b83\u662f\u4ec0\u4e48\uff1f", ("\u94c1", "\u9521"), 1)
  target = prompts.student_target(question, "\u5b83\u662f\u9521\u3002")
  assert target.endswith("\u7b54\u6848\uff1aB")
  assert prompts.parse(target, question.options) == Parsed("\u5b83\u662f\u9521\u3002", 1)
  more = target + "\n\n\u95ee\u9898\uff1a\u4e0b\n\u7b54\u6848\uff1aA"
  assert prompts.parse(more, question.options).answer == 1
