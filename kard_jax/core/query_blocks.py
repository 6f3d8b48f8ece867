"""Attention of some queries after others, so that the scores of long texts need not all be there.

Scores, B x H x Q x L in float32, are most of what reading long prompts takes: 34 GB for 64 prompts
of 2,048 tokens and Flan-T5 XL's 32 heads, where all are read at once. Each query's weights are its
own, so blocks change no bit. Training keeps all scores, as its gradients need them, or computes
them again (`scanning`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

BLOCK = 512  # queries together


def attend(
  call: Callable[..., jax.Array],
  queries: jax.Array,
  axis: int,
  tables: Sequence[tuple[jax.Array | None, int]],
) -> jax.Array:
  """What `call(queries, *tables)` gives, for `BLOCK` queries at a time.

  Args:
    call: gives an array with the queries where they stood, at `axis`.
    queries: of any shape.
    axis: which of its axes counts the queries.
    tables: such as biases and masks, and which axis counts the queries; None, and a table with one
      row for all queries, are given as they are.
  """
  count = queries.shape[axis]
  if count <= BLOCK:
    return call(queries, *(table for table, _ in tables))

  def block(begin: jax.Array | int, size: int) -> jax.Array:
    def part(table: jax.Array | None, axis: int) -> jax.Array | None:
      if table is None or table.shape[axis] == 1:
        return table
      return jax.lax.dynamic_slice_in_dim(table, begin, size, axis)

    return call(part(queries, axis), *(part(*table) for table in tables))

  # A loop: XLA keeps the scores of all blocks at once where they are written out.
  whole, rest = divmod(count, BLOCK)
  mixed = jax.lax.map(lambda begin: block(begin, BLOCK), jnp.arange(whole) * BLOCK)
  mixed = jnp.moveaxis(mixed, 0, axis)
  mixed = mixed.reshape(*mixed.shape[:axis], whole * BLOCK, *mixed.shape[axis + 2 :])
  return jnp.concatenate([mixed, block(whole * BLOCK, rest)], axis) if rest else mixed
