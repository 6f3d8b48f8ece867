"""Scorers of passages for a question: late interaction and a cross-encoder (paper section 3.3).

Both are called as `network(query_tokens_BxL, passage_tokens_BxCxM, deterministic=...)` and give
`scores_BxC`. Token 0 is padding, wherever it stands: it takes no part in a score. The C candidates
of a list are folded into the batch, so that an encoder sees rows of tokens and nothing else.

Dropout draws from the rng named "dropout".
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from kard_jax.core import layers
from kard_jax.core.files import InputError


class TokenVectors(NamedTuple):
  """What late interaction keeps of encoded text: one vector a token, and which tokens are real.

  Attributes:
    vectors: [..., tokens, P] projected vectors; of no meaning at padding.
    mask: [..., tokens] bool, true at real tokens.
  """

  vectors: jax.Array
  mask: jax.Array


class LateInteraction(nn.Module):
  """MaxSim: each question token looks for its best passage token; the score is the sum of these.

  Question and passage share the encoder and the projection, and meet only in dot products, so
  passages can be encoded once (`encode_passages`) and compared with any question (`compare`).
  Source: Khattab and Zaharia 2020 (ColBERT); the paper's reranker takes plain dot products.

  Attributes:
    vocab_size: V, rows of the embedding table.
    embed_dim: D.
    num_layers: encoder layers; 0 compares projected embeddings.
    num_heads: H.
    head_dim: K.
    mlp_dim: F.
    projection_dim: P, width of the vectors that are compared.
    normalize: compare cosines instead of dot products; scores then lie within the number of
      question tokens, and `ListwiseKL.tau` must be well below 1.
    activations: of the feed-forward layers, see `layers.Mlp`.
    dropout_rate: in the encoder.
    dtype: of activations; scores are float32.
    remat: what encoder layers compute again in the backward pass, see `scanning.rematerialised`.
  """

  vocab_size: int
  embed_dim: int
  num_layers: int
  num_heads: int
  head_dim: int
  mlp_dim: int
  projection_dim: int
  normalize: bool = False
  activations: tuple[str, ...] = ("gelu", "linear")
  dropout_rate: float = 0.0
  dtype: DTypeLike = jnp.float32
  remat: str = "none"

  def setup(self) -> None:
    """Names the parts, which the entry points share."""
    self.token_embedder = layers.Embedding(self.vocab_size, self.embed_dim, dtype=self.dtype)
    self.encoder = layers.Encoder(
      num_layers=self.num_layers,
      num_heads=self.num_heads,
      head_dim=self.head_dim,
      mlp_dim=self.mlp_dim,
      activations=self.activations,
      dropout_rate=self.dropout_rate,
      dtype=self.dtype,
      remat=self.remat,
    )
    # Vectors of about unit length at the start: a score is then at most about L.
    self.projection = layers.Dense(
      (self.projection_dim,), ("embed", "kv"), scale=1.0 / self.projection_dim, dtype=self.dtype
    )

  def __call__(
    self,
    query_tokens_BxL: Int[Array, "B L"],
    passage_tokens_BxCxM: Int[Array, "B C M"],
    *,
    deterministic: bool = True,
  ) -> Float[Array, "B C"]:
    """Scores the candidates of each question.

    Args:
      query_tokens_BxL: token ids, 0 is padding.
      passage_tokens_BxCxM: token ids of the candidates.
      deterministic: no dropout.
    """
    return self.compare(
      self.encode_query(query_tokens_BxL, deterministic=deterministic),
      self.encode_passages(passage_tokens_BxCxM, deterministic=deterministic),
    )

  def encode_query(
    self, query_tokens_BxL: Int[Array, "B L"], *, deterministic: bool = True
  ) -> TokenVectors:
    """Vectors [B, L, P] and mask [B, L] of questions."""
    return self._encode(query_tokens_BxL, deterministic)

  def encode_passages(
    self, passage_tokens: Int[Array, "*lists M"], *, deterministic: bool = True
  ) -> TokenVectors:
    """Vectors [..., M, P] and mask [..., M] of passages [..., M], such as [B, C, M] or [N, M]."""
    return self._encode(passage_tokens, deterministic)

  def compare(self, query: TokenVectors, passages: TokenVectors) -> Float[Array, "B C"]:
    """MaxSim of each question [B, L, P] with its candidates [B, C, M, P], summed in float32.

    A candidate without tokens scores 0, as does every candidate of a question without tokens.
    """
    B, C, M, P = passages.vectors.shape
    sims_BxLxN = jnp.matmul(
      query.vectors,
      passages.vectors.reshape(B, C * M, P).swapaxes(1, 2),
      preferred_element_type=jnp.float32,
    )
    sims_BxLxCxM = sims_BxLxN.reshape(B, -1, C, M)
    best_BxLxC = jnp.max(jnp.where(passages.mask[:, None], sims_BxLxCxM, layers.MASKED), axis=-1)
    counts_BxLxC = query.mask[:, :, None] & passages.mask.any(-1)[:, None, :]
    scores_BxC = jnp.sum(jnp.where(counts_BxLxC, best_BxLxC, 0.0), axis=1)
    return nn.with_logical_constraint(scores_BxC, ("batch", None))

  def _encode(self, tokens: jax.Array, deterministic: bool) -> TokenVectors:
    rows_NxM = tokens.reshape(-1, tokens.shape[-1])
    mask_NxM = rows_NxM > 0
    embedded_NxMxD = self.token_embedder(rows_NxM)
    encoded_NxMxD = self.encoder(embedded_NxMxD, mask_NxM, deterministic=deterministic)
    vectors_NxMxP = self.projection(encoded_NxMxD)
    if self.normalize:
      wide = vectors_NxMxP.astype(jnp.float32)
      square = jnp.sum(jnp.square(wide), axis=-1, keepdims=True)
      vectors_NxMxP = (wide * jax.lax.rsqrt(square + 1e-12)).astype(self.dtype)
    vectors_NxMxP = nn.with_logical_constraint(vectors_NxMxP, ("batch", "length", "kv"))
    return TokenVectors(
      vectors_NxMxP.reshape(*tokens.shape, self.projection_dim), mask_NxM.reshape(tokens.shape)
    )


class CrossEncoder(nn.Module):
  """Question and passage in one sequence, and a linear score of what the encoder makes of it.

  Slower than late interaction, since nothing can be encoded once. It needs no separator: a learnt
  vector added to each token tells question from passage.

  Attributes:
    vocab_size: V, rows of the embedding table.
    embed_dim: D.
    num_layers: encoder layers; with fewer than 1, question and passage never meet.
    num_heads: H.
    head_dim: K.
    mlp_dim: F.
    pool: the score is read from the "mean" of all tokens, or from the "first" one.
    activations: of the feed-forward layers, see `layers.Mlp`.
    dropout_rate: in the encoder.
    dtype: of activations; scores are float32.
    remat: what encoder layers compute again in the backward pass, see `scanning.rematerialised`.
  """

  vocab_size: int
  embed_dim: int
  num_layers: int
  num_heads: int
  head_dim: int
  mlp_dim: int
  pool: Literal["mean", "first"] = "mean"
  activations: tuple[str, ...] = ("gelu", "linear")
  dropout_rate: float = 0.0
  dtype: DTypeLike = jnp.float32
  remat: str = "none"

  @nn.compact
  def __call__(
    self,
    query_tokens_BxL: Int[Array, "B L"],
    passage_tokens_BxCxM: Int[Array, "B C M"],
    *,
    deterministic: bool = True,
  ) -> Float[Array, "B C"]:
    """Scores the candidates of each question.

    Args:
      query_tokens_BxL: token ids, 0 is padding.
      passage_tokens_BxCxM: token ids of the candidates.
      deterministic: no dropout.
    """
    tokens_NxS, segments_NxS = _joined(query_tokens_BxL, passage_tokens_BxCxM)
    mask_NxS = tokens_NxS > 0
    embedded_NxSxD = layers.Embedding(
      self.vocab_size, self.embed_dim, dtype=self.dtype, name="token_embedder"
    )(tokens_NxS)
    # "relpos_buckets" is a small axis that no rule splits
    init = nn.with_logical_partitioning(nn.initializers.normal(1.0), ("relpos_buckets", "embed"))
    segment_2xD: Any = self.param("segment_embedding", init, (2, self.embed_dim), jnp.float32)
    embedded_NxSxD += jnp.take(segment_2xD.astype(self.dtype), segments_NxS, axis=0)
    encoded_NxSxD = layers.Encoder(
      num_layers=self.num_layers,
      num_heads=self.num_heads,
      head_dim=self.head_dim,
      mlp_dim=self.mlp_dim,
      activations=self.activations,
      dropout_rate=self.dropout_rate,
      dtype=self.dtype,
      remat=self.remat,
      name="encoder",
    )(embedded_NxSxD, mask_NxS, deterministic=deterministic)
    pooled_NxD = self._pooled(encoded_NxSxD.astype(jnp.float32), mask_NxS)
    init = nn.with_logical_partitioning(nn.initializers.normal(self.embed_dim**-0.5), ("embed",))
    head_D: Any = self.param("head", init, (self.embed_dim,), jnp.float32)
    scores_BxC = (pooled_NxD @ head_D).reshape(passage_tokens_BxCxM.shape[:2])
    return nn.with_logical_constraint(scores_BxC, ("batch", None))

  def _pooled(self, encoded_NxSxD: jax.Array, mask_NxS: jax.Array) -> jax.Array:
    if self.pool == "first":
      return encoded_NxSxD[:, 0]
    if self.pool != "mean":
      raise InputError(f'network.CrossEncoder.pool = {self.pool!r}: use "mean" or "first"')
    total_NxD = jnp.sum(encoded_NxSxD, axis=1, where=mask_NxS[:, :, None])
    return total_NxD / jnp.maximum(mask_NxS.sum(1, keepdims=True), 1)


def _joined(
  query_tokens_BxL: jax.Array, passage_tokens_BxCxM: jax.Array
) -> tuple[Int[Array, "N S"], Int[Array, "N S"]]:
  """Each question followed by each of its passages, real tokens first, and 0 or 1 for the side.

  Without moving the padding to the end, the distance from question to passage, and with it the
  score, would depend on how far the question was padded.
  """
  B, C, M = passage_tokens_BxCxM.shape
  L = query_tokens_BxL.shape[1]
  queries_BxCxL = jnp.broadcast_to(query_tokens_BxL[:, None], (B, C, L))
  tokens_NxS = jnp.concatenate([queries_BxCxL, passage_tokens_BxCxM], axis=-1).reshape(B * C, L + M)
  order_NxS = jnp.argsort(tokens_NxS == 0, axis=-1, stable=True)
  tokens_NxS = jnp.take_along_axis(tokens_NxS, order_NxS, axis=-1)
  return tokens_NxS, (order_NxS >= L).astype(jnp.int32)
