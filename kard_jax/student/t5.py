"""The student: T5, an encoder-decoder (paper section 3.1; Raffel et al. 2020; Shazeer 2020).

The encoder reads the question and its passages, the decoder writes the rationale and the answer.
T5 1.1 differs from the first T5 by gated GELU and by an output head of its own; Flan-T5 has its
shapes. Parameter names follow T5X.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from kard_jax.core import layers, norms, position_bias, scanning, t5_encoder
from kard_jax.core.files import InputError
from kard_jax.core.partitioning import constrain


class DecodingState(NamedTuple):
  """What cached decoding keeps between steps.

  Attributes:
    encoder_mask_BxL: True at real input tokens.
    memory: for each decoder layer, keys and values of the encoder output: B rows, of L positions,
      one row for all samples of an input.
    cache: for each decoder layer, keys and values of the tokens so far: B * S rows, of T positions.

  Where inputs of unequal lengths were joined, mask and each layer's memory are tuples.
  """

  encoder_mask_BxL: Any  # an array or a tuple of arrays
  memory: tuple[layers.KeyValues | tuple[layers.KeyValues, ...], ...]
  cache: tuple[layers.KeyValues, ...]


class DecoderLayer(nn.Module):
  """Self-attention, attention to the encoder, feed-forward, each added to its input.

  Attributes: as `Decoder`.
  """

  num_heads: int
  head_dim: int
  mlp_dim: int
  activations: tuple[str, ...] = ("gelu", "linear")
  dropout_rate: float = 0.0
  dtype: DTypeLike = jnp.float32
  norm_epsilon: float = 1e-6
  own_relpos: tuple[int, int] | None = None  # buckets and distance of a bias of its own

  def setup(self) -> None:
    """Makes the parts that training and cached decoding share."""
    attention = (self.num_heads, self.head_dim, self.dropout_rate, self.dtype)
    self.pre_self_attention_layer_norm = norms.RMSNorm(self.norm_epsilon, self.dtype)
    self.self_attention = layers.Attention(*attention)
    self.pre_cross_attention_layer_norm = norms.RMSNorm(self.norm_epsilon, self.dtype)
    self.encoder_decoder_attention = layers.Attention(*attention)
    self.pre_mlp_layer_norm = norms.RMSNorm(self.norm_epsilon, self.dtype)
    self.mlp = layers.Mlp(self.mlp_dim, self.activations, self.dropout_rate, self.dtype)
    self.dropout = layers.Dropout(self.dropout_rate)
    if self.own_relpos is not None:
      self.relpos_bias = position_bias.RelativePositionBias(self.num_heads, False, *self.own_relpos)

  def __call__(
    self,
    x_BxTxD: Float[Array, "B T D"],
    bias: Float[Array, "1 H T T"] | None,
    mask: Bool[Array, "#B 1 T T"],
    encoded_BxLxD: Float[Array, "B L D"],
    encoder_mask: Bool[Array, "B 1 #T L"],
    deterministic: bool = True,
  ) -> Float[Array, "B T D"]:
    """All positions at once (teacher forcing); masks are True where a token may look."""
    x = constrain(x_BxTxD, ("batch", "length", "embed"))
    y = self.pre_self_attention_layer_norm(x)
    if self.own_relpos is not None:
      positions_T = jnp.arange(x.shape[1])
      bias = self.relpos_bias(positions_T, positions_T)
    y = self.self_attention(y, y, bias=bias, mask=mask, deterministic=deterministic)
    x = x + self.dropout(y, deterministic)
    memory = self.encoder_decoder_attention.keys_values(encoded_BxLxD)
    return self._after_self_attention(x, memory, encoder_mask, deterministic)

  def keys_values(self, encoded_BxLxD: Float[Array, "B L D"]) -> layers.KeyValues:
    """This layer's view of the encoder output, for `step`."""
    return self.encoder_decoder_attention.keys_values(encoded_BxLxD)

  def step(
    self,
    x_BxSxD: Float[Array, "B S D"],
    position: Int[Array, ""],
    bias: Float[Array, "1 H 1 T"] | None,
    cache: layers.KeyValues,
    memory: layers.KeyValues | tuple[layers.KeyValues, ...],
    encoder_mask: Bool[Array, "B 1 1 L"] | tuple[Bool[Array, "_B 1 1 _L"], ...],
  ) -> tuple[Float[Array, "B S D"], layers.KeyValues]:
    """One position of S samples an input; gives back the cache with this position in it.

    The samples of an input stand where a row's positions stand in training: they read the same
    encoder output, which is therefore held once.
    """
    y_NxD = self.pre_self_attention_layer_norm(x_BxSxD).reshape(-1, 1, x_BxSxD.shape[-1])
    new = self.self_attention.keys_values(y_NxD)
    write = jax.lax.dynamic_update_slice_in_dim
    cache = layers.KeyValues(
      write(cache.keys_BxHxKxL, new.keys_BxHxKxL, position, axis=3),
      write(cache.values_BxHxLxK, new.values_BxHxLxK, position, axis=2),
    )
    positions_T = jnp.arange(cache.values_BxHxLxK.shape[2])
    if self.own_relpos is not None:
      bias = self.relpos_bias(position[None], positions_T)
    past = (positions_T <= position)[None, None, None, :]
    y_NxD = self.self_attention.attend(y_NxD, cache, bias=bias, mask=past)
    x = x_BxSxD + y_NxD.reshape(x_BxSxD.shape)
    return self._after_self_attention(x, memory, encoder_mask, deterministic=True), cache

  def _after_self_attention(
    self,
    x: jax.Array,
    memory: layers.KeyValues | tuple[layers.KeyValues, ...],
    encoder_mask: jax.Array | tuple[jax.Array, ...],
    deterministic: bool,
  ) -> jax.Array:
    y = self.encoder_decoder_attention.attend(
      self.pre_cross_attention_layer_norm(x),
      memory,
      mask=encoder_mask,
      deterministic=deterministic,
    )
    x = x + self.dropout(y, deterministic)
    y = self.mlp(self.pre_mlp_layer_norm(x), deterministic=deterministic)
    x = x + self.dropout(y, deterministic)
    return constrain(x, ("batch", "length", "embed"))


class Decoder(nn.Module):
  """A stack of decoder layers over vectors that the caller has looked up.

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

  def setup(self) -> None:
    """Makes the layers that training and cached decoding share."""
    scanned = self.scan_layers and self.num_layers
    self.layers = self._layer() if scanned else [self._layer() for _ in range(self.num_layers)]
    if not self.relpos_per_layer:
      buckets = (self.num_buckets, self.max_distance)
      self.relpos_bias = position_bias.RelativePositionBias(self.num_heads, False, *buckets)
    self.decoder_norm = norms.RMSNorm(self.norm_epsilon, self.dtype)
    self.dropout = layers.Dropout(self.dropout_rate)

  def __call__(
    self,
    embedded_BxTxD: Float[Array, "B T D"],
    encoded_BxLxD: Float[Array, "B L D"],
    encoder_mask_BxL: Bool[Array, "B L"],
    *,
    segment_ids_BxT: Int[Array, "B T"] | None = None,
    encoder_segment_ids_BxL: Int[Array, "B L"] | None = None,
    deterministic: bool = True,
  ) -> Float[Array, "B T D"]:
    """All positions at once; each sees those before it. Rows are padded at their end.

    Args:
      embedded_BxTxD: a vector for each token.
      encoded_BxLxD: the encoder's output.
      encoder_mask_BxL: True at real input tokens.
      segment_ids_BxT: which text of a packed row a token belongs to; None means one text a row.
      encoder_segment_ids_BxL: the same of the input; give both or none.
      deterministic: no dropout.
    """
    positions_T = jnp.arange(embedded_BxTxD.shape[1])
    bias = None if self.relpos_per_layer else self.relpos_bias(positions_T, positions_T)
    mask = (positions_T[None, :] <= positions_T[:, None])[None, None]
    encoder_mask = encoder_mask_BxL[:, None, None, :]
    if segment_ids_BxT is not None and encoder_segment_ids_BxL is not None:
      mask = mask & layers.same_segment(segment_ids_BxT, segment_ids_BxT)
      encoder_mask &= layers.same_segment(segment_ids_BxT, encoder_segment_ids_BxL)
    x = self.dropout(embedded_BxTxD, deterministic)
    call = lambda layer, x, *shared: layer(x, *shared, deterministic)
    shared = (bias, mask, encoded_BxLxD, encoder_mask)
    if isinstance(self.layers, DecoderLayer):
      length = self.num_layers
      x = scanning.scan(self.layers, call, x, *shared, length=length, remat=self.remat)
    else:
      call = scanning.rematerialised(call, self.remat)
      for layer in self.layers:
        x = call(layer, x, *shared)
    return self.dropout(self.decoder_norm(x), deterministic)

  def start(
    self,
    encoded_BxLxD: Float[Array, "B L D"],
    encoder_mask_BxL: Bool[Array, "B L"],
    *,
    samples: int,
    max_length: int,
  ) -> DecodingState:
    """An empty cache for `samples` texts of up to `max_length` tokens an input."""
    texts, K = encoded_BxLxD.shape[0] * samples, self.head_dim
    keys = jnp.zeros((texts, self.num_heads, K, max_length), self.dtype)
    values = jnp.zeros((texts, self.num_heads, max_length, K), self.dtype)
    empty = layers.KeyValues(
      constrain(keys, ("batch", "heads", "kv", "length")),
      constrain(values, ("batch", "heads", "length", "kv")),
    )
    return DecodingState(
      encoder_mask_BxL,
      tuple(layer.keys_values(encoded_BxLxD) for layer in self._each()),
      (empty,) * self.num_layers,
    )

  def step(
    self, embedded_BxSxD: Float[Array, "B S D"], position: Int[Array, ""], state: DecodingState
  ) -> tuple[Float[Array, "B S D"], DecodingState]:
    """One position of every sample."""
    max_length = state.cache[0].values_BxHxLxK.shape[2]
    positions_T = jnp.arange(max_length)
    bias = None if self.relpos_per_layer else self.relpos_bias(position[None], positions_T)
    mask = jax.tree.map(lambda mask_BxL: mask_BxL[:, None, None, :], state.encoder_mask_BxL)
    x, caches = embedded_BxSxD, []
    for layer, cache, memory in zip(self._each(), state.cache, state.memory, strict=True):
      x, cache = layer.step(x, position, bias, cache, memory, mask)
      caches.append(cache)
    return self.decoder_norm(x), state._replace(cache=tuple(caches))

  def _layer(self) -> DecoderLayer:
    return DecoderLayer(
      self.num_heads,
      self.head_dim,
      self.mlp_dim,
      self.activations,
      self.dropout_rate,
      self.dtype,
      self.norm_epsilon,
      (self.num_buckets, self.max_distance) if self.relpos_per_layer else None,
    )

  def _each(self) -> Sequence[DecoderLayer]:
    """The layers one by one, scanned or not, for cached decoding."""
    if not isinstance(self.layers, DecoderLayer):
      return self.layers
    return scanning.bound(self.layers, self.num_layers)


class T5(nn.Module):
  """T5, T5 1.1, Flan-T5; the defaults are T5 1.1's `small` size.

  Attributes:
    vocab_size: V; the first T5 models' is 32,128 (32,100 pieces, padded to shard well).
    embed_dim: D.
    num_heads: H.
    head_dim: K; H * K need not be D.
    mlp_dim: F.
    num_encoder_layers: of the encoder.
    num_decoder_layers: of the decoder.
    mlp_activations: ("gelu", "linear") in T5 1.1, ("relu",) in the first T5; see `activations`.
    tied_embeddings: the output head is the embedding table, as in the first T5.
    scale_logits: the decoder's output is divided by the root of D before the head; None: where the
      embeddings are tied.
    dropout_rate: everywhere; 0.1 when fine-tuning.
    dtype: of activations: "float32" or "bfloat16"; float16 overflows.
    remat: what layers compute again in the backward pass: "none", "dots", "minimal" or "full"; see
      `scanning.rematerialised`.
    scan_layers: one set of arrays for all layers of a stack, compiled once; see `core.scanning`.
    num_buckets: of distances, see `position_bias.RelativePositionBias`.
    max_distance: in tokens; farther ones share a bucket.
    norm_epsilon: of the norms.
    relpos_per_layer: each layer has a position bias of its own, as in T5X's scanned T5 and umT5.
    pad_id: stands where there is no token, and is the decoder's first input, as in all T5 models.
  """

  vocab_size: int = 32_128
  embed_dim: int = 512
  num_heads: int = 6
  head_dim: int = 64
  mlp_dim: int = 1024
  num_encoder_layers: int = 8
  num_decoder_layers: int = 8
  mlp_activations: tuple[str, ...] = ("gelu", "linear")
  tied_embeddings: bool = False
  scale_logits: bool | None = None
  dropout_rate: float = 0.1
  dtype: DTypeLike = jnp.float32
  remat: str = "none"
  scan_layers: bool = False
  num_buckets: int = 32
  max_distance: int = 128
  norm_epsilon: float = 1e-6
  relpos_per_layer: bool = False
  pad_id: int = 0

  def setup(self) -> None:
    """Makes the table, the two stacks and the head."""
    stack = (
      self.num_heads,
      self.head_dim,
      self.mlp_dim,
      tuple(self.mlp_activations),  # gin reads lists as well
      self.dropout_rate,
      self.dtype,
      self.remat,
      self.scan_layers,
      self.num_buckets,
      self.max_distance,
      self.norm_epsilon,
      self.relpos_per_layer,
    )
    self.token_embedder = layers.Embedding(self.vocab_size, self.embed_dim, self.dtype)
    self.encoder = t5_encoder.Encoder(self.num_encoder_layers, *stack)
    self.decoder = Decoder(self.num_decoder_layers, *stack)
    if not self.tied_embeddings:
      self.logits_dense = layers.Dense(
        (self.vocab_size,), ("embed", "vocab"), dtype=self.dtype, output_dtype=jnp.float32
      )

  def __call__(
    self,
    encoder_input_tokens_BxL: Int[Array, "B L"],
    decoder_input_tokens_BxT: Int[Array, "B T"],
    *,
    encoder_segment_ids_BxL: Int[Array, "B L"] | None = None,
    encoder_positions_BxL: Int[Array, "B L"] | None = None,
    decoder_segment_ids_BxT: Int[Array, "B T"] | None = None,
    decoder_positions_BxT: Int[Array, "B T"] | None = None,
    deterministic: bool = True,
  ) -> Float[Array, "B T V"]:
    """Logits of each next token, float32, given the tokens before it (teacher forcing).

    T5X's four features of packed rows are taken. T5 needs the segments alone: a text's tokens stand
    side by side, and it knows no positions but distances.

    Args:
      encoder_input_tokens_BxL: padded at the end with `pad_id`.
      decoder_input_tokens_BxT: the target shifted right by one: `pad_id`, then all tokens but the
        last.
      encoder_segment_ids_BxL: where rows hold several examples, which one a token belongs to: 1 and
        so on, 0 at padding.
      encoder_positions_BxL: of each token in its text.
      decoder_segment_ids_BxT: likewise; an example has the same number in both.
      decoder_positions_BxT: likewise.
      deterministic: no dropout; otherwise give an rng named "dropout".
    """
    del encoder_positions_BxL, decoder_positions_BxT
    encoded_BxLxD = self.encode(
      encoder_input_tokens_BxL,
      segment_ids_BxL=encoder_segment_ids_BxL,
      deterministic=deterministic,
    )
    return self.decode(
      encoded_BxLxD,
      encoder_input_tokens_BxL,
      decoder_input_tokens_BxT,
      encoder_segment_ids_BxL=encoder_segment_ids_BxL,
      decoder_segment_ids_BxT=decoder_segment_ids_BxT,
      deterministic=deterministic,
    )

  def encode(
    self,
    encoder_input_tokens_BxL: Int[Array, "B L"],
    *,
    segment_ids_BxL: Int[Array, "B L"] | None = None,
    deterministic: bool = True,
  ) -> Float[Array, "B L D"]:
    """The encoder's output; what stands at pad tokens means nothing. See `__call__`."""
    return self.encoder(
      self.token_embedder(encoder_input_tokens_BxL),
      encoder_input_tokens_BxL != self.pad_id,
      segment_ids_BxL=segment_ids_BxL,
      deterministic=deterministic,
    )

  def decode(
    self,
    encoded_BxLxD: Float[Array, "B L D"],
    encoder_input_tokens_BxL: Int[Array, "B L"],
    decoder_input_tokens_BxT: Int[Array, "B T"],
    *,
    encoder_segment_ids_BxL: Int[Array, "B L"] | None = None,
    decoder_segment_ids_BxT: Int[Array, "B T"] | None = None,
    deterministic: bool = True,
  ) -> Float[Array, "B T V"]:
    """Logits of each next token from the encoder's output; see `__call__`."""
    if (encoder_segment_ids_BxL is None) != (decoder_segment_ids_BxT is None):
      raise InputError("packed rows need both encoder_segment_ids and decoder_segment_ids")
    x_BxTxD = self.decoder(
      self.token_embedder(decoder_input_tokens_BxT),
      encoded_BxLxD,
      encoder_input_tokens_BxL != self.pad_id,
      segment_ids_BxT=decoder_segment_ids_BxT,
      encoder_segment_ids_BxL=encoder_segment_ids_BxL,
      deterministic=deterministic,
    )
    return self._logits(x_BxTxD)

  def start(
    self, input_tokens_BxL: Int[Array, "B L"], *, samples: int, max_length: int
  ) -> tuple[Int[Array, "B S"], DecodingState]:
    """Runs the encoder, once for all samples (see `core.decode.Network`)."""
    encoded_BxLxD = self.encode(input_tokens_BxL)
    state = self.decoder.start(
      encoded_BxLxD, input_tokens_BxL != self.pad_id, samples=samples, max_length=max_length
    )
    return jnp.full((input_tokens_BxL.shape[0], samples), self.pad_id, jnp.int32), state

  def step(
    self, tokens_BxS: Int[Array, "B S"], position: Int[Array, ""], state: DecodingState
  ) -> tuple[Float[Array, "B S V"], DecodingState]:
    """Logits after one more token of each sample (see `core.decode.Network`)."""
    x_BxSxD, state = self.decoder.step(self.token_embedder(tokens_BxS), position, state)
    return self._logits(x_BxSxD), state

  @nn.nowrap
  def join(self, states: Sequence[DecodingState]) -> DecodingState:
    """States of inputs padded to unequal lengths as one (see `core.decode.Network`)."""
    return DecodingState(
      tuple(state.encoder_mask_BxL for state in states),
      tuple(zip(*(state.memory for state in states), strict=True)),
      jax.tree.map(lambda *caches: jnp.concatenate(caches), *(state.cache for state in states)),
    )

  def _logits(self, x_BxTxD: jax.Array) -> jax.Array:
    if self.tied_embeddings if self.scale_logits is None else self.scale_logits:
      x_BxTxD = x_BxTxD * self.embed_dim**-0.5
    if self.tied_embeddings:
      logits = self.token_embedder.attend(x_BxTxD)
    else:
      logits = self.logits_dense(x_BxTxD)
    return constrain(logits, ("batch", "length", "vocab"))
