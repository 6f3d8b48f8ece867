"""BERT's encoder, and what is shaped like it: LinkBERT, BioLinkBERT, MiniLM, by configuration.

The reranker of the paper is LinkBERT's size (section 4). Every layer normalises after its sum, as
BERT does and T5 does not. Parameters are float32 and have T5X's names; `convert.bert` has the
table to transformers' ones. Source: Devlin et al. 2019.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from kard_jax.core import layers, scanning
from kard_jax.core.files import InputError
from kard_jax.core.norms import LayerNorm
from kard_jax.core.partitioning import constrain


class Bert(nn.Module):
  """Token, position and segment embeddings, and layers that normalise after each sum.

  Attributes:
    vocab_size: V.
    embed_dim: D, a multiple of H.
    num_layers: how many.
    num_heads: H.
    mlp_dim: F.
    max_positions: rows of the position table: no text can be longer.
    num_segments: kinds of segments; 0 has no table.
    activations: of the feed-forward layers.
    norm_epsilon: of every layer norm.
    pad_id: the token that is none.
    dropout_rate: everywhere.
    dtype: of activations; norms and softmax are float32.
    remat: what a layer computes again in the backward pass, see `scanning.rematerialised`.
    scan_layers: one set of arrays with an axis for the layers, compiled once.
  """

  vocab_size: int
  embed_dim: int
  num_layers: int
  num_heads: int
  mlp_dim: int
  max_positions: int = 512
  num_segments: int = 2
  activations: tuple[str, ...] = ("gelu_erf",)
  norm_epsilon: float = 1e-12
  pad_id: int = 0
  dropout_rate: float = 0.0
  dtype: DTypeLike = jnp.float32
  remat: str = "none"
  scan_layers: bool = False

  @nn.compact
  def __call__(
    self,
    tokens_BxL: Int[Array, "B L"],
    segments_BxL: Int[Array, "B L"] | None = None,
    *,
    first_only: bool = False,
    deterministic: bool = True,
  ) -> Float[Array, "B Q D"]:
    """Vectors of tokens; what stands at padding has no effect elsewhere, and no meaning.

    Args:
      tokens_BxL: token ids; `pad_id` is padding, wherever it stands.
      segments_BxL: which segment each token is of; None: all of the first.
      first_only: give the first position's vector alone [B, 1, D]. The last layer then computes
        nothing else, unless layers are scanned.
      deterministic: no dropout.

    Raises:
      InputError: rows are longer than the position table, or H does not divide D.
    """
    length = tokens_BxL.shape[1]
    if length > self.max_positions:
      raise InputError(
        f"bert.Bert.max_positions = {self.max_positions}: rows have {length} tokens; lower "
        "QUERY_LENGTH or PASSAGE_LENGTH (a cross-encoder reads both at once)"
      )
    if self.embed_dim % self.num_heads:
      raise InputError(
        f"bert.Bert.num_heads = {self.num_heads} does not divide embed_dim = {self.embed_dim}"
      )
    x = self._embedded(tokens_BxL, segments_BxL)
    x = layers.Dropout(self.dropout_rate)(x, deterministic)
    mask_BxL = tokens_BxL != self.pad_id
    layer = functools.partial(
      BertLayer,
      self.num_heads,
      self.mlp_dim,
      self.activations,
      self.norm_epsilon,
      self.dropout_rate,
      self.dtype,
    )
    call: scanning.Call
    if self.scan_layers and self.num_layers:
      call = lambda layer, x, mask: layer(x, mask, False, deterministic)
      stack, length = layer(name=scanning.LAYERS), self.num_layers
      x = scanning.scan(stack, call, x, mask_BxL, length=length, remat=self.remat)
    else:
      for i in range(self.num_layers):
        first = first_only and i == self.num_layers - 1
        call = lambda layer, x, mask, first=first: layer(x, mask, first, deterministic)
        call = scanning.rematerialised(call, self.remat)
        x = call(layer(name=f"{scanning.LAYERS}_{i}"), x, mask_BxL)
    return x[:, :1] if first_only else x

  @nn.compact
  def _embedded(self, tokens_BxL: jax.Array, segments_BxL: jax.Array | None) -> jax.Array:
    options = {"stddev": 0.02, "dtype": jnp.float32}
    embed = layers.Embedding(self.vocab_size, self.embed_dim, name="token_embedder", **options)
    x = embed(tokens_BxL)
    # axes that no rule splits: both tables are small
    positions = layers.Embedding(
      self.max_positions, self.embed_dim, axis="length", name="position_embedder", **options
    )
    x = x + positions(jnp.arange(tokens_BxL.shape[1]))
    if self.num_segments:
      table = layers.Embedding(
        self.num_segments, self.embed_dim, axis="relpos_buckets", name="segment_embedder", **options
      )
      x = x + table(jnp.zeros((), jnp.int32) if segments_BxL is None else segments_BxL)
    return LayerNorm(self.norm_epsilon, self.dtype, name="embedding_layer_norm")(x)


class BertLayer(nn.Module):
  """Self-attention, then feed-forward; each sum is normalised. Attributes: as `Bert`."""

  num_heads: int
  mlp_dim: int
  activations: tuple[str, ...]
  norm_epsilon: float
  dropout_rate: float
  dtype: DTypeLike

  @nn.compact
  def __call__(
    self,
    x_BxLxD: Float[Array, "B L D"],
    mask_BxL: Bool[Array, "B L"],
    first_only: bool,
    deterministic: bool,
  ) -> Float[Array, "B Q D"]:
    """One layer; with `first_only`, of the first position alone."""
    x = constrain(x_BxLxD, ("batch", "length", "embed"))
    attention = BertAttention(self.num_heads, self.dropout_rate, self.dtype, name="attention")
    queries = x[:, :1] if first_only else x
    y = attention(queries, x, mask_BxL, deterministic)
    y = queries + layers.Dropout(self.dropout_rate)(y, deterministic)
    x = LayerNorm(self.norm_epsilon, self.dtype, name="attention_layer_norm")(y)
    mlp = layers.Mlp(self.mlp_dim, self.activations, 0.0, self.dtype, use_bias=True, name="mlp")
    y = x + layers.Dropout(self.dropout_rate)(mlp(x, deterministic=deterministic), deterministic)
    return LayerNorm(self.norm_epsilon, self.dtype, name="mlp_layer_norm")(y)


class BertAttention(nn.Module):
  """Multi-head attention with biases, scores scaled by the root of the head's width.

  Attributes:
    num_heads: H.
    dropout_rate: on attention weights.
    dtype: of activations; scores and softmax are float32.
  """

  num_heads: int
  dropout_rate: float = 0.0
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    queries_BxQxD: Float[Array, "B Q D"],
    memory_BxLxD: Float[Array, "B L D"],
    mask_BxL: Bool[Array, "B L"],
    deterministic: bool,
  ) -> Float[Array, "B Q D"]:
    """Attends from queries to memory where the mask is true."""
    width = queries_BxQxD.shape[-1]
    head_dim = width // self.num_heads

    def heads(name: str, x: jax.Array) -> jax.Array:
      dense = layers.Dense(
        (self.num_heads, head_dim),
        ("embed", "heads", "kv"),
        dtype=self.dtype,
        use_bias=True,
        name=name,
      )
      return constrain(dense(x), ("batch", "length", "heads", "kv")).swapaxes(1, 2)

    # scaled before the product: there are fewer numbers then
    queries: Any = heads("query", queries_BxQxD) * head_dim**-0.5
    keys, values = heads("key", memory_BxLxD), heads("value", memory_BxLxD)
    scores_BxHxQxL = jnp.matmul(queries, keys.swapaxes(2, 3), preferred_element_type=jnp.float32)
    scores_BxHxQxL = jnp.where(mask_BxL[:, None, None], scores_BxHxQxL, layers.MASKED)
    weights = jax.nn.softmax(scores_BxHxQxL, axis=-1).astype(self.dtype)
    weights = layers.Dropout(self.dropout_rate)(weights, deterministic)
    mixed = jnp.matmul(weights, values).swapaxes(1, 2)
    mixed = constrain(mixed, ("batch", "length", "heads", "kv"))
    out = layers.Dense(
      (width,), ("heads", "kv", "embed"), dtype=self.dtype, use_bias=True, name="out"
    )
    return out(mixed)
