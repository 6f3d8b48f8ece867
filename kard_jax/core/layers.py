"""What the networks are built of, in Linen, with logical axis names on every array.

The student (paper section 3.1) and the reranker (section 3.3) are built from these. Parameters and
softmax are float32; `dtype` is that of activations (float32 or bfloat16; float16 overflows T5).
Dropout draws from the rng named "dropout", one mask for all positions of a row, as T5X does.
Parameter names follow T5X, so that its checkpoints map one to one.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from kard_jax.core import activations, products, query_blocks
from kard_jax.core.partitioning import constrain

MASKED = -1e10  # finite, so that a row with nothing to attend to gives no NaN


class Embedding(nn.Module):
  """A table of token vectors.

  Attributes:
    num_embeddings: V, rows of the table; keep it a multiple of the mesh axis that shards `vocab`.
    features: D.
    dtype: of the vectors given back.
    stddev: of the initial numbers; T5's are 1, GPTs' smaller, as their tied logits are not scaled.
    axis: logical name of the rows.
  """

  num_embeddings: int
  features: int
  dtype: DTypeLike = jnp.float32
  stddev: float = 1.0
  axis: str = "vocab"

  def setup(self) -> None:
    """Makes the table."""
    normal = nn.initializers.normal(stddev=self.stddev)
    init = nn.with_logical_partitioning(normal, (self.axis, "embed"))
    self.embedding: Any = self.param(
      "embedding", init, (self.num_embeddings, self.features), jnp.float32
    )

  def __call__(self, tokens: Int[Array, "*rows"]) -> Float[Array, "*rows D"]:
    """The vector of each token; NaN for one that is not in the table, so that training stops."""
    return jnp.take(self.embedding, tokens, axis=0, mode="fill").astype(self.dtype)

  def attend(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
    """Dot products with every row, in float32: logits when input and output share the table.

    T5 with tied embeddings scales `x` by `D ** -0.5` first; that is left to the caller.
    """
    table_VxD = self.embedding.astype(self.dtype)
    return jnp.matmul(x.astype(self.dtype), table_VxD.T, preferred_element_type=jnp.float32)


class Dense(nn.Module):
  """A matrix product over the last axes.

  The kernel keeps its axes (`embed heads kv`), so that each can be sharded by name. The product
  itself has two axes a side: with more, XLA's CPU backend transposes whole activations to get the
  kernel's gradient, which then takes 2 to 7 times as long.

  Attributes:
    features: sizes of the axes put in.
    axes: logical names of the kernel's axes: those summed over, then those put in.
    scale: variance of the initial kernel times its fan-in.
    dtype: of the operands.
    output_dtype: of the result; None means `dtype`. Float32 keeps bfloat16 logits exact.
    use_bias: add a learnt vector (T5 has none).
  """

  features: tuple[int, ...]
  axes: tuple[str, ...]
  scale: float = 1.0
  dtype: DTypeLike = jnp.float32
  output_dtype: DTypeLike | None = None
  use_bias: bool = False

  @nn.compact
  def __call__(self, x: Float[Array, "*inputs"]) -> Float[Array, "*outputs"]:
    """Sums over the last `len(axes) - len(features)` axes of x."""
    summed = len(self.axes) - len(self.features)
    rows, inputs = x.shape[: x.ndim - summed], x.shape[x.ndim - summed :]
    init = nn.initializers.variance_scaling(
      self.scale,
      "fan_in",
      "truncated_normal",
      in_axis=tuple(range(summed)),
      out_axis=tuple(range(summed, len(self.axes))),
    )
    kernel: Any = self.param(
      "kernel",
      nn.with_logical_partitioning(init, self.axes),
      (*inputs, *self.features),
      jnp.float32,
    )
    y = products.product(
      x.reshape(-1, math.prod(inputs)),
      kernel.reshape(math.prod(inputs), -1),
      self.dtype,
      self.output_dtype or self.dtype,
    )
    y = y.reshape(*rows, *self.features)
    if not self.use_bias:
      return y
    zeros = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[summed:])
    bias: Any = self.param("bias", zeros, self.features, jnp.float32)
    return y + bias.astype(y.dtype)


class Dropout(nn.Module):
  """Dropout with one mask for all positions of a row (T5X's way): fewer random numbers.

  Attributes:
    rate: the share of features set to zero.
  """

  rate: float

  @nn.compact
  def __call__(self, x: Float[Array, "*rows"], deterministic: bool) -> Float[Array, "*rows"]:
    """Drops features of x [..., L, D], the same at each L."""
    return nn.Dropout(self.rate, broadcast_dims=(-2,))(x, deterministic=deterministic)


class KeyValues(NamedTuple):
  """What attention looks at: projected once, then read by any number of queries.

  Attributes:
    keys_BxHxKxL: ready to be multiplied by queries, so that no step of decoding transposes them.
    values_BxHxLxK: likewise, by weights.
  """

  keys_BxHxKxL: jax.Array
  values_BxHxLxK: jax.Array


class Attention(nn.Module):
  """Multi-head attention as in T5: no scaling of scores (its initial query kernel is smaller).

  `__call__` serves training. Cached decoding calls `keys_values` once for each new position (or
  once for the whole encoder output) and `attend` for each query.

  Attributes:
    num_heads: H.
    head_dim: K; H * K need not be D.
    dropout_rate: on attention weights.
    dtype: of activations; scores and softmax are float32.
  """

  num_heads: int
  head_dim: int
  dropout_rate: float = 0.0
  dtype: DTypeLike = jnp.float32

  def setup(self) -> None:
    """Makes the projections that `keys_values` and `attend` use."""
    heads, axes = (self.num_heads, self.head_dim), ("embed", "heads", "kv")
    self.query = Dense(heads, axes, scale=1.0 / self.head_dim, dtype=self.dtype)
    self.key = Dense(heads, axes, dtype=self.dtype)
    self.value = Dense(heads, axes, dtype=self.dtype)
    self.dropout = Dropout(self.dropout_rate)

  def __call__(
    self,
    queries_BxQxD: Float[Array, "B Q D"],
    memory_BxLxE: Float[Array, "B L E"],
    *,
    bias: Float[Array, "#B #H Q L"] | None = None,
    mask: Bool[Array, "#B #H #Q L"] | None = None,
    deterministic: bool = True,
  ) -> Float[Array, "B Q D"]:
    """Attends from queries to memory; give the same array twice for self-attention."""
    return self.attend(
      queries_BxQxD,
      self.keys_values(memory_BxLxE),
      bias=bias,
      mask=mask,
      deterministic=deterministic,
    )

  def keys_values(self, memory_BxLxE: Float[Array, "B L E"]) -> KeyValues:
    """Projects what is attended to."""
    axes = ("batch", "length", "heads", "kv")
    keys = constrain(self.key(memory_BxLxE), axes).transpose(0, 2, 3, 1)
    values = constrain(self.value(memory_BxLxE), axes).swapaxes(1, 2)
    return KeyValues(keys, values)

  @nn.compact
  def attend(
    self,
    queries_BxQxD: Float[Array, "B Q D"],
    memory: KeyValues | tuple[KeyValues, ...],
    *,
    bias: Float[Array, "#B #H Q L"] | None = None,
    mask: Bool[Array, "#B #H #Q L"] | tuple[Bool[Array, "_B 1 1 _L"], ...] | None = None,
    deterministic: bool = True,
  ) -> Float[Array, "B Q D"]:
    """Attends from queries to projected keys and values.

    Args:
      queries_BxQxD: activations to project to queries.
      memory: from `keys_values`; several stand for batches of unequal lengths, whose rows follow
        one another among the queries, each with its mask.
      bias: added to the scores.
      mask: True where a query may look.
      deterministic: no dropout.
    """
    queries = self.query(queries_BxQxD)
    queries = constrain(queries, ("batch", "length", "heads", "kv"))
    if isinstance(memory, KeyValues):
      mixed = self._mix(queries, memory, bias, mask, deterministic)
    else:
      ends = np.cumsum([part.keys_BxHxKxL.shape[0] for part in memory])
      parts = zip(jnp.split(queries, ends[:-1]), memory, mask or (), strict=True)
      mixed = jnp.concatenate(
        [self._mix(some, part, bias, its, deterministic) for some, part, its in parts]
      )
    mixed = constrain(mixed, ("batch", "length", "heads", "kv"))
    out = Dense((queries_BxQxD.shape[-1],), ("heads", "kv", "embed"), dtype=self.dtype, name="out")
    return out(mixed)

  def _mix(
    self,
    queries: jax.Array,
    memory: KeyValues,
    bias: jax.Array | None,
    mask: Any,
    deterministic: bool,
  ) -> jax.Array:
    """Values [B, Q, H, K] in the proportions that queries ask for."""

    def mix(queries: jax.Array, bias: jax.Array | None, mask: Any) -> jax.Array:
      scores_BxHxQxL = products.product(
        queries.swapaxes(1, 2), memory.keys_BxHxKxL, self.dtype, jnp.float32
      )
      if bias is not None:
        if bias.shape[0] == 1:
          bias = products.for_each_row(bias, scores_BxHxQxL.shape[0])
        scores_BxHxQxL = scores_BxHxQxL + bias
      if mask is not None:
        scores_BxHxQxL = jnp.where(mask, scores_BxHxQxL, MASKED)
      weights_BxHxQxL = jax.nn.softmax(scores_BxHxQxL, axis=-1).astype(self.dtype)
      weights_BxHxQxL = self.dropout(weights_BxHxQxL, deterministic)
      mixed = products.product(weights_BxHxQxL, memory.values_BxHxLxK, self.dtype, self.dtype)
      return mixed.swapaxes(1, 2)

    if deterministic:
      return query_blocks.attend(mix, queries, 1, [(bias, 2), (mask, 2)])
    return mix(queries, bias, mask)


class Mlp(nn.Module):
  """The feed-forward layer: with two activations, their product (a gated unit).

  Attributes:
    mlp_dim: F.
    activations: ("gelu", "linear") is T5 1.1's, ("relu",) the first T5's.
    dropout_rate: on the hidden layer.
    dtype: of activations.
    use_bias: in each product.
  """

  mlp_dim: int
  activations: tuple[str, ...] = ("gelu", "linear")
  dropout_rate: float = 0.0
  dtype: DTypeLike = jnp.float32
  use_bias: bool = False

  @nn.compact
  def __call__(
    self, x_BxLxD: Float[Array, "B L D"], *, deterministic: bool = True
  ) -> Float[Array, "B L D"]:
    """Each position on its own."""
    hidden = jnp.ones((), self.dtype)
    for i, activation in enumerate(self.activations):
      name = "wi" if len(self.activations) == 1 else f"wi_{i}"
      wi = Dense(
        (self.mlp_dim,), ("embed", "mlp"), dtype=self.dtype, use_bias=self.use_bias, name=name
      )
      hidden = hidden * activations.named(activation)(wi(x_BxLxD))
    hidden = constrain(hidden, ("batch", "length", "mlp"))
    hidden = Dropout(self.dropout_rate)(hidden, deterministic)
    features, axes = (x_BxLxD.shape[-1],), ("mlp", "embed")
    wo = Dense(features, axes, dtype=self.dtype, use_bias=self.use_bias, name="wo")
    return wo(hidden)


def same_segment(
  query_segments_BxQ: Int[Array, "B Q"], key_segments_BxL: Int[Array, "B L"]
) -> Bool[Array, "B 1 Q L"]:
  """True where a query and a key belong to the same text of a packed row.

  A text's tokens stand side by side, so distances within it are those within the row: position
  biases need nothing more.
  """
  return (query_segments_BxQ[:, :, None] == key_segments_BxL[:, None, :])[:, None]
