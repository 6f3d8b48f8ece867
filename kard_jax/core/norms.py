"""Layer normalisation: with mean and bias as in GPT-2 and OPT, without as in T5 and Llama."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


class LayerNorm(nn.Module):
  """Zero mean and unit variance, then a learnt scale and bias (Ba et al. 2016).

  Attributes:
    epsilon: added to the variance.
    dtype: of the result; mean and variance are taken in float32.
    affine: whether there are a scale and a bias.
  """

  epsilon: float = 1e-5
  dtype: DTypeLike = jnp.float32
  affine: bool = True

  @nn.compact
  def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
    """Normalises the last axis."""
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    y = centred * jax.lax.rsqrt(variance + self.epsilon)
    if self.affine:
      ones = nn.with_logical_partitioning(nn.initializers.ones, ("embed",))
      zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("embed",))
      scale_D: Any = self.param("scale", ones, (x.shape[-1],), jnp.float32)
      bias_D: Any = self.param("bias", zeros, (x.shape[-1],), jnp.float32)
      y = y * scale_D + bias_D
    return y.astype(self.dtype)


class RMSNorm(nn.Module):
  """T5's layer norm: scaled to unit root mean square, no mean taken away and no bias.

  Attributes:
    epsilon: added to the mean square.
    dtype: of the result; the mean is taken in float32.
    axis: logical name of the last axis.
  """

  epsilon: float = 1e-6
  dtype: DTypeLike = jnp.float32
  axis: str = "embed"

  @nn.compact
  def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
    """Normalises the last axis."""
    init = nn.with_logical_partitioning(nn.initializers.ones, (self.axis,))
    scale_D: Any = self.param("scale", init, (x.shape[-1],), jnp.float32)
    wide = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(mean_square + self.epsilon) * scale_D).astype(self.dtype)
