"""Writing text with a network: one compiled loop for greedy search and for sampling.

The paper's students sample several rationales for a question, which then vote (section 4); the
input is encoded once for all of them. A draw depends on nothing but the seed, the row's own id, the
sample and the position: neither on the rest of the batch nor on its padding, order or sharding.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from kard_jax.core.files import InputError
from kard_jax.core.objective import Params

State = Any  # a tree of arrays with fixed shapes; what is in it is the network's affair


class Network(Protocol):
  """The two methods of a Linen module that can write text; `decode` calls them through `apply`."""

  def start(
    self, input_tokens_BxL: Int[Array, "B L"], *, samples: int, max_length: int
  ) -> tuple[Int[Array, "B S"], State]:
    """Reads the inputs, once for all samples.

    Returns:
      The token to feed at the first step (T5: pad; a GPT: the prompt's last token), and a state
      with room for `max_length` steps.
    """
    ...

  def step(
    self, tokens_BxS: Int[Array, "B S"], position: Int[Array, ""], state: State
  ) -> tuple[Float[Array, "B S V"], State]:
    """Feeds one token to each sample; gives logits of the next. Steps count from position 0."""
    ...


@dataclasses.dataclass(frozen=True)
class Sampler:
  """How each token is chosen.

  Attributes:
    greedy: always the most probable token; then the next three are not used.
    temperature: divides logits; below 1 is more sure, above 1 more varied.
    top_k: draw among the so many most probable tokens; 0 means all.
    top_p: then among the fewest of these that together have this probability; 1 means all.
    eos_id: ends a text.
    pad_id: stands after the end.
  """

  greedy: bool = False
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
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


class Decoded(NamedTuple):
  """Texts as tokens.

  Attributes:
    tokens_BxSxT: up to and with the end token, then pads. A text cut at T has no end token.
    log_probs_BxS: float32, log-probability of each text (end included) under the network itself:
      temperature 1, all tokens.
  """

  tokens_BxSxT: jax.Array
  log_probs_BxS: jax.Array


def decode(
  network: nn.Module,
  params: Params,
  input_tokens_BxL: Int[Array | np.ndarray, "B L"],
  *,
  sampler: Sampler,
  max_length: int,
  samples: int = 1,
  rng: Key[Array, ""] | None = None,
  row_ids_B: Int[Array | np.ndarray, " B"] | None = None,
) -> Decoded:
  """Writes `samples` texts for each input.

  One compilation serves all calls with the same network, settings and shapes, so pad the last
  batch: rows of nothing but pads are left empty and cost no steps of their own.

  Args:
    network: a Linen module with the methods of `Network`.
    params: unboxed.
    input_tokens_BxL: padded with `sampler.pad_id`.
    sampler: how each token is chosen.
    max_length: T, most tokens of a text, its end included.
    samples: S, texts for each input.
    rng: the seed as a typed key; needed unless greedy.
    row_ids_B: what tells inputs apart, at least 0, such as their places in the data set; by default
      their places in the batch, and then draws change with the batch.

  Raises:
    InputError: fewer than one token or sample, several greedy ones, or sampling without a seed.
  """
  for name, value in (("max_length", max_length), ("samples", samples)):
    if value < 1:
      raise InputError(f"{name} = {value}: must be at least 1")
  if sampler.greedy and samples > 1:
    raise InputError(f"samples = {samples}: greedy texts would all be the same; set samples = 1")
  if rng is None:
    if not sampler.greedy:
      raise InputError("sampling needs a seed: give rng, or set decode.Sampler.greedy = True")
    rng = jax.random.key(0)
  if row_ids_B is None:
    row_ids_B = np.arange(input_tokens_BxL.shape[0])
  return _decode(
    network,
    sampler,
    max_length,
    samples,
    params,
    jnp.asarray(input_tokens_BxL),
    rng,
    jnp.asarray(row_ids_B),
  )


class _Loop(NamedTuple):
  position: jax.Array
  tokens_BxSxT: jax.Array
  log_probs_BxS: jax.Array
  last_BxS: jax.Array
  done_BxS: jax.Array
  state: State


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _decode(
  network: nn.Module,
  sampler: Sampler,
  max_length: int,
  samples: int,
  params: Params,
  input_tokens_BxL: jax.Array,
  rng: jax.Array,
  row_ids_B: jax.Array,
) -> Decoded:
  variables = {"params": params}
  keys_BxS = _fold(_fold(rng, row_ids_B)[:, None], jnp.arange(samples))
  first: Any = network.apply(
    variables, input_tokens_BxL, samples=samples, max_length=max_length, method="start"
  )
  last_BxS, state = first
  rows = last_BxS.shape

  def unfinished(loop: _Loop) -> jax.Array:
    return (loop.position < max_length) & ~jnp.all(loop.done_BxS)

  def advance(loop: _Loop) -> _Loop:
    stepped: Any = network.apply(variables, loop.last_BxS, loop.position, loop.state, method="step")
    logits_BxSxV, state = stepped
    if sampler.greedy:
      chosen_BxS = jnp.argmax(logits_BxSxV, axis=-1)
    else:
      chosen_BxS = draw(logits_BxSxV, _fold(keys_BxS, loop.position), sampler)
    chosen_BxS = jnp.where(loop.done_BxS, sampler.pad_id, chosen_BxS).astype(jnp.int32)
    log_prob_BxS = jnp.take_along_axis(logits_BxSxV, chosen_BxS[..., None], axis=-1)[..., 0]
    log_prob_BxS -= jax.nn.logsumexp(logits_BxSxV, axis=-1)
    return _Loop(
      loop.position + 1,
      loop.tokens_BxSxT.at[:, :, loop.position].set(chosen_BxS),
      loop.log_probs_BxS + jnp.where(loop.done_BxS, 0.0, log_prob_BxS),
      chosen_BxS,
      loop.done_BxS | (chosen_BxS == sampler.eos_id),
      state,
    )

  empty_B = jnp.all(input_tokens_BxL == sampler.pad_id, axis=-1)
  start = _Loop(
    jnp.zeros((), jnp.int32),
    jnp.full((*rows, max_length), sampler.pad_id, jnp.int32),
    jnp.zeros(rows, jnp.float32),
    last_BxS,
    jnp.broadcast_to(empty_B[:, None], rows),
    state,
  )
  end = jax.lax.while_loop(unfinished, advance, start)
  return Decoded(end.tokens_BxSxT, end.log_probs_BxS)


def _fold(keys: jax.Array, numbers: jax.Array) -> jax.Array:
  """Keys with a number folded into each; both are broadcast."""
  shape = jnp.broadcast_shapes(keys.shape, numbers.shape)
  folded = jax.vmap(jax.random.fold_in)(
    jnp.broadcast_to(keys, shape).ravel(), jnp.broadcast_to(numbers, shape).ravel()
  )
  return folded.reshape(shape)


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
