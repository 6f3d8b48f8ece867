"""The student as a decoder alone: GPT-2, OPT, and Llama with its relatives (paper section 4).

One network for all of them: what tells them apart is configuration (`gin_configs/models/`,
`convert/`), not copies. The prompt (question and passages) and what the student writes stand in one
row; each position sees those before it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kard_jax.core import layers
from kard_jax.core.files import InputError
from kard_jax.core.partitioning import constrain
from kard_jax.student.gpt_decoder import Decoder, DecodingState, Shape

STDDEV = 0.02  # of initial embeddings, as in GPT-2: the table is the output head too


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
    *,
    decoder_segment_ids_BxT: Int[Array, "B T"] | None = None,
    decoder_positions_BxT: Int[Array, "B T"] | None = None,
    deterministic: bool = True,
  ) -> Float[Array, "B T V"]:
    """Logits of each next token, float32, given the tokens up to it.

    Args:
      decoder_input_tokens_BxT: padded at the end.
      decoder_segment_ids_BxT: where rows hold several texts, which one a token belongs to.
      decoder_positions_BxT: of each token in its text; None: counted from the start of the row.
      deterministic: no dropout; otherwise give an rng named "dropout".
    """
    positions = decoder_positions_BxT
    if positions is None:
      positions = jnp.arange(decoder_input_tokens_BxT.shape[1])[None]
      self._check_length(decoder_input_tokens_BxT.shape[1])
    x = self.decoder(
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
    embedded_BxLxD = self._embed(input_tokens_BxL, positions_L[None])
    state = self.decoder.start(embedded_BxLxD, lengths_B, samples=samples, max_length=max_length)
    last_Bx1 = jnp.take_along_axis(input_tokens_BxL, lengths_B[:, None] - 1, axis=1)
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
