"""What SeqIO's Evaluator (and so T5X) reports of a student: accuracy, and how much was not parsed.

Answers are read by the dataset's `Prompts.parse`, as everywhere. The score card has intervals and
votes over samples; these are for watching a run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kard_jax.prompts import Prompts

UNPARSED = -1

Postprocess = Callable[..., int]


def postprocessor(prompts: Prompts) -> Postprocess:
  """Makes the function that turns a student's text into the position of an option.

  Args:
    prompts: whose parser reads the text.

  Returns:
    `(text, example=..., is_target=...) -> int`, as SeqIO calls it; `UNPARSED` where the text states
    no answer. For the target it is the example's label, whatever the text.
  """

  def postprocess(
    text: str | bytes, *, example: Mapping[str, Any], is_target: bool = False, **unused: Any
  ) -> int:
    del unused
    if is_target:
      return int(example["label"])
    options = [_text(option) for option in np.asarray(example["options"]).tolist()]
    answer = prompts.parse(_text(text), [option for option in options if option]).answer
    return UNPARSED if answer is None else answer

  return postprocess


def accuracy(targets: Sequence[int], predictions: Sequence[int]) -> dict[str, float]:
  """The share of right answers, and of texts that state none; those count as wrong.

  Args:
    targets: positions of the right options.
    predictions: positions of the stated ones, or `UNPARSED`.

  Returns:
    `accuracy` and `unparsed`, between 0 and 1; NaN for no examples.
  """
  if not len(targets):
    return {"accuracy": float("nan"), "unparsed": float("nan")}
  stated, right = np.asarray(predictions), np.asarray(targets)
  return {
    "accuracy": float(np.mean(stated == right)),
    "unparsed": float(np.mean(stated == UNPARSED)),
  }


def _text(value: str | bytes) -> str:
  return value.decode() if isinstance(value, bytes) else value
