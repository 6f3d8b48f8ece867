"""Writing text for thousands of inputs: sorted by length, a batch at a time, given back in order.

Short inputs stand in batches of short ones, so that a long passage slows no others; batches have
one of a few lengths and numbers of rows, so that compilations stay few. What is written does not
depend on any of this: an input's id decides its draws (see `sampling`).
"""

from __future__ import annotations

import contextlib
import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Int, Key

from kard_jax.core import decode as decode_lib
from kard_jax.core.decode import Decoded, Sampler
from kard_jax.core.objective import Params
from kard_jax.core.partitioning import Partitioner

_SHORTEST = 64  # tokens: what is shorter is not much quicker
_READ = 4096  # tokens read at a time, on each shard: more do not stay in a processor's cache

# Lengths of the eighths of a batch, by its longest: few, as each is compiled. Least work is chosen.
_SHARES = (
  (1, 0.75, 0.5, 0.375, 0.25, 0.125, 0.125, 0.125),  # most are short
  (1, 0.75, 0.5, 0.375, 0.25, 0.25, 0.125, 0.125),
  (1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125),
  (1, 0.75, 0.75, 0.75, 0.5, 0.5, 0.5, 0.375),  # most are of a middle length
  (1, 1, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25),  # all lengths are as frequent
  (1, 1, 0.75, 0.75, 0.75, 0.5, 0.375, 0.25),
  (1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5),
)
_SHARE = 4  # rows of an eighth at least; smaller batches have quarters


class Batch(NamedTuple):
  """A part of the inputs.

  Attributes:
    places: which inputs.
    rows: that are decoded; those beyond `places` are empty.
    lengths: in tokens, of equal shares of the rows.
  """

  places: Int[np.ndarray, " n"]
  rows: int
  lengths: tuple[int, ...]


def buckets(longest: int) -> tuple[int, ...]:
  """The default lengths of batches: halves of the longest, and three quarters between them."""
  found, length = [longest], longest
  while length > _SHORTEST:
    found += [-(-length * 3 // 4), -(-length // 2)] if length <= 512 else [-(-length // 2)]
    length = -(-length // 2)
  return tuple(sorted(found))


def batches(
  lengths_N: Int[np.ndarray, " N"],
  *,
  size: int,
  buckets: Sequence[int],
  shards: int = 1,
  mixed: bool = False,
) -> list[Batch]:
  """Which inputs are decoded together: those of like length, the longest first.

  Args:
    lengths_N: of the inputs, in tokens, none longer than the last bucket.
    size: inputs in a batch.
    buckets: the lengths that a batch may have, ascending.
    shards: number of rows must be a multiple of this.
    mixed: whether the quarters of a batch may have unequal lengths.
  """
  bucket = lambda length: int(buckets[int(np.searchsorted(buckets, length))])
  order = np.argsort(-lengths_N, kind="stable")
  found = []
  for start in range(0, len(order), size):
    places = order[start : start + size]
    rows = decode_lib.fewer(size, len(places), shards)
    length = bucket(lengths_N[places[0]])
    shapes: list[tuple[int, ...]] = [(length,)]
    eighths = rows % (8 * shards) == 0 and rows // 8 >= _SHARE * shards
    if mixed and rows % (4 * shards) == 0:
      shapes = _mixed(length, bucket, lengths_N[places], rows, 1 if eighths else 2)
    found.append(Batch(places, rows, shapes[0] if len(set(shapes[0])) > 1 else (length,)))
  return found


def _mixed(
  longest: int, bucket: Callable[[int], int], lengths: np.ndarray, rows: int, pair: int
) -> list[tuple[int, ...]]:
  """The lengths that shares of a batch may have, from least work to all equal ones."""
  patterns = [tuple(bucket(math.ceil(longest * part)) for part in s[::pair]) for s in _SHARES]
  count = len(patterns[0])
  needed = [int(max(lengths[rows * i // count :], default=0)) for i in range(count)]
  fitting = [shape for shape in patterns if all(map(operator.ge, shape, needed))]
  return [*sorted(fitting, key=sum), (longest,)]


def write(
  network: nn.Module,
  params: Params,
  input_tokens_NxL: Int[np.ndarray, "N L"],
  *,
  sampler: Sampler,
  max_length: int,
  samples: int = 1,
  rng: Key[jax.Array, ""] | None = None,
  row_ids_N: Int[np.ndarray, " N"] | None = None,
  batch_size: int = 64,
  lengths: Sequence[int] = (),
  partitioner: Partitioner | None = None,
  progress: Callable[[int, int], object] | None = None,
) -> Decoded:
  """Writes `samples` texts for each of any number of inputs.

  Args:
    network: see `decode.decode`.
    params: unboxed, in the partitioner's shardings.
    input_tokens_NxL: padded at the end with `network.pad_id`.
    sampler: how each token is chosen.
    max_length: T, most tokens of a text, its end included.
    samples: S, texts for each input.
    rng: the seed; needed for draws.
    row_ids_N: what tells inputs apart; by default their places.
    batch_size: inputs decoded together.
    lengths: the lengths that batches may have; by default `buckets(L)`. L is always one of them.
    partitioner: the mesh, whose batch axis must divide `batch_size`.
    progress: called now and then with how many more inputs are done and how many more tokens were
      written.

  Returns:
    texts in the order of the inputs.

  Raises:
    InputError: see `decode.decode`.
  """
  decode_lib.check(sampler, max_length=max_length, samples=samples, seeded=rng is not None)
  N, L = input_tokens_NxL.shape
  pad_id = getattr(network, "pad_id", sampler.pad_id)
  ids_N = np.arange(N, dtype=np.int32) if row_ids_N is None else row_ids_N
  real_NxL = input_tokens_NxL != pad_id
  lengths_N = np.max(np.where(real_NxL, np.arange(1, L + 1), 0), axis=1, initial=0)
  sizes = sorted({length for length in lengths or buckets(L) if 0 < length < L} | {L})
  shards = 1
  if partitioner is not None:
    partitioner.rows(batch_size)  # refuses what cannot be split
    shards = partitioner.shards(batch_size)
  found = Decoded(
    np.full((N, samples, max_length), sampler.pad_id, np.int32),
    np.zeros((N, samples), np.float32),
    np.zeros((N, samples), np.int32),
  )
  mixed = hasattr(network, "join")
  for batch in batches(lengths_N, size=batch_size, buckets=sizes, shards=shards, mixed=mixed):
    ids_B = np.zeros(batch.rows, np.int32)
    ids_B[: len(batch.places)] = ids_N[batch.places]
    parts = _parts(batch, input_tokens_NxL, pad_id, shards)
    inputs: dict[str, Any] = {"ids": ids_B} | {str(i): part for i, part in enumerate(parts)}
    if partitioner is not None:
      inputs = {
        name: partitioner.put({name: array[partitioner.rows(len(array))]}, len(array))[name]
        for name, array in inputs.items()
      }
    with partitioner.active() if partitioner is not None else contextlib.nullcontext():
      decoded = decode_lib.decode(
        network,
        params,
        [inputs[str(i)] for i in range(len(parts))],
        sampler=sampler,
        max_length=max_length,
        samples=samples,
        rng=rng,
        row_ids_B=inputs["ids"],
        progress=functools.partial(progress, 0) if progress else None,
      )
    for whole, part in zip(found, decoded, strict=True):
      whole[batch.places] = part[: len(batch.places)]
    if progress:
      progress(len(batch.places), 0)
  return found


def read_together(rows: int, length: int, shards: int) -> int:
  """How many of some inputs of a length are read at a time."""
  while rows % (2 * shards) == 0 and rows * length > _READ * shards:
    rows //= 2
  return rows


def _parts(
  batch: Batch, input_tokens_NxL: np.ndarray, pad_id: int, shards: int
) -> list[Int[np.ndarray, "_B _L"]]:
  """A batch's rows at their lengths, cut into what is read at a time."""
  parts = []
  share = batch.rows // len(batch.lengths)
  for quarter, length in enumerate(batch.lengths):
    rows = read_together(share, length, shards)
    for start in range(quarter * share, (quarter + 1) * share, rows):
      places = batch.places[start : start + rows]
      part_BxL = np.full((rows, length), pad_id, np.int32)
      part_BxL[: len(places)] = input_tokens_NxL[places, :length]
      parts.append(part_BxL)
  return parts
