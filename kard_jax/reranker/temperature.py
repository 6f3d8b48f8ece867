"""Temperatures of a softmax over candidates: a positive number, or a schedule of such by step.

The official code lowers its temperatures by a fixed amount a step until they are negative, which
turns a distribution upside down. Here a schedule moves between two positive numbers and stays.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from typing import Any

import numpy as np

from kard_jax.core.files import InputError

SHAPES = ("geometric", "linear")
_SMALLEST = float(np.finfo(np.float32).tiny)  # below it, some devices divide by zero


@dataclasses.dataclass(frozen=True)
class Schedule:
  """A temperature that goes from one positive number to another, and then stays.

  Attributes:
    start: at step 0.
    end: from step `steps` on, and in evaluation.
    steps: how long the way is.
    shape: "geometric" changes by the same factor each step, "linear" by the same amount.
  """

  start: float
  end: float
  steps: int
  shape: str = "geometric"

  def __post_init__(self) -> None:
    check("temperature.Schedule.start", self.start)
    check("temperature.Schedule.end", self.end)
    if self.steps < 1:
      raise InputError(f"temperature.Schedule.steps = {self.steps!r}: at least 1")
    if self.shape not in SHAPES:
      raise InputError(
        f"temperature.Schedule.shape = {self.shape!r}: choose one of {', '.join(SHAPES)}"
      )

  def __call__(self, step: int) -> float:
    """The temperature of a step, counted from 0; always between `start` and `end`."""
    part = min(max(step, 0), self.steps) / self.steps
    if part == 1:
      return float(self.end)
    if self.shape == "linear":
      value = (1 - part) * self.start + part * self.end
    else:
      value = math.exp((1 - part) * math.log(self.start) + part * math.log(self.end))
    low, high = sorted((float(self.start), float(self.end)))
    return min(max(value, low), high)  # rounding must not leave the range


def check(name: str, value: Any) -> None:
  """Refuses what is neither a positive number nor a schedule.

  Raises:
    InputError: it is not.
  """
  if isinstance(value, Schedule):
    return  # checked itself
  real = isinstance(value, numbers.Real) and not isinstance(value, bool)
  if real and _SMALLEST <= float(value) < float("inf"):
    return
  raise InputError(f"{name} = {value!r}: a temperature is a positive number; set it above 0 in gin")


def at_last(value: float | Schedule) -> float:
  """The temperature at the end of training, which evaluation takes."""
  return value.end if isinstance(value, Schedule) else value


def at(value: float | Schedule, step: int) -> float:
  """The temperature of a step."""
  return value(step) if isinstance(value, Schedule) else value
