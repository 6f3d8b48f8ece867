"""Which of the stored candidates a training list holds (paper, section 3.3; official code: 4 + 4).

Up to 32 + 32 candidates are stored for each rationale; a training list is a fresh draw of a few
from each side, so that a step costs little and the reranker still meets all of them in time.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Int

from kard_jax.core.files import InputError


@dataclasses.dataclass(frozen=True)
class Draw:
  """How a list is drawn.

  Attributes:
    by_rationale: candidates from those that the rationale found.
    by_question: candidates from those that only the question found.
    keep_best: whether the candidate that the rationale puts first is in every list. The official
      code leaves it to chance.
  """

  by_rationale: int = 4
  by_question: int = 4
  keep_best: bool = False

  def __post_init__(self) -> None:
    if min(self.by_rationale, self.by_question) < 0 or self.size < 2:
      raise InputError(
        f"Batches.draw = ({self.by_rationale}, {self.by_question}): a list holds at least 2 "
        "candidates, and no side gives fewer than none"
      )

  @property
  def size(self) -> int:
    """C: the candidates of a list."""
    return self.by_rationale + self.by_question

  def __call__(
    self, from_rationale: Bool[np.ndarray, " n"], rng: np.random.Generator
  ) -> Int[np.ndarray, " c"]:
    """Draws without replacement.

    A side that has too few gives what it has, and the other side fills up: a question whose words
    are the rationale's has few candidates of its own.

    Args:
      from_rationale: for each stored candidate, best first, whether the rationale found it.
      rng: the only source of chance.

    Returns:
      positions in the stored list, ascending; `size` of them, or all where there are fewer.
    """
    chance = rng.random(len(from_rationale))
    if self.keep_best and len(chance):
      chance[0] = -1.0
    order = np.argsort(chance)
    rationale_side = from_rationale[order]
    place = np.where(rationale_side, np.cumsum(rationale_side), np.cumsum(~rationale_side))
    late = place > np.where(rationale_side, self.by_rationale, self.by_question)
    return np.sort(order[np.argsort(late, kind="stable")][: self.size])
