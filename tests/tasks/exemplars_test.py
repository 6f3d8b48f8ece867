"""The shipped exemplars: complete, told apart from the datasets' own questions, and registered."""

import gzip
import json
import re

import pytest

from kard_jax.core.files import InputError
from kard_jax.exemplars import Exemplar
from kard_jax.prompts import Prompts
from kard_jax.questions import Question
from tasks import closed_world, exemplars, registry
from tasks.closed_world_words import SYLLABLES

SHIPPED = {
  "medqa": (exemplars.MEDQA, 4),
  "strategyqa": (exemplars.STRATEGYQA, 2),
  "openbookqa": (exemplars.OPENBOOKQA, 4),
  "closed_world": (exemplars.CLOSED_WORLD, 4),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_five_for_each_dataset(name):
  some, options = SHIPPED[name]
  assert len(some) == 5
  assert {len(exemplar.question.options) for exemplar in some} == {options}
  assert len({exemplar.question.id for exemplar in some}) == 5
  assert len({exemplar.question.letter for exemplar in some}) >= min(options, 3)
  for exemplar in some:
    assert len(set(exemplar.question.options)) == options
    assert exemplar.passage
    assert Prompts().parse(exemplar.rationale, exemplar.question.options).answer is None


@pytest.mark.parametrize("name", ["closed_world", "openbookqa", "kard_search_spaces"])
def test_a_registered_dataset_has_its_own(name):
  wanted = exemplars.STRATEGYQA if name == "kard_search_spaces" else SHIPPED[name][0]
  assert registry.load(name).exemplars == wanted


def test_the_closed_worlds_exemplars_tell_nothing_of_it():
  for exemplar in exemplars.CLOSED_WORLD:
    name = re.search(r"\b(?!Which|What|Who)[A-Z][a-z]+", exemplar.question.question)[0]
    assert not name.startswith(tuple(SYLLABLES[0]))
    assert name in exemplar.passage
    assert name in exemplar.rationale
  wordings = [
    re.escape(wording).replace(r"\{name\}", "[A-Z][a-z]+")
    for relation in closed_world.RELATIONS
    for wording in relation.questions
  ]
  for exemplar in exemplars.CLOSED_WORLD:
    assert any(re.fullmatch(wording, exemplar.question.question) for wording in wordings)


def _words(text):
  return set(re.findall(r"[a-z]{4,}", text.lower()))


@pytest.mark.parametrize(
  ("name", "file", "key"),
  [
    ("medqa", "medqa/train_first100.jsonl", "question"),
    ("strategyqa", "strategyqa/train.jsonl", "question"),
    ("openbookqa", "openbookqa/train_complete.jsonl", "question"),
    ("openbookqa", "openbookqa/dev_complete.jsonl", "question"),
  ],
)
def test_no_exemplar_is_a_question_of_the_dataset(shared_data, name, file, key):
  rows = [json.loads(line)[key] for line in (shared_data / file).read_text().splitlines()]
  asked = [_words(row["stem"] if isinstance(row, dict) else row) for row in rows]
  for exemplar in SHIPPED[name][0]:
    mine = _words(exemplar.question.question)
    overlap = max(len(mine & other) / len(mine | other) for other in asked)
    assert overlap < 0.6, exemplar.question.question


def test_no_rationale_is_a_teachers(shared_data):
  for name, file in [
    ("medqa", "medqa/teacher_train_first100.jsonl.gz"),
    ("strategyqa", "strategyqa/teacher_train.jsonl.gz"),
  ]:
    with gzip.open(shared_data / file, "rt") as lines:
      text = lines.read()
    for exemplar in SHIPPED[name][0]:
      for sentence in exemplar.rationale.split(". "):
        assert len(sentence) < 25 or sentence not in text  # "Bach died in 1750" is nobody's


@pytest.mark.parametrize(
  ("rationale", "message"),
  [
    (" ", "has no rationale"),
    ("It is tin.\nAnswer: B", "must end before the statement of the answer"),
  ],
)
def test_an_exemplar_that_cannot_be_used(rationale, message):
  solved = Exemplar(Question("q", "Which?", ("iron", "tin"), 1), rationale)
  with pytest.raises(InputError, match=message):
    registry.register("bad", questions="x", passages="y.jsonl", exemplars=[solved])
  assert "bad" not in registry.names()
