"""The student as a decoder alone: GPT-2, OPT, and Llama with its relatives (paper section 4).

One network for all of them: what tells them apart is configuration (`gin_configs/models/`,
`convert/`), not copies. The prompt (question and passages) and what the student writes stand in one
row; each position sees those before it.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from kard_jax.core import attention, layers, norms, rope
from kard_jax.core.files import InputError
from kard_jax.core.partitioning import constrain

STDDEV = 0.02  # of initial embeddings, as in GPT-2: the table is the output head too


class DecodingState(NamedTuple):
  """What cached decoding keeps between steps.

  Attributes:
    lengths_B: of the prompts, in tokens.
    prompts: for each layer, keys and values of the prompts: B rows, one for all samples.
    written: for each layer, those of the tokens written so far: B * S rows.
  """

  lengths_B: jax.Array
  prompts: Any
  written: Any


class Kind(NamedTuple):
  """What tells the layers of a stack apart, None where they are all alike; [] each, or [layers].

  Attributes:
    rotary: whether positions turn queries and keys.
    windowed: whether only the last `window` positions are seen.
    scale: multiplies scores.
  """

  rotary: Any = None
  windowed: Any = None
  scale: Any = None

  def turned(self, rotation: rope.Rotation | None) -> rope.Rotation | None:
    """The rotation of this layer."""
    if self.rotary is None or rotation is None:
      return rotation
    return rope.Rotation(
      jnp.where(self.rotary, rotation.cos_BxTxJ, 1.0), jnp.where(self.rotary, rotation.sin_BxTxJ, 0)
    )

  def masked(self, full: jax.Array, window: jax.Array) -> jax.Array:
    """The mask of this layer, of those for layers that see all and for those that do not."""
    return full if self.windowed is None else jnp.where(self.windowed, window, full)


class View(NamedTuple):
  """What all layers know of the positions they work at.

  Attributes:
    masks: two masks, of layers that see all and of layers that see a window.
    rotation: None where positions are learnt.
  """

  masks: tuple[Any, Any]
  rotation: rope.Rotation | None


class Shape(nn.Module):
  """The attributes that the network, its stack and its layers share; the defaults are GPT-2's.

  Attributes:
    num_layers: how many.
    embed_dim: D.
    num_heads: H.
    num_kv_heads: G heads of keys and values, each for H / G of queries; None means H.
    head_dim: K; None means D / H.
    mlp_dim: F.
    mlp_activations: one, or two for a gated unit: ("silu", "linear") in Llama.
    norm: "layer_norm", or "rms_norm" as in Llama.
    norm_epsilon: added to the variance or mean square.
    norm_affine: whether a "layer_norm" has scale and bias.
    norm_first: normalise what enters attention and feed-forward; OPT-350m does it after the sum.
    final_norm: normalise what leaves the stack.
    attention_bias: in what makes queries, keys and values.
    attention_out_bias: in attention's last product.
    mlp_bias: in the feed-forward products.
    qk_norm: normalise each head of queries and keys, as in Qwen3.
    attention_scale: of scores; None means K ** -0.5.
    scale_by_layer: divide scores by the layer's number, from 1.
    rope: rotary positions; None means learnt ones.
    rotary_layers: for each layer, whether it is rotary; empty means all.
    window: how many of the last positions a layer sees; 0 means all.
    window_layers: for each layer, whether `window` limits it; empty means all.
    dropout_rate: on embeddings and on what attention and feed-forward add.
    attention_dropout_rate: on attention weights.
    dtype: of activations: "float32" or "bfloat16".
    remat: compute a layer's activations again in the backward pass instead of keeping them.
    scan_layers: one set of arrays with an axis for the layers, compiled once.
  """

  num_layers: int = 12
  embed_dim: int = 768
  num_heads: int = 12
  num_kv_heads: int | None = None
  head_dim: int | None = None
  mlp_dim: int = 3072
  mlp_activations: tuple[str, ...] = ("gelu",)
  norm: str = "layer_norm"
  norm_epsilon: float = 1e-5
  norm_affine: bool = True
  norm_first: bool = True
  final_norm: bool = True
  attention_bias: bool = True
  attention_out_bias: bool = True
  mlp_bias: bool = True
  qk_norm: bool = False
  attention_scale: float | None = None
  scale_by_layer: bool = False
  rope: rope.Rope | None = None
  rotary_layers: tuple[bool, ...] = ()
  window: int = 0
  window_layers: tuple[bool, ...] = ()
  dropout_rate: float = 0.1
  attention_dropout_rate: float = 0.0
  dtype: DTypeLike = jnp.float32
  remat: bool = False
  scan_layers: bool = False

  @property
  def kv_heads(self) -> int:
    """G."""
    return self.num_kv_heads or self.num_heads

  @property
  def head_width(self) -> int:
    """K."""
    return self.head_dim or self.embed_dim // self.num_heads

  def shape(self) -> dict[str, Any]:
    """These attributes, for a part of this module."""
    names = {field.name for field in dataclasses.fields(Shape)} - {"parent", "name"}
    return {name: getattr(self, name) for name in names}

  def make_norm(self) -> nn.Module:
    """A fresh norm of this network's kind."""
    if self.norm == "rms_norm":
      return layers.RMSNorm(self.norm_epsilon, self.dtype)
    if self.norm == "layer_norm":
      return norms.LayerNorm(self.norm_epsilon, self.dtype, self.norm_affine)
    raise InputError(f"gpt.GPT.norm = {self.norm!r}: give 'layer_norm' or 'rms_norm'")


class DecoderLayer(Shape):
  """Self-attention and feed-forward, each added to its input; attributes as `Shape`."""

  def setup(self) -> None:
    """Makes the parts that training and cached decoding share."""
    self.pre_attention_layer_norm = self.make_norm()
    self.attention = attention.GroupedAttention(
      self.num_heads,
      self.kv_heads,
      self.head_width,
      self.attention_scale or self.head_width**-0.5,
      use_bias=self.attention_bias,
      use_out_bias=self.attention_out_bias,
      normed=self.qk_norm,
      epsilon=self.norm_epsilon,
      dropout_rate=self.attention_dropout_rate,
      dtype=self.dtype,
    )
    self.pre_mlp_layer_norm = self.make_norm()
    self.mlp = layers.Mlp(
      self.mlp_dim, tuple(self.mlp_activations), dtype=self.dtype, use_bias=self.mlp_bias
    )
    self.dropout = layers.Dropout(self.dropout_rate)

  def __call__(
    self,
    x_BxTxD: Float[Array, "B T D"],
    kind: Kind,
    view: View,
    deterministic: bool = True,
    keep: bool = False,
  ) -> tuple[Float[Array, "B T D"], layers.KeyValues | None]:
    """All positions at once; gives keys and values as well if they are to be kept."""
    x = constrain(x_BxTxD, ("batch", "length", "embed"))
    y, memory = self.attention(
      self.pre_attention_layer_norm(x) if self.norm_first else x,
      kind.masked(*view.masks),
      rotation=kind.turned(view.rotation),
      scale=kind.scale,
      deterministic=deterministic,
    )
    return self._after_attention(x, y, deterministic), memory if keep else None

  def step(
    self,
    x_BxSxD: Float[Array, "B S D"],
    kind: Kind,
    past: tuple[layers.KeyValues, layers.KeyValues],
    view: View,
    position: Int[Array, ""],
  ) -> tuple[Float[Array, "B S D"], layers.KeyValues]:
    """One position of S samples a prompt; gives what is written with this position in it."""
    full, window = view.masks
    masks = (kind.masked(*pair) for pair in zip(full, window, strict=True))
    y, written = self.attention.step(
      self.pre_attention_layer_norm(x_BxSxD) if self.norm_first else x_BxSxD,
      position,
      attention.Past(*past, *masks),
      rotation=kind.turned(view.rotation),
      scale=kind.scale,
    )
    return self._after_attention(x_BxSxD, y, deterministic=True), written

  def _after_attention(self, x: jax.Array, y: jax.Array, deterministic: bool) -> jax.Array:
    x = x + self.dropout(y, deterministic)
    if not self.norm_first:
      x = self.pre_attention_layer_norm(x)
    y = self.mlp(self.pre_mlp_layer_norm(x) if self.norm_first else x)
    x = x + self.dropout(y, deterministic)
    if not self.norm_first:
      x = self.pre_mlp_layer_norm(x)
    return constrain(x, ("batch", "length", "embed"))


class Decoder(Shape):
  """A stack of layers over vectors that the caller has looked up; attributes as `Shape`."""

  def setup(self) -> None:
    """Makes the layers that training and cached decoding share."""
    layer: Any = DecoderLayer
    if self.remat:
      static = (4, 5)  # deterministic, keep
      layer = nn.remat(layer, prevent_cse=not self.scan_layers, static_argnums=static)
    if self.scan_layers:
      every, same = 0, nn.broadcast
      options = {
        "variable_axes": {"params": 0},
        "split_rngs": {"params": True, "dropout": True},
        "length": self.num_layers,
        "metadata_params": {nn.PARTITION_NAME: "layers"},
      }
      axes = {"__call__": (every, same, same, same), "step": (every, every, same, same)}
      methods = {name: {"in_axes": in_axes, **options} for name, in_axes in axes.items()}
      self.layers = nn.scan(layer, methods=methods)(**self.shape())
    else:
      self.layers = [layer(**self.shape()) for _ in range(self.num_layers)]
    if self.final_norm:
      self.decoder_norm = self.make_norm()
    self.dropout = layers.Dropout(self.dropout_rate)

  def __call__(
    self,
    embedded_BxTxD: Float[Array, "B T D"],
    positions_BxT: Int[Array, "#B T"],
    segment_ids_BxT: Int[Array, "B T"] | None = None,
    *,
    lengths_B: Int[Array, "#B"] | None = None,
    deterministic: bool = True,
    keep: bool = False,
  ) -> tuple[Float[Array, "B T D"], Any]:
    """All positions at once; each sees those before it in its segment.

    Args:
      embedded_BxTxD: a vector for each token.
      positions_BxT: of each token in its text.
      segment_ids_BxT: which text of a row a token belongs to; None means one text a row.
      lengths_B: of the texts, where `rope` asks for it; None means T.
      deterministic: no dropout.
      keep: give keys and values of each layer as well.
    """
    T = embedded_BxTxD.shape[1]
    query_T, key_T = jnp.arange(T)[:, None], jnp.arange(T)[None, :]
    mask = (key_T <= query_T)[None]
    if segment_ids_BxT is not None:
      mask = mask & (segment_ids_BxT[:, :, None] == segment_ids_BxT[:, None, :])
    near = mask & (key_T > query_T - self.window)[None]
    rotation = None
    if self.rope is not None:
      lengths_B = jnp.full((1,), T) if lengths_B is None else lengths_B
      rotation = self.rope.rotation(positions_BxT, lengths_B, self.head_width)
    x = self.dropout(embedded_BxTxD, deterministic)
    view = View(self._masks(mask, near), rotation)
    x, kept = self._run("__call__", x, (), view, deterministic, keep)
    return (self.decoder_norm(x) if self.final_norm else x), kept

  def step(
    self, embedded_BxSxD: Float[Array, "B S D"], position: Int[Array, ""], state: DecodingState
  ) -> tuple[Float[Array, "B S D"], DecodingState]:
    """One position of every sample."""
    L, T = (jax.tree.leaves(part)[-1].shape[-2] for part in (state.prompts, state.written))
    now_B = state.lengths_B - 1 + position
    prompt_L, written_T = jnp.arange(L)[None], jnp.arange(T)
    # The prompt's last token is the first to be fed: it is in what is written.
    full = (prompt_L < state.lengths_B[:, None] - 1, written_T <= position)
    near = (
      full[0] & (prompt_L > now_B[:, None] - self.window),
      full[1] & (written_T > position - self.window),
    )
    rotation = None
    if self.rope is not None:
      rotation = self.rope.rotation(now_B[:, None], now_B + 1, self.head_width)
    view = View(self._masks(full, near), rotation)
    past = ((state.prompts, state.written),)
    x, written = self._run("step", embedded_BxSxD, past, view, position)
    return (self.decoder_norm(x) if self.final_norm else x), state._replace(written=written)

  def empty(self, texts: int, max_length: int) -> Any:
    """A cache for so many texts of so many tokens."""
    G, K = self.kv_heads, self.head_width
    keys = jnp.zeros((texts, G, K, max_length), self.dtype)
    values = jnp.zeros((texts, G, max_length, K), self.dtype)
    one = layers.KeyValues(
      constrain(keys, ("batch", "heads", "kv", "length")),
      constrain(values, ("batch", "heads", "length", "kv")),
    )
    if not self.scan_layers:
      return (one,) * self.num_layers
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (self.num_layers, *a.shape)), one)

  def _run(self, method: str, x: jax.Array, each: tuple[Any, ...], *same: Any) -> tuple[Any, Any]:
    """Runs the layers, with what is each layer's own and what is the same for all."""
    kinds = self._kinds()
    if self.scan_layers:
      return getattr(self.layers, method)(x, kinds, *each, *same)
    outputs = []
    for i, layer in enumerate(self.layers):
      kind = jax.tree.map(lambda a, i=i: a[i], kinds)
      own = ((prompts[i], written[i]) for prompts, written in each)
      x, output = getattr(layer, method)(x, kind, *own, *same)
      outputs.append(output)
    return x, tuple(outputs)

  def _masks(self, full: Any, near: Any) -> tuple[Any, Any]:
    """The masks of layers that see all, and of those that see a window."""
    if not self.window:
      return full, full
    return (full, near) if self.window_layers else (near, near)

  def _kinds(self) -> Kind:
    """What tells layers apart, with an axis for the layers."""
    for name in ("rotary_layers", "window_layers"):
      given = len(getattr(self, name))
      if given not in (0, self.num_layers):
        raise InputError(f"gpt.GPT.{name} has {given} entries for {self.num_layers} layers")
    numbers = np.arange(1, self.num_layers + 1, dtype=np.float32)
    return Kind(
      np.array(self.rotary_layers) if self.rotary_layers else None,
      np.array(self.window_layers) if self.window and self.window_layers else None,
      1 / numbers if self.scale_by_layer else None,
    )


class GPT(Shape):
  """A decoder-only network; the defaults are GPT-2's smallest. Attributes as `Shape`, and these.

  Attributes:
    vocab_size: V.
    token_dim: width of token vectors where it is not D (OPT-350m): projected on their way in and
      out. None means D.
    max_positions: rows of the table of learnt positions: no text may be longer. Unused with `rope`.
    position_offset: rows of that table that are never used (2 in OPT).
    tied_embeddings: the output head is the table of token vectors.
    pad_id: stands after the end of a row; -1 where a tokenizer has none.
  """

  vocab_size: int = 50_257
  token_dim: int | None = None
  max_positions: int = 1024
  position_offset: int = 0
  tied_embeddings: bool = True
  pad_id: int = -1

  @property
  def max_length(self) -> int | None:
    """Tokens of the longest text; None where there is no limit."""
    return self.max_positions if self.rope is None else None

  def setup(self) -> None:
    """Makes the tables, the stack and the head."""
    self._check()
    width, D = self.token_dim or self.embed_dim, self.embed_dim
    self.token_embedder = layers.Embedding(self.vocab_size, width, self.dtype, STDDEV)
    if self.rope is None:
      rows = self.max_positions + self.position_offset
      self.position_embedder = layers.Embedding(rows, D, self.dtype, STDDEV, axis="positions")
    if width != D:
      self.embed_in = layers.Dense((D,), ("token", "embed"), dtype=self.dtype)
      self.embed_out = layers.Dense((width,), ("embed", "token"), dtype=self.dtype)
    self.decoder = Decoder(**self.shape())
    if not self.tied_embeddings:
      self.logits_dense = layers.Dense(
        (self.vocab_size,), ("embed", "vocab"), dtype=self.dtype, output_dtype=jnp.float32
      )

  def __call__(
    self,
    decoder_input_tokens_BxT: Int[Array, "B T"],
    decoder_positions_BxT: Int[Array, "B T"] | None = None,
    decoder_segment_ids_BxT: Int[Array, "B T"] | None = None,
    *,
    deterministic: bool = True,
  ) -> Float[Array, "B T V"]:
    """Logits of each next token, float32, given the tokens up to it.

    Args:
      decoder_input_tokens_BxT: padded at the end.
      decoder_positions_BxT: of each token in its text, where a row holds several; None means one.
      decoder_segment_ids_BxT: which text of the row a token belongs to.
      deterministic: no dropout; otherwise give an rng named "dropout".
    """
    positions = decoder_positions_BxT
    if positions is None:
      positions = jnp.arange(decoder_input_tokens_BxT.shape[1])[None]
      self._check_length(decoder_input_tokens_BxT.shape[1])
    x, _ = self.decoder(
      self._embed(decoder_input_tokens_BxT, positions),
      positions,
      decoder_segment_ids_BxT,
      deterministic=deterministic,
    )
    return self._logits(x)

  def start(
    self, input_tokens_BxL: Int[Array, "B L"], *, samples: int, max_length: int
  ) -> tuple[Int[Array, "B S"], DecodingState]:
    """Reads the prompts, once for all samples (see `core.decode.Network`)."""
    B, L = input_tokens_BxL.shape
    self._check_length(L + max_length - 1)
    positions_L = jnp.arange(L)
    real_BxL = input_tokens_BxL != self.pad_id
    lengths_B = jnp.maximum(jnp.max(jnp.where(real_BxL, positions_L + 1, 0), axis=1), 1)
    _, prompts = self.decoder(
      self._embed(input_tokens_BxL, positions_L[None]),
      positions_L[None],
      lengths_B=lengths_B,
      keep=True,
    )
    last_Bx1 = jnp.take_along_axis(input_tokens_BxL, lengths_B[:, None] - 1, axis=1)
    state = DecodingState(lengths_B, prompts, self.decoder.empty(B * samples, max_length))
    return jnp.broadcast_to(last_Bx1, (B, samples)).astype(jnp.int32), state

  def step(
    self, tokens_BxS: Int[Array, "B S"], position: Int[Array, ""], state: DecodingState
  ) -> tuple[Float[Array, "B S V"], DecodingState]:
    """Logits after one more token of each sample (see `core.decode.Network`)."""
    positions_Bx1 = (state.lengths_B - 1 + position)[:, None]
    x_BxSxD, state = self.decoder.step(self._embed(tokens_BxS, positions_Bx1), position, state)
    return self._logits(x_BxSxD), state

  def _embed(self, tokens_BxT: jax.Array, positions_BxT: jax.Array) -> jax.Array:
    if not 0 <= self.pad_id < self.vocab_size:  # has no vector: any will do, none looks at it
      tokens_BxT = jnp.where(tokens_BxT == self.pad_id, 0, tokens_BxT)
    x = self.token_embedder(tokens_BxT)
    if self.token_dim not in (None, self.embed_dim):
      x = self.embed_in(x)
    if self.rope is None:
      x = x + self.position_embedder(positions_BxT + self.position_offset)
    return x

  def _logits(self, x_BxTxD: jax.Array) -> jax.Array:
    if self.token_dim not in (None, self.embed_dim):
      x_BxTxD = self.embed_out(x_BxTxD)
    head = self.token_embedder.attend if self.tied_embeddings else self.logits_dense
    return constrain(head(x_BxTxD), ("batch", "length", "vocab"))

  def _check_length(self, length: int) -> None:
    if self.max_length is not None and length > self.max_length:
      raise InputError(
        f"{length} tokens a text (prompt and what is written) are more than the network's "
        f"{self.max_positions} positions (gpt.GPT.max_positions): give shorter ones"
      )

  def _check(self) -> None:
    if self.num_heads % self.kv_heads:
      raise InputError(
        f"gpt.GPT.num_heads = {self.num_heads} is no multiple of num_kv_heads = {self.kv_heads}"
      )
    if self.head_dim is None and self.embed_dim % self.num_heads:
      raise InputError(
        f"gpt.GPT.embed_dim = {self.embed_dim} is no multiple of num_heads = {self.num_heads}: "
        "give head_dim"
      )
