"""The answer parser on ChatGPT's rationales, against labels that another method gives.

The rationales are those whose last sentence with an option's letter states, in one of a few fixed
phrases, that this one option is the answer. What is not that plain is not labelled.
"""

import random
import re

import pytest

from tasks import medqa, openbookqa, strategyqa

SAMPLE = 200
PHRASES = (
  "answer is",
  "answer would be",
  "answer to this question is",
  "answer must be",
  "answer:",
)
DOUBTS = ("not", "n't", "incorrect", "wrong", "if ", "neither", "either", "cannot", "however")


def label(text, letters):
  """The letter that the last sentence with a letter in brackets states, or None."""
  sentences = [piece for piece in re.split(r"(?<=[.!?])\s+|\n+", text) if piece.strip()]
  named = [s for s in sentences if re.search(rf"\([{letters}]\)", s)]
  if not named:
    return None
  last = named[-1].lower()
  found = re.findall(r"\(([a-z])\)", last)
  if len(found) != 1 or any(doubt in last.split("(")[0] for doubt in DOUBTS):
    return None
  before = last.split(f"({found[0]})")[0]
  if any(before.rstrip().endswith(phrase) for phrase in PHRASES):
    return found[0].upper()
  return None


@pytest.mark.parametrize("module", [openbookqa, strategyqa, medqa], ids=lambda m: m.__name__)
def test_what_is_stated_plainly_is_read(module, shared_data):
  source = str(shared_data / module.__name__.rpartition(".")[2])
  questions, teacher = module.questions(0, source)["train"], module.teacher(0, source)
  every = [(question, text) for question in questions for text in teacher(question, 20)]
  random.Random(11).shuffle(every)
  labelled = []
  for question, text in every:
    letter = label(text, "ABCD"[: len(question.options)])
    if letter is not None:
      labelled.append((question, text, letter))
    if len(labelled) == SAMPLE:
      break
  if module is medqa:  # its teacher hardly ever named a letter: all that did
    assert 0 < len(labelled) < SAMPLE
  else:
    assert len(labelled) == SAMPLE
  parse = registry_prompts(module).parse
  answers = [parse(text, question.options).answer for question, text, _ in labelled]
  right = [
    answer is not None and "ABCD"[answer] == letter
    for answer, (_, _, letter) in zip(answers, labelled, strict=True)
  ]
  wrong = [text[-200:] for ok, (_, text, _) in zip(right, labelled, strict=True) if not ok]
  assert sum(right) >= 0.99 * len(labelled), wrong
  gold = [question.letter == letter for question, _, letter in labelled]
  assert sum(gold) > 0.9 * len(gold)  # the labels are no noise: the teacher was told the answer


def registry_prompts(module):
  from tasks import registry

  return registry.get(module.__name__.rpartition(".")[2]).prompts
