"""Rotary position embedding, with the ways in which Llama's relatives stretch it.

A query and a key are turned by an angle that grows with their position, so that their product
depends on the distance alone (Su et al. 2021). The first half of a head is paired with the second
half, as in Hugging Face's checkpoints.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kard_jax.core.files import InputError

SCALINGS = ("default", "linear", "dynamic", "llama3", "yarn")


class Rotation(NamedTuple):
  """The turn of each position, in float32; one for all rows, or one a row.

  Attributes:
    cos_BxTxJ: J is half of the head.
    sin_BxTxJ: likewise.
  """

  cos_BxTxJ: jax.Array
  sin_BxTxJ: jax.Array


@dataclasses.dataclass(frozen=True)
class Rope:
  """How fast each pair of a head turns.

  Attributes:
    theta: the slowest pair turns about once in 2 pi times so many positions.
    scaling: "default" (none); "linear" (all slower by `factor`); "dynamic" (theta grows with the
      text beyond `original_length`); "llama3" and "yarn" (the slow pairs alone are slower).
    factor: how many times longer texts may become.
    original_length: of the texts that the network was first trained on, in tokens.
    low_frequency_factor: llama3: pairs that turn fewer times in the original length are slowed.
    high_frequency_factor: llama3: those that turn more often are left alone.
    beta_fast: yarn: as `high_frequency_factor`.
    beta_slow: yarn: as `low_frequency_factor`.
    truncate: yarn: whether the bounds between pairs are rounded outwards.
    attention_factor: yarn: of queries and keys; None takes the published 0.1 ln(factor) + 1.

  Source: Su et al. 2021; Chen et al. 2023 (linear); Peng et al. 2023 (dynamic, yarn); Dubey et al.
    2024 (llama3).
  """

  theta: float = 10_000.0
  scaling: str = "default"
  factor: float = 1.0
  original_length: int = 0
  low_frequency_factor: float = 1.0
  high_frequency_factor: float = 4.0
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  truncate: bool = True
  attention_factor: float | None = None

  def __post_init__(self) -> None:
    if self.scaling not in SCALINGS:
      raise InputError(f"rope.Rope.scaling = {self.scaling!r}: give one of {', '.join(SCALINGS)}")
    if not self.theta > 0 or not self.factor > 0:
      raise InputError(f"rope.Rope: theta {self.theta} and factor {self.factor} must be above 0")
    if self.scaling in ("dynamic", "llama3", "yarn") and self.original_length < 1:
      raise InputError(f"rope.Rope.scaling = {self.scaling!r} needs original_length, in tokens")

  def rotation(
    self, positions_BxT: Int[Array, "#B T"], lengths_B: Int[Array, "#B"], head_dim: int
  ) -> Rotation:
    """The turns of some positions.

    Args:
      positions_BxT: in tokens from the start of the text.
      lengths_B: of the texts so far; only "dynamic" looks at them.
      head_dim: K.

    Raises:
      InputError: an odd head cannot be halved.
    """
    if head_dim % 2:
      raise InputError(f"head_dim = {head_dim}: rotary positions need an even one")
    if self.scaling == "dynamic":
      if head_dim == 2:
        raise InputError("rope.Rope.scaling = 'dynamic' needs a head_dim of 4 or more, this is 2")
      frequencies_BxJ = self._stretched(lengths_B, head_dim)
    else:
      frequencies_BxJ = jnp.asarray(self.frequencies(head_dim))[None]
    angles_BxTxJ = positions_BxT.astype(jnp.float32)[..., None] * frequencies_BxJ[:, None]
    factor = self._attention_factor()
    return Rotation(jnp.cos(angles_BxTxJ) * factor, jnp.sin(angles_BxTxJ) * factor)

  def frequencies(self, head_dim: int) -> np.ndarray:
    """Radians a position for each pair [J] of a text within the original length, float32.

    Each step is rounded to float32, in the order of the published codes: positions multiply what a
    single last rounding would change, and checkpoints were trained with these numbers.
    """
    one, factor = np.float32(1), np.float32(self.factor)
    plain_J = one / self._powers(head_dim)
    if self.scaling == "linear":
      return plain_J / factor
    if self.scaling == "llama3":
      waves_J = np.float32(2 * math.pi) / plain_J
      low, high = np.float32(self.low_frequency_factor), np.float32(self.high_frequency_factor)
      kept_J = np.clip((np.float32(self.original_length) / waves_J - low) / (high - low), 0, 1)
      return (one - kept_J) * plain_J / factor + kept_J * plain_J
    if self.scaling == "yarn":
      kept_J = self._kept(head_dim).astype(np.float32)
      return one / (factor * self._powers(head_dim)) * (one - kept_J) + plain_J * kept_J
    return plain_J

  def _powers(self, head_dim: int) -> np.ndarray:
    """Positions that each pair [J] takes for a radian."""
    exponents_J = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    return (self.theta ** exponents_J.astype(np.float64)).astype(np.float32)

  def _kept(self, head_dim: int) -> np.ndarray:
    """YaRN: the share of each pair's own frequency; the rest is divided by the factor."""

    def pair_that_turns(times: float) -> float:
      wavelength = self.original_length / (times * 2 * math.pi)
      return head_dim * math.log(wavelength) / (2 * math.log(self.theta))

    low, high = pair_that_turns(self.beta_fast), pair_that_turns(self.beta_slow)
    if self.truncate:
      low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = (high - low) or 0.001  # as published: no division by zero
    return 1.0 - np.clip((np.arange(head_dim // 2) - low) / width, 0.0, 1.0)

  def _stretched(self, lengths_B: jax.Array, head_dim: int) -> jax.Array:
    """Dynamic scaling: frequencies for texts of so many tokens."""
    lengths_B = jnp.maximum(lengths_B, self.original_length).astype(jnp.float32)
    growth_B = self.factor * lengths_B / self.original_length - (self.factor - 1)
    theta_B = self.theta * growth_B ** (head_dim / (head_dim - 2))
    return theta_B[:, None] ** -(jnp.arange(0, head_dim, 2) / head_dim)

  def _attention_factor(self) -> float:
    if self.scaling != "yarn":
      return 1.0
    if self.attention_factor is not None:
      return self.attention_factor
    return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


def rotate(x_BxTxHxK: Float[Array, "B T H K"], rotation: Rotation) -> Float[Array, "B T H K"]:
  """Turns each head of queries or keys; computed in float32."""
  first, second = jnp.split(x_BxTxHxK.astype(jnp.float32), 2, axis=-1)
  cos, sin = rotation.cos_BxTxJ[:, :, None], rotation.sin_BxTxJ[:, :, None]
  turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  return turned.astype(x_BxTxHxK.dtype)
