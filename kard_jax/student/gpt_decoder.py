"""The layers of a decoder-only student, and their stack: see `student.gpt`.

Parameter names follow T5X where it has them; scanned or not, a layer's are the same.
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

from kard_jax.core import attention, layers, norms, rope, scanning
from kard_jax.core.files import InputError
from kard_jax.core.partitioning import constrain


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
    remat: what layers compute again in the backward pass: "none", "dots", "minimal" or "full"; see
      `scanning.rematerialised`.
    scan_layers: one set of arrays for all layers, compiled once; see `core.scanning`.
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
  remat: str = "none"
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
      return norms.RMSNorm(self.norm_epsilon, self.dtype)
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
  ) -> tuple[Float[Array, "B T D"], layers.KeyValues]:
    """All positions at once; gives their keys and values as well, for decoding."""
    x = constrain(x_BxTxD, ("batch", "length", "embed"))
    y, memory = self.attention(
      self.pre_attention_layer_norm(x) if self.norm_first else x,
      kind.masked(*view.masks),
      rotation=kind.turned(view.rotation),
      scale=kind.scale,
      deterministic=deterministic,
    )
    return self._after_attention(x, y, deterministic), memory

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
    scanned = self.scan_layers and self.num_layers
    layer = lambda: DecoderLayer(**self.shape())
    self.layers = layer() if scanned else [layer() for _ in range(self.num_layers)]
    if self.final_norm:
      self.decoder_norm = self.make_norm()
    self.dropout = layers.Dropout(self.dropout_rate)

  def __call__(
    self,
    embedded_BxTxD: Float[Array, "B T D"],
    positions_BxT: Int[Array, "#B T"],
    segment_ids_BxT: Int[Array, "B T"] | None = None,
    *,
    deterministic: bool = True,
  ) -> Float[Array, "B T D"]:
    """All positions at once; each sees those before it in its segment.

    Args:
      embedded_BxTxD: a vector for each token.
      positions_BxT: of each token in its text.
      segment_ids_BxT: which text of a row a token belongs to; None means one text a row.
      deterministic: no dropout.
    """
    view = self._view(positions_BxT, segment_ids_BxT)
    x = self.dropout(embedded_BxTxD, deterministic)
    if isinstance(self.layers, DecoderLayer):

      def call(layer: nn.Module, carry: Any, kinds: Kind, view: View) -> Any:
        x, i = carry
        kind = jax.tree.map(lambda each: jnp.asarray(each)[i], kinds)
        return layer(x, kind, view, deterministic)[0], i + 1  # type: ignore[operator]

      shared = (self._kinds(), view)
      length, first = self.num_layers, jnp.zeros((), jnp.int32)
      x, _ = scanning.scan(self.layers, call, (x, first), *shared, length=length, remat=self.remat)
    else:
      call = scanning.rematerialised(
        lambda layer, x, kind, view: layer(x, kind, view, deterministic)[0], self.remat
      )
      for layer, kind in self._each():
        x = call(layer, x, kind, view)
    return self.decoder_norm(x) if self.final_norm else x

  def start(
    self,
    embedded_BxLxD: Float[Array, "B L D"],
    lengths_B: Int[Array, " B"],
    *,
    samples: int,
    max_length: int,
  ) -> DecodingState:
    """Reads prompts, and makes an empty cache for `samples` texts of each."""
    B, L = embedded_BxLxD.shape[:2]
    view = self._view(jnp.arange(L)[None], lengths_B=lengths_B)
    x, prompts = embedded_BxLxD, []
    for layer, kind in self._each():
      x, memory = layer(x, kind, view)
      prompts.append(memory)
    texts, G, K = B * samples, self.kv_heads, self.head_width
    keys = jnp.zeros((texts, G, K, max_length), self.dtype)
    values = jnp.zeros((texts, G, max_length, K), self.dtype)
    empty = layers.KeyValues(
      constrain(keys, ("batch", "heads", "kv", "length")),
      constrain(values, ("batch", "heads", "length", "kv")),
    )
    return DecodingState(lengths_B, tuple(prompts), (empty,) * self.num_layers)

  def step(
    self, embedded_BxSxD: Float[Array, "B S D"], position: Int[Array, ""], state: DecodingState
  ) -> tuple[Float[Array, "B S D"], DecodingState]:
    """One position of every sample."""
    L, T = (part[0].values_BxHxLxK.shape[2] for part in (state.prompts, state.written))
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
    x, caches = embedded_BxSxD, []
    for (layer, kind), *past in zip(self._each(), state.prompts, state.written, strict=True):
      x, written = layer.step(x, kind, tuple(past), view, position)
      caches.append(written)
    x = self.decoder_norm(x) if self.final_norm else x
    return x, state._replace(written=tuple(caches))

  def _view(
    self,
    positions_BxT: jax.Array,
    segment_ids_BxT: jax.Array | None = None,
    lengths_B: jax.Array | None = None,
  ) -> View:
    """What layers know of whole rows."""
    T = positions_BxT.shape[1]
    query_T, key_T = jnp.arange(T)[:, None], jnp.arange(T)[None, :]
    mask = (key_T <= query_T)[None]
    if segment_ids_BxT is not None:
      mask = mask & layers.same_segment(segment_ids_BxT, segment_ids_BxT)[:, 0]
    near = mask & (key_T > query_T - self.window)[None]
    if self.rope is None:
      return View(self._masks(mask, near), None)
    lengths_B = jnp.full((1,), T) if lengths_B is None else lengths_B
    rotation = self.rope.rotation(positions_BxT, lengths_B, self.head_width)
    return View(self._masks(mask, near), rotation)

  def _each(self) -> list[tuple[DecoderLayer, Kind]]:
    """The layers one by one, scanned or not, and what is particular to each."""
    each: Any = self.layers
    if isinstance(each, DecoderLayer):
      each = scanning.bound(each, self.num_layers)
    kinds = self._kinds()
    return [
      (layer, jax.tree.map(lambda every, i=i: every[i], kinds)) for i, layer in enumerate(each)
    ]

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
