"""What is done to a network's caches between the steps of decoding, whatever network it is.

A state is a tree of arrays of the network's own making. Which of their axes count inputs, samples
and steps is found by asking for the shapes of states of other sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

State = Any  # a tree of arrays with fixed shapes; what is in it is the network's affair

_INPUTS, _SAMPLES = 2, 5  # how many times more of them `probe` asks for
_FIRST = 32  # steps that a new cache has room for


class Axes(NamedTuple):
  """Of one array; None where it has no such axis.

  Attributes:
    inputs: the axis of the batch.
    samples: that of an input's samples; equal to `inputs` where both are one axis.
    steps: that which grows with the length of texts.
  """

  inputs: int | None
  samples: int | None
  steps: int | None


def rooms(max_length: int) -> list[int]:
  """The numbers of steps that caches have room for, one after the other."""
  found, size = [], _FIRST
  while size < max_length:
    found.append(size)
    size *= 2
  return [*found, max_length]


def probe(inputs: int, samples: int, max_length: int) -> tuple[int, int, int]:
  """The other sizes of which `axes` needs to see a state; shards divide them as before."""
  return inputs * _INPUTS, samples * _SAMPLES, max(1, min(_FIRST, max_length - 1))


def axes(state: State, probed: State) -> tuple[Axes, ...]:
  """The axes of each array, from the shapes of a state and of one of `probe`'s sizes."""
  found = []
  for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(probed), strict=True):
    inputs = samples = steps = None
    for axis, (before, after) in enumerate(zip(one.shape, other.shape, strict=True)):
      if after < before:
        steps = axis
      elif after > before:
        times = after // before
        inputs = axis if times % _INPUTS == 0 else inputs
        samples = axis if times % _SAMPLES == 0 else samples
    found.append(Axes(inputs, samples, steps))
  return tuple(found)


def join(states: Sequence[State], axes: Sequence[Axes]) -> State:
  """States of several batches as one of all their inputs; all else is the same in them."""

  def joined(at: Axes, *parts: jax.Array) -> jax.Array:
    return parts[0] if at.inputs is None else jnp.concatenate(parts, axis=at.inputs)

  leaves = zip(*map(jax.tree.leaves, states), strict=True)
  tree = jax.tree.structure(states[0])
  return jax.tree.unflatten(
    tree, [joined(at, *parts) for at, parts in zip(axes, leaves, strict=True)]
  )


def grow(state: State, axes: Sequence[Axes], by: int) -> State:
  """Room for so many more steps."""

  def longer(x: jax.Array, axis: int | None) -> jax.Array:
    return x if axis is None else jnp.pad(x, [(0, by * (i == axis)) for i in range(x.ndim)])

  return _map(lambda x, at: longer(x, at.steps), state, axes)


def keep(state: State, axes: Sequence[Axes], samples: int, rows: jax.Array) -> State:
  """Some of the inputs, with all of their samples."""
  side_by_side = (rows[:, None] * samples + jnp.arange(samples)).ravel()

  def some(x: jax.Array, at: Axes) -> jax.Array:
    if at.inputs is None:
      return x
    return jnp.take(x, side_by_side if at.inputs == at.samples else rows, axis=at.inputs)

  return _map(some, state, axes)


def reorder(state: State, axes: Sequence[Axes], parents_BxS: jax.Array) -> State:
  """For each sample what another sample of the same input had."""

  def other(x: jax.Array, at: Axes) -> jax.Array:
    if at.inputs is None or at.samples is None:
      return x
    if at.inputs == at.samples:
      split = (*x.shape[: at.inputs], *parents_BxS.shape, *x.shape[at.inputs + 1 :])
      return take(x.reshape(split), at.inputs, at.inputs + 1).reshape(x.shape)
    return take(x, at.inputs, at.samples)

  def take(x: jax.Array, inputs: int, samples: int) -> jax.Array:
    front = jnp.moveaxis(x, (inputs, samples), (0, 1))
    index = parents_BxS.reshape(parents_BxS.shape + (1,) * (x.ndim - 2))
    return jnp.moveaxis(jnp.take_along_axis(front, index, axis=1), (0, 1), (inputs, samples))

  return _map(other, state, axes)


def _map(function: Any, state: State, axes: Sequence[Axes]) -> State:
  leaves, tree = jax.tree.flatten(state)
  return jax.tree.unflatten(tree, list(map(function, leaves, axes)))
