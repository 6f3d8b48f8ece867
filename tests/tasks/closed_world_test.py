import collections
import hashlib
import json
import math
import os
import re
import subprocess
import sys

import pytest
import Stemmer

from kard_jax.judge import StatedAnswer
from kard_jax.prompts import Prompts
from kard_jax.teacher import teach
from tasks import closed_world
from tasks.closed_world import ScriptedTeacher, World
from tasks.closed_world_words import RELATIONS, SYLLABLES

PROMPTS = Prompts()
SMALL = World(seed=0, train_places=80, validation_places=20, test_places=40)
_STOP_WORDS = (
  "a an and are as at be but by for if in into is it no not of on or such that the their then there"
  " these they this to was will with"
)
STOP_WORDS = frozenset(_STOP_WORDS.split())
_STEM = Stemmer.Stemmer("porter").stemWord


def _terms(text):
  words = re.findall(r"\w+", text.lower())
  return [_STEM(word) for word in words if word not in STOP_WORDS]


class Bm25:
  """BM25 as in the textbook, k1 0.9, b 0.4: an oracle of its own, ties by passage order."""

  def __init__(self, texts):
    self.counts = [collections.Counter(_terms(text)) for text in texts]
    self.mean = sum(sum(count.values()) for count in self.counts) / len(texts)
    self.postings = collections.defaultdict(list)
    for number, count in enumerate(self.counts):
      for term in count:
        self.postings[term].append(number)

  def rank(self, query, k):
    scores = collections.Counter()
    for term in _terms(query):
      found = self.postings.get(term, [])
      weight = math.log(1 + (len(self.counts) - len(found) + 0.5) / (len(found) + 0.5))
      for number in found:
        count = self.counts[number]
        length = 0.9 * (0.6 + 0.4 * sum(count.values()) / self.mean)
        scores[number] += weight * count[term] / (count[term] + length)
    return sorted(scores, key=lambda number: (-scores[number], number))[:k]


def _hits(world, queries, golds):
  """The share of queries whose gold passage is first, and among the first ten."""
  passages = list(world.passages())
  index = Bm25([PROMPTS.passage_text(passage) for passage in passages])
  ranks = [[passages[number].id for number in index.rank(query, 10)] for query in queries]
  first = sum(rank[:1] == [gold] for rank, gold in zip(ranks, golds, strict=True))
  tenth = sum(gold in rank for rank, gold in zip(ranks, golds, strict=True))
  return first / len(queries), tenth / len(queries)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_question_finds_the_place_and_a_rationale_the_passage(seed):
  world = World(seed)
  asked = world.questions()["test"]
  assert len(asked) >= 480
  golds = [question.gold[0] for question in asked]
  first, tenth = _hits(world, [PROMPTS.question_query(question) for question in asked], golds)
  assert first <= 0.25
  assert tenth >= 0.99

  rows = teach(asked, ScriptedTeacher(world), PROMPTS, 1, StatedAnswer())
  kept = {row["question_id"]: row["rationale"] for row in rows if row["kept"]}
  told = [question for question in asked if question.id in kept]
  queries = [PROMPTS.rationale_query(question, kept[question.id]) for question in told]
  assert _hits(world, queries, [question.gold[0] for question in told])[0] >= 0.97


def test_bm25_prefers_no_relation():
  """Or a student could make do with one passage a place."""
  asked = [question for split in SMALL.questions().values() for question in split]
  passages = list(SMALL.passages())
  index = Bm25([passage.text for passage in passages])
  first = collections.Counter(
    passages[index.rank(PROMPTS.question_query(question), 1)[0]].id.split("-")[1]
    for question in asked
  )
  assert set(first) == {relation.name for relation in RELATIONS}
  assert max(first.values()) / len(asked) < 0.25


def test_questions_and_passages_share_no_word_but_names():
  passage_terms = {
    term
    for relation in RELATIONS
    for wording in relation.passages
    for word, _ in relation.values
    for term in _terms(wording.format(name="", word=word))
  }
  question_terms = {
    term
    for relation in RELATIONS
    for text in (*relation.questions, *(option for _, option in relation.values))
    for term in _terms(text.format(name=""))
  }
  assert passage_terms & question_terms == set()
  assert "answer" not in passage_terms
  assert passage_terms.isdisjoint("bcd")  # letters of options, in the query by the rationale
  names = {term for place in SMALL.places["train"] for term in _terms(place)}
  assert names.isdisjoint(passage_terms | question_terms)


def test_questions_about_one_relation_do_not_fit_another():
  wordings = [wording for relation in RELATIONS for wording in relation.questions]
  assert len(set(wordings)) == len(wordings)
  words = [word for relation in RELATIONS for word, _ in relation.values]
  assert len(set(words)) == len(words)
  for relation in RELATIONS:
    assert len({option for _, option in relation.values}) == len(relation.values) == 8
    assert all("{name}" in text for text in (*relation.passages, *relation.questions))
    assert all("{word}" in text for text in (*relation.passages, relation.bridge))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_place_of_a_held_out_question_occurs_in_training(seed):
  world = World(seed)
  assert sum(len(places) for places in world.places.values()) == 780
  assert len(set().union(*world.places.values())) == 780
  asked = world.questions()
  train = {word for question in asked["train"] for word in re.findall(r"\w+", question.question)}
  assert set(world.places["train"]) <= train
  for split in ("validation", "test"):
    places = {question.extra["place"] for question in asked[split]}
    assert places == set(world.places[split])
    assert places.isdisjoint(train)
  stems = {_STEM(place.lower()) for places in world.places.values() for place in places}
  assert len(stems) == 780  # an analyzer tells them all apart


@pytest.mark.parametrize("seed", range(5))
def test_every_syllable_is_seen_in_training(seed):
  world = World(seed, train_places=16)
  pattern = re.compile("({})({})({})".format(*("|".join(column) for column in SYLLABLES)))
  for place in range(3):
    seen = {pattern.fullmatch(name)[place + 1] for name in world.places["train"]}
    assert seen == set(SYLLABLES[place])


def test_the_knowledge_base_holds_every_gold_passage_and_every_place():
  passages = {passage.id: passage.text for passage in SMALL.passages()}
  assert len(passages) == 140 * len(RELATIONS)
  for split in SMALL.questions().values():
    for question in split:
      (gold,) = question.gold
      assert question.extra["place"] in passages[gold]
      assert question.extra["place"] in question.question
      relation = next(item for item in RELATIONS if item.name == question.extra["relation"])
      truth = next(o for w, o in relation.values if re.search(rf"\b{w}\b", passages[gold]))
      assert question.options[question.label] == truth
      assert len(set(question.options)) == 4


def test_sizes_ids_and_labels():
  asked = SMALL.questions()
  assert {split: len(questions) for split, questions in asked.items()} == {
    "train": 800,
    "validation": 80,
    "test": 160,
  }
  ids = [question.id for questions in asked.values() for question in questions]
  assert len(set(ids)) == len(ids)
  for questions in asked.values():
    assert len({question.extra["relation"] for question in questions}) == len(RELATIONS)
    pairs = collections.Counter(question.gold for question in questions)
    assert max(pairs.values()) == 1


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nothing_but_the_passage_tells_the_label(seed):
  """Neither letter, wording, relation nor option is right much more often than one in four."""
  asked = World(seed).questions()
  for questions in asked.values():
    labels = collections.Counter(question.label for question in questions)
    assert max(labels.values()) == min(labels.values())
  shown, right = collections.Counter(), collections.Counter()
  for question in asked["train"]:
    options = list(question.options)
    assert options == sorted(options)
    shown.update((question.extra["relation"], option) for option in options)
    right[question.extra["relation"], options[question.label]] += 1
  assert len(shown) == 8 * len(RELATIONS)
  # About 300 times shown each: 0.25 has a standard error of 0.025, and there are 80 of them.
  assert all(abs(right[option] / count - 0.25) < 0.1 for option, count in shown.items())


@pytest.mark.parametrize(
  "sizes",
  [{"train_places": 15}, {"train_places": 4000}, {"heldout_questions": 11}, {"train_questions": 0}],
)
def test_impossible_sizes_are_refused(sizes):
  with pytest.raises(ValueError, match="World"):
    World(**sizes)


def test_rationales_state_the_passage_and_lead_to_the_option():
  passages = {passage.id: passage.text for passage in SMALL.passages()}
  teacher = ScriptedTeacher(SMALL)
  asked = SMALL.questions()["train"]
  rows = list(teach(asked, teacher, PROMPTS, 4, StatedAnswer()))
  assert rows == list(teach(asked, ScriptedTeacher(SMALL), PROMPTS, 4, StatedAnswer()))
  reasons = collections.Counter(row["reason"] for row in rows)
  assert set(reasons) == {"states the gold answer", "states another answer"}
  assert 0.03 < reasons["states another answer"] / len(rows) < 0.07
  by_id = {question.id: question for question in asked}
  for row in rows:
    question = by_id[row["question_id"]]
    assert row["rationale"].startswith(passages[question.gold[0]].removesuffix("."))
    assert row["rationale"].count(".") == 1
    assert len(row["rationale"].split()) <= 20
    truth = question.options[question.label]
    assert bool(re.search(rf"\b{truth}\.$", row["rationale"])) == row["kept"]


def test_rationales_use_no_character_that_prompts_lack():
  """A vocabulary is trained on prompts and passages; students do not know what is not in there."""
  passages = [passage.text for passage in SMALL.passages()]
  asked = SMALL.questions()["train"]
  known = set("".join(passages) + "".join(map(PROMPTS.question_text, asked)))
  teacher = ScriptedTeacher(SMALL)
  assert {*"".join(text for question in asked for text in teacher(question, 4))} <= known | {"\n"}


def test_rationales_do_not_depend_on_what_else_is_asked():
  teacher = ScriptedTeacher(SMALL)
  question = SMALL.questions()["train"][3]
  assert teacher(question, 4)[:2] == teacher(question, 2)
  assert len(set(teacher(question, 4))) == 4


_DIGEST = """
import hashlib, json, sys, types
sys.modules["tasks.registry"] = types.SimpleNamespace(register=lambda *_, **__: None)  # imports TF
from tasks.closed_world import World, ScriptedTeacher
world = World(3, train_places=20, validation_places=5, test_places=5)
asked = world.questions()
text = json.dumps([[q.to_json() for q in asked[s]] for s in asked])
text += json.dumps([p.text for p in world.passages()])
text += json.dumps([ScriptedTeacher(world)(q, 2) for q in asked["train"]])
print(hashlib.sha256(text.encode()).hexdigest())
"""


def test_the_world_is_the_same_in_every_process():
  digests = {
    subprocess.run(
      [sys.executable, "-c", _DIGEST],
      env=os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.getcwd()},
      capture_output=True,
      text=True,
      check=True,
    ).stdout
    for hash_seed in ("1", "2")
  }
  assert len(digests) == 1


def test_seeds_make_different_worlds():
  def digest(world):
    text = json.dumps([question.to_json() for question in world.questions()["test"]])
    return hashlib.sha256(text.encode()).hexdigest()

  assert digest(closed_world.world(0)) == digest(World(0))
  assert digest(World(0)) != digest(World(1))


def test_it_is_registered():
  from tasks import registry

  dataset = registry.get("closed_world")
  assert dataset.name == "closed_world"
  assert set(closed_world.questions(0)) == {"train", "validation", "test"}
  assert next(iter(closed_world.passages(0))).text
  assert closed_world.teacher(0).name == "script"
