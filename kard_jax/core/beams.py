"""Beam search: at each step the texts that are most probable so far, with their ends kept apart.

Scores, ends and ties are those of Hugging Face's `generate(num_beams=...)`, so that a model gives
the same texts here as there: a text's score is its log-probability divided by its length to a
power; a text that ends counts if it stands among the `beams` best of that step.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kard_jax.core.sampling import Sampler

IMPOSSIBLE = -1e9  # log-probability of what must not be chosen; finite, as differences are taken


class Beams(NamedTuple):
  """Texts that are still being written, and the best that have ended; S beams of each.

  Attributes:
    tokens_BxSxT: being written, best first.
    log_probs_BxS: theirs.
    last_BxS: fed at the next step.
    ended_tokens_BxSxT: the best whole texts, best first.
    ended_scores_BxS: their log-probability by length to the power of the penalty.
    ended_log_probs_BxS: their log-probability.
    ended_lengths_BxS: their tokens, the end included; 0 where there is no text yet.
    finished_B: nothing can be improved.
  """

  tokens_BxSxT: jax.Array
  log_probs_BxS: jax.Array
  last_BxS: jax.Array
  ended_tokens_BxSxT: jax.Array
  ended_scores_BxS: jax.Array
  ended_log_probs_BxS: jax.Array
  ended_lengths_BxS: jax.Array
  finished_B: jax.Array


@dataclasses.dataclass(frozen=True)
class BeamSearch:
  """The search that lets texts of an input compete (see `decode.Search`)."""

  sampler: Sampler

  def start(
    self, last_BxS: jax.Array, empty_B: jax.Array, keys_BxS: jax.Array, max_length: int
  ) -> Beams:
    """One text without a token; the other beams must not repeat it."""
    del keys_BxS
    rows = last_BxS.shape
    nothing = jnp.full((*rows, max_length), self.sampler.pad_id, jnp.int32)
    first = jnp.where(jnp.arange(rows[1]) == 0, 0.0, IMPOSSIBLE).astype(jnp.float32)
    return Beams(
      nothing,
      jnp.broadcast_to(first, rows),
      last_BxS,
      nothing,
      jnp.full(rows, IMPOSSIBLE, jnp.float32),
      jnp.where(empty_B[:, None], 0.0, jnp.full(rows, IMPOSSIBLE, jnp.float32)),
      jnp.zeros(rows, jnp.int32),
      empty_B,
    )

  def advance(
    self, beams: Beams, logits_BxSxV: jax.Array, position: jax.Array
  ) -> tuple[Beams, jax.Array]:
    """The best continuations of all beams; also which beam each continues."""
    count, max_length = beams.tokens_BxSxT.shape[1:]
    vocab_size = logits_BxSxV.shape[-1]
    # Each beam has one end among its continuations, so 2 S of them hold S that go on.
    log_probs_BxSxV = beams.log_probs_BxS[..., None] + jax.nn.log_softmax(logits_BxSxV)
    best_BxC, flat_BxC = _best(log_probs_BxSxV, 2 * count)
    parents_BxC, chosen_BxC = flat_BxC // vocab_size, flat_BxC % vocab_size
    tokens_BxCxT = _take(beams.tokens_BxSxT, parents_BxC).at[:, :, position].set(chosen_BxC)
    length = position + 1
    whole_BxC = (chosen_BxC == self.sampler.eos_id) | (length >= max_length)
    going_BxC = jnp.where(whole_BxC, best_BxC + IMPOSSIBLE, best_BxC)
    running_BxS, order_BxS = jax.lax.top_k(going_BxC, count)
    ended = self._ended(beams, tokens_BxCxT, best_BxC, whole_BxC, length)
    running = Beams(
      _take(tokens_BxCxT, order_BxS),
      running_BxS,
      _take(chosen_BxC, order_BxS),
      *ended,
      beams.finished_B,
    )
    return self._closed(running, length), _take(parents_BxC, order_BxS)

  def _ended(
    self,
    beams: Beams,
    tokens_BxCxT: jax.Array,
    log_probs_BxC: jax.Array,
    whole_BxC: jax.Array,
    length: jax.Array,
  ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The best whole texts, now that some more have ended."""
    count = beams.log_probs_BxS.shape[1]
    scores_BxC = log_probs_BxC / length.astype(jnp.float32) ** self.sampler.length_penalty
    counts = whole_BxC & (jnp.arange(2 * count) < count) & ~beams.finished_B[:, None]
    scores_BxC = jnp.where(counts, scores_BxC, IMPOSSIBLE)
    lengths_BxC = jnp.where(counts, length, 0)
    join = lambda old, new: jnp.concatenate([old, new], axis=1)
    scores_BxS, order_BxS = jax.lax.top_k(join(beams.ended_scores_BxS, scores_BxC), count)
    return (
      _take(join(beams.ended_tokens_BxSxT, tokens_BxCxT), order_BxS),
      scores_BxS,
      _take(join(beams.ended_log_probs_BxS, log_probs_BxC), order_BxS),
      _take(join(beams.ended_lengths_BxS, lengths_BxC), order_BxS),
    )

  def _closed(self, beams: Beams, length: jax.Array) -> Beams:
    """Marks the inputs whose whole texts are final."""
    penalty, max_length = self.sampler.length_penalty, beams.tokens_BxSxT.shape[2]
    full_B = jnp.all(beams.ended_lengths_BxS > 0, axis=1)
    if self.sampler.early_stopping is True:
      closed_B = full_B
    else:
      closed_B = jnp.zeros_like(full_B)
    hopeful = self.sampler.early_stopping == "never" and penalty > 0
    final = jnp.asarray(max_length if hopeful else length, jnp.float32)
    possible_B = beams.log_probs_BxS[:, 0] / final**penalty
    closed_B |= full_B & (possible_B <= beams.ended_scores_BxS[:, -1])
    return beams._replace(finished_B=beams.finished_B | closed_B)

  def finished(self, beams: Beams) -> jax.Array:
    """Which inputs need no more steps."""
    return beams.finished_B

  def texts(self, beams: Beams) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Tokens, log-probabilities and lengths of the whole texts, best score first."""
    return beams.ended_tokens_BxSxT, beams.ended_log_probs_BxS, beams.ended_lengths_BxS


def _best(log_probs_BxSxV: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
  """The best continuations of all beams together, as positions in [S x V], equal ones in order.

  The best of each beam first: the few that are left are sorted much faster than S x V numbers, and
  the rows of a vocabulary that is sharded stay where they are.
  """
  rows, beams, vocab_size = log_probs_BxSxV.shape
  each_BxSxC, tokens_BxSxC = jax.lax.top_k(log_probs_BxSxV, min(count, vocab_size))
  flat_BxSxC = tokens_BxSxC + vocab_size * jnp.arange(beams)[:, None]
  best_BxC, order_BxC = jax.lax.top_k(each_BxSxC.reshape(rows, -1), count)
  return best_BxC, jnp.take_along_axis(flat_BxSxC.reshape(rows, -1), order_BxC, axis=1)


def _take(x: jax.Array, places_BxC: jax.Array) -> jax.Array:
  """Of each row of x [B, S, ...] the places [B, C]."""
  index = places_BxC.reshape(places_BxC.shape + (1,) * (x.ndim - 2))
  return jnp.take_along_axis(x, index, axis=1)
