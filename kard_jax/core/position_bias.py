"""T5's positions: a bias of attention by the distance of key and query."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int


class RelativePositionBias(nn.Module):
  """T5's position bias: one learnt number for each head and bucket of distance.

  Half of the buckets hold one distance each, the other half grow logarithmically up to
  `max_distance`; all farther keys share the last one.

  Attributes:
    num_heads: H.
    bidirectional: whether keys after the query get buckets of their own (encoders).
    num_buckets: how many, both directions together.
    max_distance: in tokens.
    dtype: of the bias.
  """

  num_heads: int
  bidirectional: bool
  num_buckets: int = 32
  max_distance: int = 128
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, query_positions_Q: Int[Array, " Q"], key_positions_L: Int[Array, " L"]
  ) -> Float[Array, "1 H Q L"]:
    """The bias of each key for each query, in tokens from the start of the row."""
    init = nn.with_logical_partitioning(
      nn.initializers.variance_scaling(1.0, "fan_avg", "uniform"), ("heads", "relpos_buckets")
    )
    table_HxU: Any = self.param(
      "rel_embedding", init, (self.num_heads, self.num_buckets), jnp.float32
    )
    buckets_QxL = relative_buckets(
      key_positions_L[None, :] - query_positions_Q[:, None],
      bidirectional=self.bidirectional,
      num_buckets=self.num_buckets,
      max_distance=self.max_distance,
    )
    return jnp.take(table_HxU.astype(self.dtype), buckets_QxL, axis=1)[None]


def relative_buckets(
  distance: Int[Array, "*shape"], *, bidirectional: bool, num_buckets: int, max_distance: int
) -> Int[Array, "*shape"]:
  """T5's bucket of each distance (key position minus query position), in tokens.

  Source: Raffel et al. 2020, section 2.1; the same buckets as Mesh TensorFlow's code.
  """
  base = jnp.zeros_like(distance)
  if bidirectional:
    num_buckets //= 2
    base = jnp.where(distance > 0, num_buckets, 0)
    distance = jnp.abs(distance)
  else:
    distance = jnp.maximum(-distance, 0)
  exact = num_buckets // 2  # distances below this have a bucket each
  ratio = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact)
  far = exact + (ratio / math.log(max_distance / exact) * (num_buckets - exact)).astype(jnp.int32)
  return base + jnp.where(distance < exact, distance, jnp.minimum(far, num_buckets - 1))
