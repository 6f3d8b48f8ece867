"""Scorers of passages for a question: late interaction and a cross-encoder (paper section 3.3).

Both are called as `network(query_tokens_BxL, passage_tokens_BxCxM, deterministic=...)` and give
`scores_BxC`, over any encoder (`bert.Bert`, `T5Encoder`). The encoder's `pad_id` (0) is padding,
wherever it stands: it takes no part in a score. The C candidates of a list are folded into the
batch, so that an encoder sees rows of tokens and nothing else.

Dropout draws from the rng named "dropout".
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from kard_jax.core import layers, t5_encoder
from kard_jax.core.files import InputError
from kard_jax.core.partitioning import constrain
from kard_jax.reranker import bert

SIDES = ("both", "query", "passage")


class TokenVectors(NamedTuple):
  """What late interaction keeps of encoded text: one vector a token, and which tokens are real.

  Attributes:
    vectors: [..., tokens, P] projected vectors; of no meaning at padding.
    mask: [..., tokens] bool, true at real tokens.
  """

  vectors: jax.Array
  mask: jax.Array


class T5Encoder(nn.Module):
  """T5's encoder with its own table of tokens, called as `bert.Bert` is; it has no segments.

  Attributes:
    vocab_size: V, rows of the embedding table.
    embed_dim: D.
    num_layers: encoder layers; 0 gives normalised embeddings.
    num_heads: H.
    head_dim: K.
    mlp_dim: F.
    activations: of the feed-forward layers, see `layers.Mlp`.
    dropout_rate: everywhere.
    dtype: of activations.
    remat: what encoder layers compute again in the backward pass, see `scanning.rematerialised`.
    scan_layers: one set of arrays with an axis for the layers, compiled once.
  """

  vocab_size: int
  embed_dim: int
  num_layers: int
  num_heads: int
  head_dim: int
  mlp_dim: int
  activations: tuple[str, ...] = ("gelu", "linear")
  dropout_rate: float = 0.0
  dtype: DTypeLike = jnp.float32
  remat: str = "none"
  scan_layers: bool = False
  num_segments = 0  # not a field
  pad_id = 0

  @nn.compact
  def __call__(
    self,
    tokens_BxL: Int[Array, "B L"],
    embedded_BxLxD: Float[Array, "B L D"] | None = None,
    *,
    first_only: bool = False,
    deterministic: bool = True,
  ) -> Float[Array, "B Q D"]:
    """Vectors of tokens; 0 is padding.

    Args:
      tokens_BxL: token ids.
      embedded_BxLxD: added to the tokens' vectors.
      first_only: give the first position's vector alone.
      deterministic: no dropout.
    """
    x = layers.Embedding(self.vocab_size, self.embed_dim, dtype=self.dtype, name="token_embedder")(
      tokens_BxL
    )
    if embedded_BxLxD is not None:
      x = x + embedded_BxLxD.astype(self.dtype)
    encoder = t5_encoder.Encoder(
      num_layers=self.num_layers,
      num_heads=self.num_heads,
      head_dim=self.head_dim,
      mlp_dim=self.mlp_dim,
      activations=self.activations,
      dropout_rate=self.dropout_rate,
      dtype=self.dtype,
      remat=self.remat,
      scan_layers=self.scan_layers,
      name="encoder",
    )
    x = encoder(x, tokens_BxL > 0, deterministic=deterministic)
    return x[:, :1] if first_only else x


Encoder = bert.Bert | T5Encoder


class LateInteraction(nn.Module):
  """MaxSim: each question token looks for its best passage token; the score is the sum of these.

  Question and passage share the encoder and the projection, and meet only in dot products, so
  passages can be encoded once (`encode_passages`) and compared with any question (`compare`).
  Source: Khattab and Zaharia 2020 (ColBERT); the paper's reranker takes plain dot products.

  Attributes:
    encoder: `bert.Bert` or `T5Encoder`.
    projection_dim: P, width of the vectors that are compared; None compares the encoder's own.
    normalize: compare cosines instead of dot products; scores then lie within the number of
      question tokens, and `ListwiseKL.tau` must be well below 1.
    mean: divide a score by the number of question tokens, so that long and short questions have
      scores of one size, and one temperature suits both.
    trained: which side the loss teaches: "both", the "query" alone or the "passage" alone. The
      other side is encoded by the same parameters, and no gradient flows through it.
  """

  encoder: Encoder
  projection_dim: int | None = None
  normalize: bool = False
  mean: bool = False
  trained: Literal["both", "query", "passage"] = "both"

  def setup(self) -> None:
    """Names the parts, which the entry points share."""
    if self.trained not in SIDES:
      raise InputError(
        f"network.LateInteraction.trained = {self.trained!r}: choose one of {', '.join(SIDES)}"
      )
    if self.projection_dim is not None:
      # Vectors of about unit length at the start: a score is then at most about L.
      self.projection = layers.Dense(
        (self.projection_dim,),
        ("embed", "kv"),
        scale=1.0 / self.projection_dim,
        dtype=self.encoder.dtype,
      )

  @property
  def vocab_size(self) -> int:
    """Token ids are below this."""
    return self.encoder.vocab_size

  @property
  def width(self) -> int:
    """P, the width of the vectors that are compared."""
    return self.projection_dim or self.encoder.embed_dim

  def __call__(
    self,
    query_tokens_BxL: Int[Array, "B L"],
    passage_tokens_BxCxM: Int[Array, "B C M"],
    *,
    deterministic: bool = True,
  ) -> Float[Array, "B C"]:
    """Scores the candidates of each question.

    Args:
      query_tokens_BxL: token ids, `pad_id` of the encoder is padding.
      passage_tokens_BxCxM: token ids of the candidates.
      deterministic: no dropout.
    """
    query = self.encode_query(query_tokens_BxL, deterministic=deterministic)
    passages = self.encode_passages(passage_tokens_BxCxM, deterministic=deterministic)
    if self.trained == "query":
      passages = jax.lax.stop_gradient(passages)
    elif self.trained == "passage":
      query = jax.lax.stop_gradient(query)
    return self.compare(query, passages)

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
    if self.mean:
      scores_BxC /= jnp.maximum(query.mask.sum(1, keepdims=True), 1)
    return constrain(scores_BxC, ("batch", None))

  def _encode(self, tokens: jax.Array, deterministic: bool) -> TokenVectors:
    rows_NxM = tokens.reshape(-1, tokens.shape[-1])
    mask_NxM = rows_NxM != self.encoder.pad_id
    vectors_NxMxP = self.encoder(rows_NxM, deterministic=deterministic)
    if self.projection_dim is not None:
      vectors_NxMxP = self.projection(vectors_NxMxP)
    if self.normalize:
      wide = vectors_NxMxP.astype(jnp.float32)
      square = jnp.sum(jnp.square(wide), axis=-1, keepdims=True)
      vectors_NxMxP = (wide * jax.lax.rsqrt(square + 1e-12)).astype(vectors_NxMxP.dtype)
    vectors_NxMxP = constrain(vectors_NxMxP, ("batch", "length", "kv"))
    return TokenVectors(
      vectors_NxMxP.reshape(*tokens.shape, self.width), mask_NxM.reshape(tokens.shape)
    )


class CrossEncoder(nn.Module):
  """Question and passage in one sequence, and a linear score of what the encoder makes of it.

  Slower than late interaction, since nothing can be encoded once. BERT tells question from passage
  by its segments; to a T5 encoder a learnt vector is given for each side.

  Attributes:
    encoder: `bert.Bert` or `T5Encoder`; with fewer than 1 layer, question and passage never meet.
    pool: the score is read from the "first" token ([CLS] in BERT), or from the "mean" of all.
    pooler: a layer with tanh before the score, as BERT classifiers have (sentence-transformers'
      cross-encoders among them).
    passage_start: how many tokens at a passage's start are left out: 1 where a tokenizer puts a
      [CLS] before each text, which a pair has once.
  """

  encoder: Encoder
  pool: Literal["mean", "first"] = "mean"
  pooler: bool = False
  passage_start: int = 0

  @property
  def vocab_size(self) -> int:
    """Token ids are below this."""
    return self.encoder.vocab_size

  def __call__(
    self,
    query_tokens_BxL: Int[Array, "B L"],
    passage_tokens_BxCxM: Int[Array, "B C M"],
    *,
    deterministic: bool = True,
  ) -> Float[Array, "B C"]:
    """Scores the candidates of each question.

    Args:
      query_tokens_BxL: token ids, `pad_id` of the encoder is padding.
      passage_tokens_BxCxM: token ids of the candidates.
      deterministic: no dropout.
    """
    if self.pool not in ("first", "mean"):
      raise InputError(f'network.CrossEncoder.pool = {self.pool!r}: use "mean" or "first"')
    tokens_NxS, segments_NxS = _joined(
      query_tokens_BxL, passage_tokens_BxCxM[..., self.passage_start :], self.encoder.pad_id
    )
    scores_N = self.score_pairs(tokens_NxS, segments_NxS, deterministic=deterministic)
    scores_BxC = scores_N.reshape(passage_tokens_BxCxM.shape[:2])
    return constrain(scores_BxC, ("batch", None))

  @nn.compact
  def score_pairs(
    self,
    tokens_NxS: Int[Array, "N S"],
    segments_NxS: Int[Array, "N S"],
    *,
    deterministic: bool = True,
  ) -> Float[Array, " N"]:
    """Scores of pairs that are joined already.

    Args:
      tokens_NxS: a question's tokens, then its passage's without the first `passage_start`.
      segments_NxS: 0 at the question's tokens, 1 at the passage's.
      deterministic: no dropout.
    """
    given: Any = segments_NxS
    if not self.encoder.num_segments:
      # "relpos_buckets" is a small axis that no rule splits
      init = nn.with_logical_partitioning(nn.initializers.normal(1.0), ("relpos_buckets", "embed"))
      segment_2xD: Any = self.param("segment_embedding", init, (2, self._width), jnp.float32)
      given = jnp.take(segment_2xD, segments_NxS, axis=0)
    first_only = self.pool == "first"
    encoded_NxSxD = self.encoder(
      tokens_NxS, given, first_only=first_only, deterministic=deterministic
    )
    mask_NxS = tokens_NxS != self.encoder.pad_id
    return self._head(_pooled(encoded_NxSxD.astype(jnp.float32), mask_NxS, first_only))

  @property
  def _width(self) -> int:
    return self.encoder.embed_dim

  @nn.compact
  def _head(self, pooled_NxD: jax.Array) -> jax.Array:
    if self.pooler:
      dense = layers.Dense((self._width,), ("embed", "mlp"), use_bias=True, name="pooler")
      pooled_NxD = jnp.tanh(dense(pooled_NxD))
    init = nn.with_logical_partitioning(nn.initializers.normal(self._width**-0.5), ("embed",))
    head_D: Any = self.param("head", init, (self._width,), jnp.float32)
    return pooled_NxD @ head_D


def _pooled(encoded_NxSxD: jax.Array, mask_NxS: jax.Array, first_only: bool) -> jax.Array:
  if first_only:
    return encoded_NxSxD[:, 0]
  total_NxD = jnp.sum(encoded_NxSxD, axis=1, where=mask_NxS[:, :, None])
  return total_NxD / jnp.maximum(mask_NxS.sum(1, keepdims=True), 1)


def _joined(
  query_tokens_BxL: jax.Array, passage_tokens_BxCxM: jax.Array, pad_id: int = 0
) -> tuple[Int[Array, "N S"], Int[Array, "N S"]]:
  """Each question followed by each of its passages, real tokens first, and 0 or 1 for the side.

  Without moving the padding to the end, the distance from question to passage, and with it the
  score, would depend on how far the question was padded.
  """
  B, C, M = passage_tokens_BxCxM.shape
  L = query_tokens_BxL.shape[1]
  queries_BxCxL = jnp.broadcast_to(query_tokens_BxL[:, None], (B, C, L))
  tokens_NxS = jnp.concatenate([queries_BxCxL, passage_tokens_BxCxM], axis=-1).reshape(B * C, L + M)
  order_NxS = jnp.argsort(tokens_NxS == pad_id, axis=-1, stable=True)
  tokens_NxS = jnp.take_along_axis(tokens_NxS, order_NxS, axis=-1)
  # a segment at padding says nothing, but is what transformers' tokenizers put there
  segments_NxS = (order_NxS >= L) & (tokens_NxS != pad_id)
  return tokens_NxS, segments_NxS.astype(jnp.int32)
