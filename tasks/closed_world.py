"""The quickstart's closed world: places nobody has heard of, and all that is known of them.

A seeded generator makes places, ten facts of each, a passage a fact and four-option questions. It
is a fair small model of knowledge-intensive question answering: no place of a validation or test
question occurs in a training question, so nothing can be remembered; and questions use other words
than passages, so finding the right passage takes a rationale, or a reranker that learnt from some.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import random
from collections.abc import Iterator
from typing import NamedTuple

from kard_jax.questions import LETTERS, Question
from kard_jax.retrieval.passages import Passage
from tasks import registry
from tasks.closed_world_words import RELATIONS, SYLLABLES, Relation, Value
from tasks.exemplars import CLOSED_WORLD

# How a rationale goes on after the passage's statement; one for a sample, in turn. In mid-sentence
# and without punctuation, so that it has no token that a vocabulary of passages would lack.
_BRIDGES = (" and {}.", " and we know {}.", " and of course {}.", " and clearly {}.")


def passage_id(place: str, relation: Relation) -> str:
  """The id of the passage that states what is true of a place in a relation."""
  return f"{place.lower()}-{relation.name}"


class Fact(NamedTuple):
  """What is true of one place in one relation, and the passage that says so."""

  place: str
  relation: Relation
  value: Value
  statement: str


class _Asked(NamedTuple):
  """A question: four values that may be true of a place, and the position of the one that is."""

  place: str
  relation: Relation
  wording: str
  options: tuple[Value, ...]
  label: int

  @property
  def value(self) -> Value:
    return self.options[self.label]

  @property
  def passage_id(self) -> str:
    return passage_id(self.place, self.relation)


@dataclasses.dataclass(frozen=True)
class World:
  """A closed world; the same arguments make the same world on every machine.

  Attributes:
    seed: of everything that is drawn.
    train_places, validation_places, test_places: how many places the questions of a split are
      about; no place is in two splits. Sixteen of the training split have each syllable once.
    train_questions, heldout_questions: how many questions are asked about a place in the training
      split and in the others, each on another relation.
  """

  seed: int = 0
  train_places: int = 600
  validation_places: int = 60
  test_places: int = 120
  train_questions: int = 10
  heldout_questions: int = 4

  def __post_init__(self) -> None:
    names = math.prod(map(len, SYLLABLES))
    if self.train_places < len(SYLLABLES[0]):
      raise ValueError(f"World.train_places: at least {len(SYLLABLES[0])}, not {self.train_places}")
    if (total := self.train_places + self.validation_places + self.test_places) > names:
      raise ValueError(f"World: {total} places are asked for, but there are {names} names")
    for name in ("train_questions", "heldout_questions"):
      if not 1 <= getattr(self, name) <= len(RELATIONS):
        raise ValueError(f"World.{name}: from 1 to {len(RELATIONS)}, not {getattr(self, name)}")

  @functools.cached_property
  def places(self) -> dict[str, list[str]]:
    """The places of each split. Every syllable of a held-out name occurs in a training name."""
    columns = [
      self.draws(f"syllables {number}").sample(column, len(column))
      for number, column in enumerate(SYLLABLES)
    ]
    first = ["".join(parts) for parts in zip(*columns, strict=True)]
    others = sorted({"".join(parts) for parts in itertools.product(*SYLLABLES)} - set(first))
    self.draws("places").shuffle(others)
    names = iter(first + others)
    sizes = {
      "train": self.train_places,
      "validation": self.validation_places,
      "test": self.test_places,
    }
    return {split: list(itertools.islice(names, size)) for split, size in sizes.items()}

  @functools.cached_property
  def facts(self) -> dict[str, Fact]:
    """All facts of all places, by passage id. What is asked for is settled by its question."""
    draw = self.draws("facts")
    told = {asked.passage_id: asked for split in self._asked.values() for asked in split}
    facts: dict[str, Fact] = {}
    for place in itertools.chain.from_iterable(self.places.values()):
      for relation in RELATIONS:
        id = passage_id(place, relation)
        value = told[id].value if id in told else draw.choice(relation.values)
        statement = draw.choice(relation.passages).format(name=place, word=value.word)
        facts[id] = Fact(place, relation, value, statement)
    return facts

  def passages(self) -> Iterator[Passage]:
    """The knowledge base: a passage a fact, shuffled, so that no order helps where scores tie."""
    facts = list(self.facts.items())
    self.draws("passages").shuffle(facts)
    for id, fact in facts:
      yield Passage(id=id, title="", text=fact.statement)

  def questions(self) -> dict[str, list[Question]]:
    """The questions of each split, shuffled; each label is as frequent as any other."""
    return {
      split: [
        Question(
          id=f"{split}-{number:05d}",
          question=asked.wording.format(name=asked.place),
          options=tuple(value.option for value in asked.options),
          label=asked.label,
          gold=(asked.passage_id,),
          extra={"place": asked.place, "relation": asked.relation.name},
        )
        for number, asked in enumerate(rows)
      ]
      for split, rows in self._asked.items()
    }

  @functools.cached_property
  def _asked(self) -> dict[str, list[_Asked]]:
    """The questions before they are put in words.

    Four options are drawn, and then which of them shall be true: so neither letter, nor options,
    nor relation tell anything of the answer. Options are in alphabetical order, as in many a test:
    a small student learns to name the letter in hundreds of steps; in random order, in thousands.
    """
    asked: dict[str, list[_Asked]] = {}
    for split, places in self.places.items():
      draw = self.draws(f"questions {split}")
      count = self.train_questions if split == "train" else self.heldout_questions
      pairs = [(place, relation) for place in places for relation in draw.sample(RELATIONS, count)]
      draw.shuffle(pairs)
      labels = [number % 4 for number in range(len(pairs))]
      draw.shuffle(labels)
      asked[split] = []
      for (place, relation), label in zip(pairs, labels, strict=True):
        options = sorted(draw.sample(relation.values, 4), key=lambda value: value.option)
        wording = draw.choice(relation.questions)
        asked[split].append(_Asked(place, relation, wording, tuple(options), label))
    return asked

  def draws(self, purpose: str) -> random.Random:
    """A stream for each purpose, so that a change in one draw leaves the others as they were."""
    return random.Random(f"closed world {self.seed}: {purpose}")


@dataclasses.dataclass(frozen=True)
class ScriptedTeacher:
  """Writes a rationale as a teacher LLM would: what the passage says, then what that means.

  Attributes:
    world: the world that the questions are about.
    wrong: the share of rationales that conclude another option; a judge drops them.
  """

  world: World
  wrong: float = 0.05
  name: str = "script"

  def __call__(self, question: Question, samples: int) -> list[str]:
    """`samples` completions, each a function of the seed, the question and its number alone."""
    return [self._write(question, sample) for sample in range(samples)]

  def _write(self, question: Question, sample: int) -> str:
    fact = self.world.facts[question.gold[0]]
    draw = self.world.draws(f"rationale {question.id} {sample}")
    answer = question.label
    if draw.random() < self.wrong:
      answer = draw.choice([other for other in range(len(question.options)) if other != answer])
    bridge = fact.relation.bridge.format(word=fact.value.word, option=question.options[answer])
    bridge = _BRIDGES[sample % len(_BRIDGES)].format(bridge)
    return f"{fact.statement.removesuffix('.')}{bridge}\nAnswer: {LETTERS[answer]}"


@functools.lru_cache(maxsize=2)
def world(seed: int) -> World:
  """The quickstart's world for a seed."""
  return World(seed)


def questions(seed: int, source: str | None = None) -> dict[str, list[Question]]:
  """The questions of each split; `source` is not needed."""
  return world(seed).questions()


def passages(seed: int, source: str | None = None) -> Iterator[Passage]:
  """The knowledge base; `source` is not needed."""
  return world(seed).passages()


def teacher(seed: int, source: str | None = None) -> ScriptedTeacher:
  """The scripted teacher; `source` is not needed."""
  return ScriptedTeacher(world(seed))


registry.register(
  "closed_world",
  questions=questions,
  passages=passages,
  teacher=teacher,
  exemplars=CLOSED_WORLD,
)
