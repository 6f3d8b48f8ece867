"""Self-attention of decoder-only networks: grouped queries, rotary positions, a cache in two parts.

Several query heads may share one head of keys and values (Ainslie et al. 2023). While text is
written, all samples of a prompt read the same keys and values of the prompt; each has only what it
wrote for itself.
"""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Bool, Float, Int

from kard_jax.core import layers, norms, query_blocks, rope
from kard_jax.core.partitioning import constrain


class Past(NamedTuple):
  """What one position of S samples a prompt looks back on.

  Attributes:
    prompt: keys and values of the prompts: B rows of L positions, one row for all samples.
    written: those of the samples: B * S rows of T positions.
    prompt_mask_BxL: True at the prompt's tokens to look at.
    written_mask_T: True at the written tokens to look at, the one being fed included.
  """

  prompt: layers.KeyValues
  written: layers.KeyValues
  prompt_mask_BxL: jax.Array
  written_mask_T: jax.Array


class GroupedAttention(nn.Module):
  """Multi-head attention whose G heads of keys and values each serve H / G heads of queries.

  Attributes:
    num_heads: H.
    num_kv_heads: G, a divisor of H.
    head_dim: K; H * K need not be D.
    scale: multiplies scores.
    use_bias: in the products that make queries, keys and values.
    use_out_bias: in the last product.
    normed: each head of queries and keys is normalised (RMSNorm), as in Qwen3.
    epsilon: of that norm.
    dropout_rate: on attention weights.
    dtype: of activations; scores and softmax are float32.
  """

  num_heads: int
  num_kv_heads: int
  head_dim: int
  scale: float
  use_bias: bool = False
  use_out_bias: bool = False
  normed: bool = False
  epsilon: float = 1e-6
  dropout_rate: float = 0.0
  dtype: DTypeLike = jnp.float32

  def setup(self) -> None:
    """Makes the projections."""
    axes = ("embed", "heads", "kv")

    def projection(heads: int) -> layers.Dense:
      return layers.Dense((heads, self.head_dim), axes, dtype=self.dtype, use_bias=self.use_bias)

    self.query = projection(self.num_heads)
    self.key = projection(self.num_kv_heads)
    self.value = projection(self.num_kv_heads)
    if self.normed:
      self.query_norm = norms.RMSNorm(self.epsilon, self.dtype, axis="kv")
      self.key_norm = norms.RMSNorm(self.epsilon, self.dtype, axis="kv")
    self.dropout = layers.Dropout(self.dropout_rate)

  def __call__(
    self,
    x_BxTxD: Float[Array, "B T D"],
    mask: Bool[Array, "#B T T"],
    *,
    rotation: rope.Rotation | None = None,
    scale: ArrayLike | None = None,
    deterministic: bool = True,
  ) -> tuple[Float[Array, "B T D"], layers.KeyValues]:
    """All positions at once.

    Args:
      x_BxTxD: what attends to itself.
      mask: True where a query (first T) may look at a key (second T).
      rotation: of each position; None where positions are not rotary.
      scale: multiplies scores besides `self.scale`.
      deterministic: no dropout.

    Returns:
      The output, and keys and values, of which decoding makes its cache.
    """
    queries, memory = self._project(x_BxTxD, rotation)

    def mix(queries_BxGxTxRxK: jax.Array, mask: jax.Array) -> jax.Array:
      B, G, T, R, K = queries_BxGxTxRxK.shape
      scores = self._scores(queries_BxGxTxRxK.reshape(B, G, -1, K), memory, scale)
      scores_BxGxTxRxL = scores.reshape(B, G, T, R, -1)
      scores_BxGxTxRxL = jnp.where(mask[:, None, :, None], scores_BxGxTxRxL, layers.MASKED)
      weights = jax.nn.softmax(scores_BxGxTxRxL, axis=-1).astype(self.dtype)
      weights = self.dropout(weights.reshape(B, G, T * R, -1), deterministic)
      return jnp.matmul(weights, memory.values_BxHxLxK).reshape(queries_BxGxTxRxK.shape)

    mixed = (
      query_blocks.attend(mix, queries, 2, [(mask, 1)]) if deterministic else mix(queries, mask)
    )
    return self._out(mixed, x_BxTxD.shape[-1]), memory

  def step(
    self,
    x_BxSxD: Float[Array, "B S D"],
    position: Int[Array, ""],
    past: Past,
    *,
    rotation: rope.Rotation | None = None,
    scale: ArrayLike | None = None,
  ) -> tuple[Float[Array, "B S D"], layers.KeyValues]:
    """One position of S samples a prompt; gives back what is written with this position in it.

    The samples of a prompt stand where a row's positions stand in training.
    """
    queries_BxGxSxRxK, new = self._project(x_BxSxD, rotation)
    B, G, S, R, K = queries_BxGxSxRxK.shape
    written = self._write(past.written, new, position)
    L, T = past.prompt_mask_BxL.shape[1], past.written_mask_T.shape[0]
    scores = self._scores(queries_BxGxSxRxK.reshape(B, G, S * R, K), past.prompt, scale)
    scores_BxGxSxRxL = jnp.where(
      past.prompt_mask_BxL[:, None, None, None], scores.reshape(B, G, S, R, L), layers.MASKED
    )
    queries_NxGxRxK = queries_BxGxSxRxK.swapaxes(1, 2).reshape(B * S, G, R, K)
    scores_NxGxRxT = self._scores(queries_NxGxRxK, written, scale)
    scores_BxSxGxRxT = jnp.where(
      past.written_mask_T, scores_NxGxRxT.reshape(B, S, G, R, T), layers.MASKED
    )
    scores_BxGxSxRxLT = jnp.concatenate(
      [scores_BxGxSxRxL, scores_BxSxGxRxT.swapaxes(1, 2)], axis=-1
    )
    weights = jax.nn.softmax(scores_BxGxSxRxLT, axis=-1).astype(self.dtype)
    of_prompt = weights[..., :L].reshape(B, G, S * R, L)
    of_written = weights[..., L:].swapaxes(1, 2).reshape(B * S, G, R, T)
    mixed_BxGxSxRxK = jnp.matmul(of_prompt, past.prompt.values_BxHxLxK).reshape(B, G, S, R, K)
    mixed_NxGxRxK = jnp.matmul(of_written, written.values_BxHxLxK)
    mixed_BxGxSxRxK += mixed_NxGxRxK.reshape(B, S, G, R, K).swapaxes(1, 2)
    return self._out(mixed_BxGxSxRxK, x_BxSxD.shape[-1]), written

  def _project(
    self, x_BxTxD: jax.Array, rotation: rope.Rotation | None
  ) -> tuple[jax.Array, layers.KeyValues]:
    """Queries [B, G, T, R, K], R of them for each head of keys, and keys and values."""
    axes = ("batch", "length", "heads", "kv")
    queries_BxTxHxK, keys_BxTxGxK = self.query(x_BxTxD), self.key(x_BxTxD)
    if self.normed:
      queries_BxTxHxK = self.query_norm(queries_BxTxHxK)
      keys_BxTxGxK = self.key_norm(keys_BxTxGxK)
    if rotation is not None:
      queries_BxTxHxK = rope.rotate(queries_BxTxHxK, rotation)
      keys_BxTxGxK = rope.rotate(keys_BxTxGxK, rotation)
    queries_BxTxHxK = constrain(queries_BxTxHxK, axes)
    B, T = x_BxTxD.shape[:2]
    grouped = queries_BxTxHxK.reshape(B, T, self.num_kv_heads, -1, self.head_dim)
    memory = layers.KeyValues(
      constrain(keys_BxTxGxK, axes).transpose(0, 2, 3, 1),
      constrain(self.value(x_BxTxD), axes).swapaxes(1, 2),
    )
    return grouped.swapaxes(1, 2), memory

  def _scores(
    self, queries_BxGxQxK: jax.Array, memory: layers.KeyValues, scale: ArrayLike | None
  ) -> jax.Array:
    scores = jnp.matmul(queries_BxGxQxK, memory.keys_BxHxKxL, preferred_element_type=jnp.float32)
    return scores * (self.scale if scale is None else self.scale * scale)

  @staticmethod
  def _write(
    written: layers.KeyValues, new: layers.KeyValues, position: jax.Array
  ) -> layers.KeyValues:
    """Puts S samples a prompt, where positions stand, into their rows at a position."""
    B, G, K, S = new.keys_BxHxKxL.shape
    keys = new.keys_BxHxKxL.transpose(0, 3, 1, 2).reshape(B * S, G, K, 1)
    values = new.values_BxHxLxK.swapaxes(1, 2).reshape(B * S, G, 1, K)
    write = jax.lax.dynamic_update_slice_in_dim
    return layers.KeyValues(
      write(written.keys_BxHxKxL, keys, position, axis=3),
      write(written.values_BxHxLxK, values, position, axis=2),
    )

  @nn.compact
  def _out(self, mixed_BxGxTxRxK: jax.Array, width: int) -> jax.Array:
    B, _, T, _, K = mixed_BxGxTxRxK.shape
    mixed_BxTxHxK = mixed_BxGxTxRxK.swapaxes(1, 2).reshape(B, T, self.num_heads, K)
    mixed_BxTxHxK = constrain(mixed_BxTxHxK, ("batch", "length", "heads", "kv"))
    axes = ("heads", "kv", "embed")
    out = layers.Dense((width,), axes, dtype=self.dtype, use_bias=self.use_out_bias, name="out")
    return out(mixed_BxTxHxK)
