"""How likely each of a few tokens is to come next: what a judge asks of a language model.

The network reads a prompt once and takes a step, as when it writes, so both families
of students can.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kard_jax.core import streaming
from kard_jax.core.objective import Params
from kard_jax.core.partitioning import Partitioner


def log_probs(
  network: nn.Module,
  params: Params,
  input_tokens: Sequence[Sequence[int]],
  token_ids: Sequence[int],
  *,
  forced: Sequence[int] = (),
  batch_size: int = 64,
  partitioner: Partitioner | None = None,
) -> Float[np.ndarray, "N K"]:
  """Natural log-probabilities of tokens that may follow each prompt.

  Args:
    network: as `decode.decode` takes.
    params: unboxed, in the partitioner's shardings.
    input_tokens: N prompts, none empty, of any lengths.
    token_ids: K tokens.
    forced: tokens that stand between a prompt and the one asked for.
    batch_size: prompts read together.
    partitioner: the mesh, whose batch axis must divide `batch_size`.
  """
  lengths_N = np.array([len(tokens) for tokens in input_tokens], np.int64)
  found = np.zeros((len(lengths_N), len(token_ids)), np.float32)
  if not len(lengths_N):
    return found
  pad_id = getattr(network, "pad_id", 0)
  shards = 1
  if partitioner is not None:
    partitioner.rows(batch_size)  # refuses what cannot be split
    shards = batch_size // partitioner.batch_sharding.shard_shape((batch_size,))[0]
  sizes = streaming.buckets(int(lengths_N.max()))
  wanted_K = jnp.asarray(token_ids, jnp.int32)
  for batch in streaming.batches(lengths_N, size=batch_size, buckets=sizes, shards=shards):
    rows_BxL = np.full((batch.rows, batch.lengths[0]), pad_id, np.int32)
    for row, place in enumerate(batch.places):
      rows_BxL[row, : lengths_N[place]] = input_tokens[place]
    rows: Any = rows_BxL
    if partitioner is not None:
      mine = {"rows": rows_BxL[partitioner.rows(batch.rows)]}
      rows = partitioner.put(mine, batch.rows)["rows"]
    with partitioner.active() if partitioner is not None else contextlib.nullcontext():
      scores_BxK = _log_probs(network, tuple(forced), params, rows, wanted_K)
    found[batch.places] = np.asarray(scores_BxK)[: len(batch.places)]
  return found


@functools.partial(jax.jit, static_argnums=(0, 1))
def _log_probs(
  network: nn.Module,
  forced: tuple[int, ...],
  params: Params,
  tokens_BxL: Int[Array, "B L"],
  wanted_K: Int[Array, " K"],
) -> Float[Array, "B K"]:
  variables = {"params": params}
  applied: Any = network.apply(
    variables, tokens_BxL, samples=1, max_length=len(forced) + 1, method="start"
  )
  last_Bx1, state = applied
  for position, token in enumerate((*forced, -1)):
    stepped: Any = network.apply(
      variables, last_Bx1, jnp.asarray(position, jnp.int32), state, method="step"
    )
    logits_Bx1xV, state = stepped
    last_Bx1 = jnp.full_like(last_Bx1, token)
  scores_BxV = jax.nn.log_softmax(logits_Bx1xV[:, 0].astype(jnp.float32))
  return scores_BxV[:, wanted_K]
