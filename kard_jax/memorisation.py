"""What a student must store: the measured side of the paper's theory of memorisation.

The theory: a student that answers about n facts of d bits must hold on the order of n·d bits of the
training data in its parameters if it answers from them alone, and about n·log2(N + R) bits if it
may look in a knowledge base of N + R passages: where a fact stands, not what it says. Where the
question itself finds the passage, as BM25 does by a name, not even that is left to store.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from kard_jax.statistics import wilson


class Point(NamedTuple):
  """One student that was trained and asked.

  Attributes:
    student: names its size.
    parameters: how many it has.
    facts: N, how many it was trained on and asked about.
    seed: of world, parameters and order.
    knowledge: whether a passage from the knowledge base stood in its prompts.
    steps: updates.
    exposures: how often each fact was seen in training.
    questions: how many were asked, each about another fact.
    right: how many answers were right.
    unparsed: how many texts stated no answer; they count as wrong.
    options: from which one is chosen.
    found: share of the questions whose first passage was the right one; None without knowledge.
    loss: cross-entropy of a training token at the end, nats; mean over the seeds.
    new_questions: about facts of the world that it was not trained on; 0 where there are none left.
    new_right: right answers to them.
  """

  student: str
  parameters: int
  facts: int
  seed: int
  knowledge: bool
  steps: int
  exposures: float
  questions: int
  right: int
  unparsed: int
  options: int
  found: float | None
  loss: float
  new_questions: int
  new_right: int

  @property
  def accuracy(self) -> float:
    """Right answers to questions about trained facts, asked in a wording held out."""
    return self.right / self.questions

  @property
  def bits(self) -> float:
    """The least information about the facts that such answers show: see `bits_shown`."""
    return bits_shown(self.accuracy, self.facts, self.options)

  def row(self) -> dict[str, Any]:
    """The point as `memorisation.json` holds it."""
    return {
      **self._asdict(),
      "accuracy": self.accuracy,
      "interval": list(wilson(self.right, self.questions)),
      "bits_asked": self.facts * math.log2(self.options),
      "bits_shown": self.bits,
      "bits_a_parameter": self.bits / self.parameters,
    }


def bits_shown(accuracy: float, facts: int, options: int) -> float:
  """The least bits about facts that whoever answers so well must have (Fano's inequality).

  A fact is a uniform draw among the options, so an answer of accuracy p tells at least
  log2(m) - H(p) - (1 - p) log2(m - 1) bits of it: 0 at chance, log2(m) where all are right. Without
  a knowledge base they can be nowhere but in the parameters.

  Args:
    accuracy: p, between 0 and 1; at or below chance nothing is shown.
    facts: N.
    options: m, at least 2.
  """
  if options < 2 or not 0 <= accuracy <= 1:
    raise ValueError(f"an accuracy of {accuracy} among {options} options tells nothing")
  if accuracy <= 1 / options:
    return 0.0
  wrong = 1 - accuracy
  entropy = -sum(p * math.log2(p) for p in (accuracy, wrong) if p > 0)
  return facts * (math.log2(options) - entropy - wrong * math.log2(options - 1))


class Mean(NamedTuple):
  """Points that differ in the seed alone.

  Attributes:
    student, parameters, facts, knowledge: what they share.
    accuracies: by seed.
    interval: of all their questions together (Wilson, 95 %).
    bits: mean of what they show.
  """

  student: str
  parameters: int
  facts: int
  knowledge: bool
  accuracies: tuple[float, ...]
  interval: tuple[float, float]
  bits: float

  @property
  def accuracy(self) -> float:
    """The mean over seeds, which all were asked equally many questions."""
    return sum(self.accuracies) / len(self.accuracies)


def means(points: Iterable[Point]) -> list[Mean]:
  """Points by size, knowledge and number of facts, over seeds; smallest students first."""
  groups: dict[tuple[int, str, bool, int], list[Point]] = {}
  for point in points:
    key = point.parameters, point.student, point.knowledge, point.facts
    groups.setdefault(key, []).append(point)
  return [
    Mean(
      student,
      parameters,
      facts,
      knowledge,
      tuple(point.accuracy for point in some),
      wilson(sum(point.right for point in some), sum(point.questions for point in some)),
      sum(point.bits for point in some) / len(some),
    )
    for (parameters, student, knowledge, facts), some in sorted(groups.items())
  ]


class Needed(NamedTuple):
  """The smallest student that knows so many facts.

  Attributes:
    facts: N.
    knowledge: whether it reads a passage.
    parameters: of the smallest student that reaches the accuracy; None: none of those tried does.
  """

  facts: int
  knowledge: bool
  parameters: int | None


def needed(found: Sequence[Mean], accuracy: float) -> list[Needed]:
  """For each number of facts, with and without knowledge, the smallest student that is enough.

  Args:
    found: as `means` gives them.
    accuracy: what the mean over seeds must reach.
  """
  asked = sorted({(mean.knowledge, mean.facts) for mean in found})
  sizes = {
    (knowledge, facts): [
      mean.parameters
      for mean in found
      if (mean.knowledge, mean.facts) == (knowledge, facts) and mean.accuracy >= accuracy
    ]
    for knowledge, facts in asked
  }
  return [
    Needed(facts, knowledge, min(sizes[knowledge, facts], default=None))
    for knowledge, facts in asked
  ]


def summary(points: Sequence[Point], accuracy: float) -> dict[str, Any]:
  """All that `memorisation.json` holds."""
  found = means(points)
  return {
    "points": [point.row() for point in points],
    "means": [
      {**mean._asdict(), "accuracy": mean.accuracy, "bits_a_parameter": mean.bits / mean.parameters}
      for mean in found
    ],
    "enough": accuracy,
    "needed": [need._asdict() for need in needed(found, accuracy)],
  }


def read_point(row: Mapping[str, Any]) -> Point:
  """A point from its row."""
  return Point(**{name: row[name] for name in Point._fields})
