"""Choosing each next token: the most probable one, or a draw among the most probable ones.

A draw depends on nothing but the seed, the row's own id, the sample and the position: neither on
the rest of the batch nor on its padding, order or sharding.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from kard_jax.core.files import InputError


@dataclasses.dataclass(frozen=True)
class Sampler:
  """How texts are chosen.

  Attributes:
    greedy: always the most probable token; then the next three are not used.
    temperature: divides logits; below 1 is more sure, above 1 more varied.
    top_k: draw among the so many most probable tokens; 0 means all.
    top_p: then among the fewest of these that together have this probability; 1 means all.
    beams: above 1, nothing is drawn: so many texts are kept at each step, and the best of them
      are given (see `beams`); all of the above are not used then.
    length_penalty: of beams: log-probabilities are divided by the length to this power, so that
      above 0 longer texts are preferred.
    early_stopping: of beams: True ends as soon as there are `beams` whole texts; False when the
      best unfinished one would not do better at its present length; "never" when it could not at
      any length.
    eos_id: ends a text.
    pad_id: stands after the end.
  """

  greedy: bool = False
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  beams: int = 1
  length_penalty: float = 1.0
  early_stopping: bool | Literal["never"] = False
  eos_id: int = 1
  pad_id: int = 0

  def __post_init__(self) -> None:
    if not (self.temperature > 0 and math.isfinite(self.temperature)):
      raise InputError(
        f"decode.Sampler.temperature = {self.temperature}: must be above 0; for the most probable "
        "tokens set greedy = True"
      )
    if self.top_k < 0:
      raise InputError(f"decode.Sampler.top_k = {self.top_k}: give 0 (all tokens) or more")
    if not 0 < self.top_p <= 1:
      raise InputError(f"decode.Sampler.top_p = {self.top_p}: give more than 0, and 1 for all")
    if self.beams < 1:
      raise InputError(f"decode.Sampler.beams = {self.beams}: give 1 (no beams) or more")
    if not math.isfinite(self.length_penalty):
      raise InputError(f"decode.Sampler.length_penalty = {self.length_penalty}: give a number")
    if self.early_stopping not in (True, False, "never"):
      raise InputError(
        f"decode.Sampler.early_stopping = {self.early_stopping!r}: give True, False or 'never'"
      )

  @property
  def draws(self) -> bool:
    """Whether chance takes part."""
    return not self.greedy and self.beams == 1


class Rows(NamedTuple):
  """Texts being written, one token a step.

  Attributes:
    tokens_BxSxT: so far; pads behind.
    log_probs_BxS: so far, under the network itself: temperature 1, all tokens.
    lengths_BxS: tokens so far, the end included.
    last_BxS: fed at the next step.
    ended_BxS: whether the end was written, or the input is empty.
    keys_BxS: of the draws.
  """

  tokens_BxSxT: jax.Array
  log_probs_BxS: jax.Array
  lengths_BxS: jax.Array
  last_BxS: jax.Array
  ended_BxS: jax.Array
  keys_BxS: jax.Array


@dataclasses.dataclass(frozen=True)
class Sampling:
  """The search that follows each text by itself (see `decode.Search`)."""

  sampler: Sampler

  def start(
    self, last_BxS: jax.Array, empty_B: jax.Array, keys_BxS: jax.Array, max_length: int
  ) -> Rows:
    """Texts without a token."""
    rows = last_BxS.shape
    return Rows(
      jnp.full((*rows, max_length), self.sampler.pad_id, jnp.int32),
      jnp.zeros(rows, jnp.float32),
      jnp.zeros(rows, jnp.int32),
      last_BxS,
      jnp.broadcast_to(empty_B[:, None], rows),
      keys_BxS,
    )

  def advance(
    self, rows: Rows, logits_BxSxV: jax.Array, position: jax.Array
  ) -> tuple[Rows, jax.Array | None]:
    """One more token for each text that has not ended."""
    if self.sampler.greedy:
      chosen_BxS = most_probable(logits_BxSxV)
    else:
      chosen_BxS = draw(logits_BxSxV, fold(rows.keys_BxS, position), self.sampler)
    chosen_BxS = jnp.where(rows.ended_BxS, self.sampler.pad_id, chosen_BxS).astype(jnp.int32)
    log_prob_BxS = jnp.take_along_axis(logits_BxSxV, chosen_BxS[..., None], axis=-1)[..., 0]
    log_prob_BxS -= jax.nn.logsumexp(logits_BxSxV, axis=-1)
    return rows._replace(
      tokens_BxSxT=rows.tokens_BxSxT.at[:, :, position].set(chosen_BxS),
      log_probs_BxS=rows.log_probs_BxS + jnp.where(rows.ended_BxS, 0.0, log_prob_BxS),
      lengths_BxS=rows.lengths_BxS + ~rows.ended_BxS,
      last_BxS=chosen_BxS,
      ended_BxS=rows.ended_BxS | (chosen_BxS == self.sampler.eos_id),
    ), None

  def finished(self, rows: Rows) -> jax.Array:
    """Which inputs need no more steps."""
    return jnp.all(rows.ended_BxS, axis=1)

  def texts(self, rows: Rows) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Tokens, log-probabilities and lengths."""
    return rows.tokens_BxSxT, rows.log_probs_BxS, rows.lengths_BxS


def fold(keys: Key[Array, "*#rows"], numbers: Int[Array, "*#rows"]) -> Key[Array, "*rows"]:
  """Keys with a number folded into each; both are broadcast."""
  shape = jnp.broadcast_shapes(keys.shape, numbers.shape)
  folded = jax.vmap(jax.random.fold_in)(
    jnp.broadcast_to(keys, shape).ravel(), jnp.broadcast_to(numbers, shape).ravel()
  )
  return folded.reshape(shape)


def most_probable(logits: Float[Array, "*rows V"]) -> Int[Array, "*rows"]:
  """The most probable token of each row, the first of equals, as `argmax` gives it.

  XLA's CPU backend reduces pairs of value and index one by one; a maximum, then the least index
  that has it, are three times as quick for 32,000 tokens.
  """
  vocab_size = logits.shape[-1]
  best = jnp.max(logits, axis=-1, keepdims=True)
  tokens = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
  first = jnp.min(jnp.where(logits == best, tokens, vocab_size), axis=-1)
  return jnp.minimum(first, vocab_size - 1)  # where all are NaN none equals the maximum


def draw(
  logits: Float[Array, "*rows V"], keys: Key[Array, "*rows"], sampler: Sampler
) -> Int[Array, "*rows"]:
  """Draws a token for each row, with its own key, by the Gumbel-max rule."""
  vocab_size = logits.shape[-1]
  logits = logits.astype(jnp.float32) / sampler.temperature
  if not sampler.top_k and sampler.top_p == 1:
    return jnp.argmax(logits + _gumbel(keys, vocab_size), axis=-1)
  logits, tokens, kept = candidates(logits, top_k=sampler.top_k, top_p=sampler.top_p)
  noisy = jnp.where(kept, logits + _gumbel(keys, logits.shape[-1]), -jnp.inf)
  chosen = jnp.argmax(noisy, axis=-1)
  return jnp.take_along_axis(tokens, chosen[..., None], axis=-1)[..., 0]


def candidates(
  logits: Float[Array, "*rows V"], *, top_k: int, top_p: float
) -> tuple[Float[Array, "*rows N"], Int[Array, "*rows N"], Bool[Array, "*rows N"]]:
  """The most probable tokens, best first, and which of them may be drawn.

  Args:
    logits: already divided by the temperature.
    top_k: N; 0, or more than V, means V.
    top_p: of the probability of these N tokens. The token that reaches it may still be drawn.

  Returns:
    Logits and ids of the N tokens, equal ones in order of id; true where a token may be drawn.

  Source: Fan et al. 2018 (top-k); Holtzman et al. 2020 (top-p), in that order as elsewhere.
  """
  logits, tokens = jax.lax.top_k(logits, min(top_k or logits.shape[-1], logits.shape[-1]))
  probabilities = jax.nn.softmax(logits, axis=-1)
  reached = jnp.cumsum(probabilities, axis=-1) >= top_p
  return logits, tokens, jnp.roll(~reached, 1, axis=-1).at[..., 0].set(True)


def _gumbel(keys: jax.Array, count: int) -> jax.Array:
  noise = jax.vmap(lambda key: jax.random.gumbel(key, (count,)))(keys.ravel())
  return noise.reshape(*keys.shape, count)
