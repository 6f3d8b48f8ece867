"""T5's encoder, of the student and of the reranker (paper sections 3.1 and 3.3)."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from kard_jax.core import layers, norms, position_bias, scanning
from kard_jax.core.partitioning import constrain


class EncoderLayer(nn.Module):
  """Self-attention, then feed-forward, each on normalised input and added to it.

  Attributes: as `Encoder`.
  """

  num_heads: int
  head_dim: int
  mlp_dim: int
  activations: tuple[str, ...] = ("gelu", "linear")
  dropout_rate: float = 0.0
  dtype: DTypeLike = jnp.float32
  norm_epsilon: float = 1e-6
  own_relpos: tuple[int, int] | None = None  # buckets and distance of a bias of its own

  @nn.compact
  def __call__(
    self,
    x_BxLxD: Float[Array, "B L D"],
    bias: Float[Array, "1 H L L"] | None,
    mask: Bool[Array, "B 1 #L L"],
    deterministic: bool = True,
  ) -> Float[Array, "B L D"]:
    """One layer; `mask` is True where a token may look."""
    x = constrain(x_BxLxD, ("batch", "length", "embed"))
    y = norms.RMSNorm(self.norm_epsilon, self.dtype, name="pre_attention_layer_norm")(x)
    attention = layers.Attention(
      self.num_heads, self.head_dim, self.dropout_rate, self.dtype, name="attention"
    )
    if self.own_relpos is not None:
      positions_L = jnp.arange(x.shape[1])
      relpos = position_bias.RelativePositionBias(
        self.num_heads, True, *self.own_relpos, name="relpos_bias"
      )
      bias = relpos(positions_L, positions_L)
    y = attention(y, y, bias=bias, mask=mask, deterministic=deterministic)
    x = x + layers.Dropout(self.dropout_rate)(y, deterministic)
    y = norms.RMSNorm(self.norm_epsilon, self.dtype, name="pre_mlp_layer_norm")(x)
    mlp = layers.Mlp(self.mlp_dim, self.activations, self.dropout_rate, self.dtype, name="mlp")
    y = mlp(y, deterministic=deterministic)
    x = x + layers.Dropout(self.dropout_rate)(y, deterministic)
    return constrain(x, ("batch", "length", "embed"))


class Encoder(nn.Module):
  """A stack of encoder layers over vectors that the caller has looked up.

  Token vectors come from outside, so that a decoder, or a second encoder, can share the table.

  Attributes:
    num_layers: how many.
    num_heads: H.
    head_dim: K; H * K need not be D.
    mlp_dim: F.
    activations: of the feed-forward layers, see `layers.Mlp`.
    dropout_rate: everywhere.
    dtype: of activations.
    remat: what a layer computes again in the backward pass, see `scanning.rematerialised`.
    scan_layers: one set of arrays with an axis for the layers, compiled once.
    num_buckets: of `position_bias.RelativePositionBias`.
    max_distance: likewise.
    norm_epsilon: of the norms.
    relpos_per_layer: each layer has a position bias of its own; T5's share one.
  """

  num_layers: int
  num_heads: int
  head_dim: int
  mlp_dim: int
  activations: tuple[str, ...] = ("gelu", "linear")
  dropout_rate: float = 0.0
  dtype: DTypeLike = jnp.float32
  remat: str = "none"
  scan_layers: bool = False
  num_buckets: int = 32
  max_distance: int = 128
  norm_epsilon: float = 1e-6
  relpos_per_layer: bool = False

  @nn.compact
  def __call__(
    self,
    embedded_BxLxD: Float[Array, "B L D"],
    mask_BxL: Bool[Array, "B L"],
    *,
    segment_ids_BxL: Int[Array, "B L"] | None = None,
    deterministic: bool = True,
  ) -> Float[Array, "B L D"]:
    """Encodes rows.

    Args:
      embedded_BxLxD: a vector for each token.
      mask_BxL: True at real tokens; what stands elsewhere has no effect.
      segment_ids_BxL: which text of a packed row a token belongs to; None means one text a row.
      deterministic: no dropout.
    """
    positions_L = jnp.arange(embedded_BxLxD.shape[1])
    buckets = (self.num_buckets, self.max_distance)
    bias = None
    if not self.relpos_per_layer:
      relpos = position_bias.RelativePositionBias(
        self.num_heads, True, *buckets, name="relpos_bias"
      )
      bias = relpos(positions_L, positions_L)
    mask = mask_BxL[:, None, None, :]
    if segment_ids_BxL is not None:
      mask = mask & layers.same_segment(segment_ids_BxL, segment_ids_BxL)
    x = layers.Dropout(self.dropout_rate)(embedded_BxLxD, deterministic)
    layer = functools.partial(
      EncoderLayer,
      self.num_heads,
      self.head_dim,
      self.mlp_dim,
      self.activations,
      self.dropout_rate,
      self.dtype,
      self.norm_epsilon,
      own_relpos=buckets if self.relpos_per_layer else None,
    )
    call = lambda layer, x, bias, mask: layer(x, bias, mask, deterministic)
    if self.scan_layers and self.num_layers:
      stack, length = layer(name=scanning.LAYERS), self.num_layers
      x = scanning.scan(stack, call, x, bias, mask, length=length, remat=self.remat)
    else:
      call = scanning.rematerialised(call, self.remat)
      for i in range(self.num_layers):
        x = call(layer(name=f"{scanning.LAYERS}_{i}"), x, bias, mask)
    x = norms.RMSNorm(self.norm_epsilon, self.dtype, name="encoder_norm")(x)
    return layers.Dropout(self.dropout_rate)(x, deterministic)
