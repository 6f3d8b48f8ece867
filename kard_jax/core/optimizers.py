"""Optax optimisers and learning-rate schedules, as the paper uses them (its settings)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from kard_jax.core.files import InputError


@dataclasses.dataclass(frozen=True)
class Schedule:
  """A learning rate: linear warm-up from zero, then one of four ways down.

  Attributes:
    peak: the rate after warm-up.
    warmup: steps of warm-up; a fraction of all steps when below 1.
    decay: "constant" (the paper's student), "linear", "cosine" or "rsqrt" (T5's).
  """

  peak: float
  warmup: float = 0.05
  decay: str = "constant"

  def __call__(self, steps: int) -> optax.Schedule:
    """The schedule of a run of `steps` steps."""
    warmup = int(self.warmup * steps) if self.warmup < 1 else int(self.warmup)
    start, rest = max(1, warmup), max(1, steps - warmup)
    after = {
      "constant": lambda: optax.constant_schedule(self.peak),
      "linear": lambda: optax.linear_schedule(self.peak, 0.0, rest),
      "cosine": lambda: optax.cosine_decay_schedule(self.peak, rest),
      "rsqrt": lambda: lambda step: self.peak * (start / (start + jnp.maximum(step, 0))) ** 0.5,
    }
    if self.decay not in after:
      raise InputError(f"optimizers.Schedule.decay = {self.decay!r}: choose from {sorted(after)}")
    ramp = optax.linear_schedule(0.0, self.peak, start)
    return optax.join_schedules([ramp, after[self.decay]()], [warmup])


@dataclasses.dataclass(frozen=True)
class AdamW:
  """AdamW with clipping by global norm.

  Attributes:
    schedule: the learning rate.
    weight_decay: applied to kernels and tables (not to norms' scales, nor to biases).
    clip: the largest global gradient norm; 0 leaves gradients alone.
    b1: decay of the first moment.
    b2: decay of the second moment.
  """

  schedule: Schedule
  weight_decay: float = 0.0
  clip: float = 1.0
  b1: float = 0.9
  b2: float = 0.999

  def __call__(self, steps: int) -> optax.GradientTransformation:
    """The transformation for a run of `steps` steps."""
    parts = [optax.clip_by_global_norm(self.clip)] if self.clip else []
    adamw = optax.adamw(
      self.schedule(steps), b1=self.b1, b2=self.b2, weight_decay=self.weight_decay, mask=_matrices
    )
    return optax.chain(*parts, adamw)


@dataclasses.dataclass(frozen=True)
class Adafactor:
  """Adafactor, T5's own optimiser: second moments by row and column, so XXL fits.

  Attributes:
    schedule: the learning rate.
    clip: the largest root mean square of an update.
  """

  schedule: Schedule
  clip: float = 1.0

  def __call__(self, steps: int) -> optax.GradientTransformation:
    """The transformation for a run of `steps` steps."""
    return optax.adafactor(self.schedule(steps), clipping_threshold=self.clip)


def _matrices(params: optax.Params) -> optax.Params:
  """Which parameters decay; by name, as scanned layers give a scale a second axis."""

  def decays(path: tuple[Any, ...], leaf: jax.Array) -> bool:
    name = next((part.key for part in reversed(path) if hasattr(part, "key")), "")  # of a box, too
    return leaf.ndim > 1 and name not in ("scale", "bias")

  return jax.tree_util.tree_map_with_path(decays, params)
