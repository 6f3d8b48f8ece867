"""Writing text with a network: one loop for greedy search, sampling and beams.

The paper's students sample several rationales for a question, which then vote (section 4); the
input is encoded once for all of them. The loop is compiled; it is left after 32 steps, then after
64, 128 and so on, to make room in the network's caches (attention reads all of a cache, so a small
one is quicker) and to drop the inputs whose texts have ended.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from kard_jax.core import decoding_state
from kard_jax.core.beams import BeamSearch
from kard_jax.core.decoding_state import State
from kard_jax.core.files import InputError
from kard_jax.core.objective import Params
from kard_jax.core.sampling import Sampler, Sampling, candidates, draw, fold

__all__ = ["Decoded", "Network", "Sampler", "candidates", "decode", "draw"]

_LEAST = 8  # inputs that a batch is cut down to


class Network(Protocol):
  """The two methods of a Linen module that can write text; `decode` calls them through `apply`.

  An array of the state may have an axis of the inputs (with or without their samples, which stand
  side by side) and an axis that grows with `max_length`; `decode` finds them (`decoding_state`).
  What lies beyond the steps so far must not be read.

  A network may also have `join(states) -> State`, which takes no parameters: it makes one state of
  those of several batches whose inputs have unequal lengths. Then a batch may mix lengths.
  """

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


@runtime_checkable
class Search(Protocol):
  """How texts are chosen; hashable, so that equal ones share a compilation.

  Its rows are a NamedTuple of arrays with the inputs in front; `last_BxS` is fed next.
  """

  def start(
    self, last_BxS: jax.Array, empty_B: jax.Array, keys_BxS: jax.Array, max_length: int
  ) -> Any:
    """Rows of texts without a token."""
    ...

  def advance(
    self, rows: Any, logits_BxSxV: jax.Array, position: jax.Array
  ) -> tuple[Any, jax.Array | None]:
    """One more token; and which sample each continues, None where each continues itself."""
    ...

  def finished(self, rows: Any) -> jax.Array:
    """Which inputs need no more steps."""
    ...

  def texts(self, rows: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Tokens, log-probabilities and lengths."""
    ...


class Decoded(NamedTuple):
  """Texts as tokens.

  Attributes:
    tokens_BxSxT: up to and with the end token, then pads. A text cut at T has no end token.
    log_probs_BxS: float32, log-probability of each text (end included) under the network itself:
      temperature 1, all tokens.
    lengths_BxS: tokens of each text, the end included.
  """

  tokens_BxSxT: Int[np.ndarray, "B S T"]
  log_probs_BxS: Float[np.ndarray, "B S"]
  lengths_BxS: Int[np.ndarray, "B S"]


def decode(
  network: nn.Module,
  params: Params,
  input_tokens_BxL: Int[Array | np.ndarray, "B L"] | Sequence[Int[Array | np.ndarray, "_B _L"]],
  *,
  sampler: Sampler,
  max_length: int,
  samples: int = 1,
  rng: Key[Array, ""] | None = None,
  row_ids_B: Int[Array | np.ndarray, " B"] | None = None,
  progress: Callable[[int], object] | None = None,
) -> Decoded:
  """Writes `samples` texts for each input.

  Compilations serve all calls with the same network, settings and shapes, so pad the last batch:
  rows of nothing but pads are left empty and cost no steps of their own.

  Args:
    network: a Linen module with the methods of `Network`.
    params: unboxed.
    input_tokens_BxL: padded at the end with `network.pad_id`, or, where the network has none, with
      `sampler.pad_id`. Several arrays are the parts of one batch, each of which is read by itself;
      they may have unequal lengths if the network can join them.
    sampler: how each token is chosen.
    max_length: T, most tokens of a text, its end included.
    samples: S, texts for each input; of beams the best.
    rng: the seed as a typed key; needed for draws.
    row_ids_B: what tells inputs apart, at least 0, such as their places in the data set; by default
      their places in the batch, and then draws change with the batch.
    progress: called now and then with how many more tokens were written.

  Raises:
    InputError: fewer than one token or sample, several greedy ones, more than there are beams, or
      sampling without a seed.
  """
  check(sampler, max_length=max_length, samples=samples, seeded=rng is not None)
  several = isinstance(input_tokens_BxL, (list, tuple))
  parts = [jnp.asarray(x) for x in (input_tokens_BxL if several else [input_tokens_BxL])]
  beams = sampler.beams > 1
  search: Search = BeamSearch(sampler) if beams else Sampling(sampler)
  width = sampler.beams if beams else samples
  part_axes, axes = _axes(network, params, parts, width, max_length)
  run = _Run(network, search, width, max_length, axes, len({x.shape[1] for x in parts}) == 1)
  started = [start(network, width, run.rooms[0], params, part) for part in parts]
  lasts, states = zip(*started, strict=True)
  lengths = tuple(part.shape[1] for part in parts)
  state = states[0] if len(parts) == 1 else _join(network, part_axes, lengths, states)
  del started, states  # the caches of parts are not needed beside the whole
  pad_id = getattr(network, "pad_id", sampler.pad_id)
  rng = jax.random.key(0) if rng is None else rng
  ids_B = np.arange(sum(map(len, parts))) if row_ids_B is None else row_ids_B
  rows = _rows(search, max_length, pad_id, lasts, parts, rng, jnp.asarray(ids_B))
  loop = _Loop(jnp.zeros((), jnp.int32), rows, state)
  found = run.to_the_end(params, loop, _shards(parts[0]), progress)
  return Decoded(*(x[:, :samples] for x in found))


def lower(
  network: nn.Module,
  params: Params,
  inputs_BxL: jax.ShapeDtypeStruct,
  *,
  sampler: Sampler,
  max_length: int,
  samples: int,
  shardings: Any,
  rows: jax.sharding.Sharding,
) -> tuple[jax.stages.Lowered, Any]:
  """The loop of `decode` with the largest caches, to be compiled ahead, and its trace.

  Args:
    network: as for `decode`.
    params: shapes, with shardings.
    inputs_BxL: likewise.
    sampler: as for `decode`.
    max_length: T.
    samples: S, or as many as there are beams.
    shardings: of what `start` gives.
    rows: of what has the inputs in front.
  """
  search: Search = BeamSearch(sampler) if sampler.beams > 1 else Sampling(sampler)
  _, axes = _axes(network, params, [inputs_BxL], samples, max_length)
  last, state = start.eval_shape(network, samples, max_length, params, inputs_BxL)
  ids_B = jax.ShapeDtypeStruct((len(inputs_BxL),), jnp.int32)
  key = jax.eval_shape(lambda: jax.random.key(0))
  shapes = _rows.eval_shape(search, max_length, sampler.pad_id, [last], [inputs_BxL], key, ids_B)
  placed = lambda shape, where: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where)
  step: Any = jax.ShapeDtypeStruct((), jnp.int32)
  loop = _Loop(
    step,
    jax.tree.map(lambda shape: placed(shape, rows), shapes),
    jax.tree.map(placed, state, shardings[1]),
  )
  traced = _advance.trace(network, search, axes, max_length, params, loop)
  return traced.lower(), traced.jaxpr


def check(sampler: Sampler, *, max_length: int, samples: int, seeded: bool) -> None:
  """Refuses what cannot be meant; see `decode`."""
  for name, value in (("max_length", max_length), ("samples", samples)):
    if value < 1:
      raise InputError(f"{name} = {value}: must be at least 1")
  if sampler.beams > 1:
    if samples > sampler.beams:
      raise InputError(
        f"samples = {samples}: of decode.Sampler.beams = {sampler.beams} only so many can be given"
      )
  elif sampler.greedy and samples > 1:
    raise InputError(f"samples = {samples}: greedy texts would all be the same; set samples = 1")
  if sampler.draws and not seeded:
    raise InputError("sampling needs a seed: give rng, or set decode.Sampler.greedy = True")


class _Loop(NamedTuple):
  position: jax.Array
  rows: Any
  state: State


class _Run(NamedTuple):
  """What stays the same while a batch is decoded."""

  network: nn.Module
  search: Search
  width: int
  max_length: int
  axes: tuple[decoding_state.Axes, ...]
  can_drop: bool  # inputs that have ended

  @property
  def rooms(self) -> list[int]:
    return decoding_state.rooms(self.max_length)

  def to_the_end(
    self,
    params: Params,
    loop: _Loop,
    shards: int,
    progress: Callable[[int], object] | None,
  ) -> list[np.ndarray]:
    """Steps until all have finished; gives the texts of all inputs."""
    found: list[np.ndarray] = []  # filled as inputs finish
    places = np.arange(loop.rows.last_BxS.shape[0])  # of the inputs that are still in the loop
    seen = np.zeros(len(places), np.int64)  # tokens that were reported
    for before, room in zip([0, *self.rooms], self.rooms, strict=False):
      if before:
        loop = _grow(self.axes, room - before, loop)
      loop, finished_B = _advance(self.network, self.search, self.axes, room, params, loop)
      going = np.flatnonzero(~np.asarray(finished_B))
      last = not len(going) or room == self.max_length
      rows = len(places)
      if self.can_drop and not last:
        rows = fewer(rows, len(going), shards)
      if progress or last or rows < len(places):
        parts = [np.asarray(x) for x in self.search.texts(loop.rows)]
        found = found or [np.zeros_like(x) for x in parts]
        for whole, part in zip(found, parts, strict=True):
          whole[places] = part
      if progress:
        tokens = parts[2].sum(axis=1)
        progress(int((tokens - seen[places]).sum()))
        seen[places] = tokens
      if last:
        break
      if rows < len(places):
        kept = np.union1d(going, np.flatnonzero(np.asarray(finished_B))[: rows - len(going)])
        places, loop = places[kept], _keep(self.axes, self.width, loop, jnp.asarray(kept))
    return found


def fewer(rows: int, going: int, shards: int) -> int:
  """How many rows hold those that go on.

  The number is halved again and again, so that compilations are few, but is not below 8.
  """
  while rows % (2 * shards) == 0 and rows // 2 >= max(going, _LEAST):
    rows //= 2
  return rows


def _shards(inputs_BxL: jax.Array) -> int:
  """Into how many parts the batch axis is split."""
  return inputs_BxL.shape[0] // inputs_BxL.sharding.shard_shape(inputs_BxL.shape)[0]


def _axes(
  network: nn.Module,
  params: Params,
  parts: Sequence[jax.Array | jax.ShapeDtypeStruct],
  width: int,
  max_length: int,
) -> tuple[tuple[decoding_state.Axes, ...], tuple[decoding_state.Axes, ...]]:
  """The axes of the network's state of a part and of the whole batch.

  Refuses, as the network does, what it cannot hold.
  """
  lengths = tuple(part.shape[1] for part in parts)
  wholes, probes = [], []
  for part in parts:
    rows, samples, steps = decoding_state.probe(len(part), width, max_length)
    other = jax.ShapeDtypeStruct((rows, part.shape[1]), part.dtype)
    wholes.append(start.eval_shape(network, width, max_length, params, part)[1])
    probes.append(start.eval_shape(network, samples, steps, params, other)[1])
  of_part = decoding_state.axes(wholes[0], probes[0])
  if len(parts) == 1:
    return of_part, of_part
  whole = _join.eval_shape(network, of_part, lengths, tuple(wholes))
  probed = _join.eval_shape(network, of_part, lengths, tuple(probes))
  return of_part, decoding_state.axes(whole, probed)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _join(
  network: nn.Module,
  axes: tuple[decoding_state.Axes, ...],
  lengths: tuple[int, ...],
  states: Sequence[State],
) -> State:
  """One state of those of parts: the network's own doing where their lengths differ."""
  groups = []
  for _, group in itertools.groupby(zip(lengths, states, strict=True), key=lambda pair: pair[0]):
    groups.append(decoding_state.join([state for _, state in group], axes))
  if len(groups) == 1:
    return groups[0]
  joining: Any = network
  return joining.join(groups)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def start(
  network: nn.Module, samples: int, room: int, params: Params, inputs_BxL: jax.Array
) -> tuple[jax.Array, State]:
  """What the network reads before it writes, compiled; see `Network.start`."""
  started: Any = network.apply(
    {"params": params}, inputs_BxL, samples=samples, max_length=room, method="start"
  )
  return started


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _rows(
  search: Search,
  max_length: int,
  pad_id: int,
  lasts: Sequence[jax.Array],
  parts: Sequence[jax.Array],
  rng: jax.Array,
  ids_B: jax.Array,
) -> Any:
  last_BxS = jnp.concatenate(lasts)
  empty_B = jnp.concatenate([jnp.all(part == pad_id, axis=-1) for part in parts])
  keys_BxS = fold(fold(rng, ids_B)[:, None], jnp.arange(last_BxS.shape[1]))
  return search.start(last_BxS, empty_B, keys_BxS, max_length)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=(5,))
def _advance(
  network: nn.Module,
  search: Search,
  axes: tuple[decoding_state.Axes, ...],
  stop: int,
  params: Params,
  loop: _Loop,
) -> tuple[_Loop, jax.Array]:
  def unfinished(loop: _Loop) -> jax.Array:
    return (loop.position < stop) & ~jnp.all(search.finished(loop.rows))

  def step(loop: _Loop) -> _Loop:
    stepped: Any = network.apply(
      {"params": params}, loop.rows.last_BxS, loop.position, loop.state, method="step"
    )
    logits_BxSxV, state = stepped
    rows, parents_BxS = search.advance(loop.rows, logits_BxSxV, loop.position)
    if parents_BxS is not None:
      state = decoding_state.reorder(state, axes, parents_BxS)
    return _Loop(loop.position + 1, rows, state)

  loop = jax.lax.while_loop(unfinished, step, loop)
  return loop, search.finished(loop.rows)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _grow(axes: tuple[decoding_state.Axes, ...], by: int, loop: _Loop) -> _Loop:
  return loop._replace(state=decoding_state.grow(loop.state, axes, by))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _keep(axes: tuple[decoding_state.Axes, ...], width: int, loop: _Loop, kept: jax.Array) -> _Loop:
  rows = jax.tree.map(lambda x: jnp.take(x, kept, axis=0), loop.rows)
  return _Loop(loop.position, rows, decoding_state.keep(loop.state, axes, width, kept))
