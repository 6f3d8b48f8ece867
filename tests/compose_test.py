"""What is read of a question: as in training, or after examples; what a limit of length takes."""

import pytest

from kard_jax import compose
from kard_jax.compose import Prompt, Reader
from kard_jax.exemplars import Exemplar
from kard_jax.prompts import Prompts
from kard_jax.questions import Question
from kard_jax.retrieval.passages import Passage

PROMPTS = Prompts()
ASKED = Question("a", "Which metal rusts?", ("tin", "iron"), 1)
EXEMPLARS = [
  Exemplar(
    Question(f"e{i}", f"What is {i} and {i}?", (f"{2 * i}", "none"), 0),
    f"Twice {i} is asked for.",
    f"Doubling {i}.",
  )
  for i in range(1, 4)
]
PASSAGES = [Passage("p", "Rust", "Iron rusts in damp air " + "again and " * 8 + "again.")]


def words(texts):
  return [len(text.split()) for text in texts]


def written(count, passages=(), rationales=True):
  whole = PROMPTS.few_shot(ASKED, EXEMPLARS[3 - count :], passages, rationales=rationales)
  return whole.removesuffix(PROMPTS.separator)


def few_shot(length, passages=(), rationales=True):
  reader = None if length is None else Reader(words, length)
  write = compose.few_shot(PROMPTS, EXEMPLARS, reader, rationales=rationales)
  return write([ASKED], [list(passages)])[0]


def test_as_trained_counts_what_is_read_and_what_is_cut():
  text = PROMPTS.student_input(ASKED, PASSAGES)
  size = len(text.split())
  both = [ASKED, ASKED], [PASSAGES, []]
  assert [prompt.text for prompt in compose.as_trained(PROMPTS)(*both)] == [
    text,
    PROMPTS.student_input(ASKED),
  ]
  assert compose.as_trained(PROMPTS)(*both)[0] == Prompt(text)
  long, short = compose.as_trained(PROMPTS, Reader(words, size - 3))(*both)
  assert long == Prompt(text, size - 3, 3)
  assert short == Prompt(short.text, len(short.text.split()), 0)


@pytest.mark.parametrize("rationales", [False, True])
def test_without_a_limit_all_examples_are_shown(rationales):
  prompt = few_shot(None, PASSAGES, rationales)
  assert prompt == Prompt(written(3, PASSAGES, rationales), exemplars=3)
  assert ("Twice 1" in prompt.text) == rationales
  assert "Doubling 1" in prompt.text
  assert "Doubling 1" not in few_shot(None).text


def test_a_long_prompt_loses_whole_examples_from_the_front():
  whole = len(written(3).split())
  for count in (3, 2, 1, 0):
    size = len(written(count).split())
    assert few_shot(size) == Prompt(written(count), size, whole - size, count)
  assert few_shot(len(written(2).split()) - 1).exemplars == 1


def test_then_its_passages_lose_their_ends_and_never_the_question():
  bare = len(written(0).split())
  whole = len(written(0, PASSAGES).split())
  for length in range(bare + 4, whole):
    prompt = few_shot(length, PASSAGES)
    assert prompt.text.startswith(written(0)) or PROMPTS.question_text(ASKED) in prompt.text
    assert prompt.tokens == len(prompt.text.split()) == length
    assert prompt.cut == len(written(3, PASSAGES).split()) - length
  assert "Iron rusts" in few_shot(bare + 4, PASSAGES).text
  shortest = few_shot(bare, PASSAGES)
  assert (shortest.text, shortest.exemplars) == (written(0), 0)
  beyond = few_shot(bare - 2, PASSAGES)
  assert (beyond.text, beyond.tokens) == (written(0), bare - 2)


def test_questions_are_cut_one_by_one():
  long = Question("l", "Which " + "very " * 30 + "metal rusts?", ("tin", "iron"), 1)
  reader = Reader(words, len(written(2).split()))
  write = compose.few_shot(PROMPTS, EXEMPLARS, reader, rationales=True)
  prompts = write([ASKED, long, ASKED], [[], [], []])
  assert prompts[0] == prompts[2] == write([ASKED], [[]])[0]
  assert prompts[0].exemplars == 2 > prompts[1].exemplars
  assert long.question in prompts[1].text


def test_the_reader_is_asked_seldom():
  asked = []
  reader = Reader(lambda texts: asked.append(len(texts)) or words(texts), 1)
  compose.few_shot(PROMPTS, EXEMPLARS, reader, rationales=True)([ASKED] * 50, [[]] * 50)
  assert asked == [50] * (len(EXEMPLARS) + 1)
