"""Searches an index whose arrays were changed at random, its checksums passed over on purpose.

A program of its own, because what it looks for is a crash: `fuzz_kernels.py INDEX SEED ROUNDS`.
With SANITIZE=1 the kernels are compiled with the sanitizers (their runtime has to be preloaded).
"""

import dataclasses
import functools
import os
import sys
import warnings

import numpy as np

from kard_jax.core.files import InputError
from kard_jax.retrieval import bm25, native, search_cpu
from kard_jax.retrieval import index as index_lib

QUERIES = [
  "c0 c1 c2 c3 c4 c5 c6 c7 c8 c9 c10 c11 c12 c13 c14 c15 c16 c17 c18 w1 w2",
  "w1 w2 w3 w4 w5 w6 w7 wide",
  "c5 wide",
  "unknown",
]


def changed(array, rng):
  """A copy with some bytes changed; on the heap, where reading past the end is noticed."""
  data = np.array(array)
  flat = data.view(np.uint8)
  where = rng.integers(len(flat), size=rng.choice([1, 4, 64]))
  flat[where] = rng.integers(256, size=len(where))
  return data


def changed_field(chunks, rng):
  """Chunks of which one field has extreme values."""
  data = np.array(chunks)
  name = rng.choice(data.dtype.names)
  where = rng.integers(len(data), size=max(1, len(data) // 4))
  limits = np.iinfo(data.dtype[name])
  data[name][where] = rng.choice([limits.max, limits.max - 1, 0, 1, limits.max // 2], len(where))
  return data


def damaged(index, rng):
  segment = index.segments[0]
  heap = {
    name: np.array(getattr(segment, name))
    for name in ("data", "chunks", "term_chunks", "lengths", "block_data", "block_passages")
  }
  name = rng.choice(["data", "data", "chunks", "chunks", "term_chunks", "lengths"])
  change = changed_field if name == "chunks" and rng.random() < 0.6 else changed
  heap[name] = change(heap[name], rng)
  return dataclasses.replace(index, segments=(dataclasses.replace(segment, **heap),), verified=True)


def search(index, k):
  encoded = index.encoder(QUERIES)
  weights = index.scoring.weights(
    index.scoring.idf(encoded.frequency), encoded.counts, encoded.ends
  )
  searcher = search_cpu.searcher(index)
  encode = functools.partial(bm25._encode, index, QUERIES)
  ids, _ = searcher.top_k(encode, len(QUERIES), k, 1)
  wanted = np.random.default_rng(0).integers(-1, len(index), (len(QUERIES), 400))
  searcher.rescore(encoded, *weights, wanted.astype(np.int32), 1)
  search_cpu.expand(index, 0, 0, len(index.segments[0].terms), 0, len(index))
  return ids


def main(folder, seed, rounds):
  if os.environ.get("SANITIZE"):
    native._FLAGS = (
      # Absurd weights overflow; that sums then wrap is no harm.
      *native._FLAGS, "-g", "-O1", "-fsanitize=address,undefined", "-fwrapv",
      *os.environ.get("MORE_FLAGS", "").split(),
    )  # fmt: skip
  warnings.simplefilter("ignore", RuntimeWarning)  # lengths and counts may be absurd
  index = index_lib.open(folder)
  assert search_cpu.available()
  search_cpu._RESIDENT = -1  # the kernels get these very arrays, with nothing behind their ends
  expected = search(index, 50)
  refused = different = 0
  for number in range(int(rounds)):
    rng = np.random.default_rng([int(seed), number])
    search_cpu._RESIDENT = -1 if number % 2 else 1 << 30  # by turns: a copy with coded lists
    try:
      different += not np.array_equal(
        search(damaged(index, rng), int(rng.choice([1, 50]))), expected
      )
    except InputError as error:
      if "damaged" not in str(error) or folder not in str(error):
        raise
      refused += 1
  print(f"survived {rounds}: {refused} refused, {different} other answers")


if __name__ == "__main__":
  main(*sys.argv[1:])
