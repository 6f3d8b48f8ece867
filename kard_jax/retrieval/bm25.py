"""BM25 search: the best passages for a query, and scores of given passages (section 3.2).

Two ways to the same numbers, to the last bit: compiled kernels on the processor's cores, and XLA on
a mesh of devices (or on a processor without a compiler). Both add whole numbers, so the order of
adding does not matter. Both are exact: every passage is taken into account.

JAX takes a second to import, so it is imported when there is something for it to do: on a machine
without accelerators, a search needs NumPy and the kernels alone.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int, Int32

from kard_jax.retrieval import search_cpu
from kard_jax.retrieval.index import Index

if TYPE_CHECKING:
  from jax.sharding import Mesh
else:
  Mesh = Any

_BATCH = 4096  # queries at a time: bounds the memory of what is kept for each


class Hits(NamedTuple):
  """The best passages of each query, best first; NumPy arrays.

  Attributes:
    ids_BxK: int32, positions of passages; -1 where fewer than K share a term with the query.
    scores_BxK: float32, positive; 0 where the position is -1.
  """

  ids_BxK: Int32[np.ndarray, "B K"]
  scores_BxK: Float32[np.ndarray, "B K"]


def top_k(
  index: Index,
  queries: Sequence[str],
  k: int,
  *,
  mesh: Mesh | None = None,
  threads: int | None = None,
) -> Hits:
  """The k best passages of each query by BM25 (exact, over all passages).

  A term that occurs twice in a query counts twice. Passages of equal float32 scores stand in their
  order in the corpus.

  Args:
    index: from `index.open` or `index.build`.
    queries: B texts; an empty one, or one of unknown words, finds nothing.
    k: at least 1; may exceed the number of passages.
    mesh: devices to search on, the passages dealt out over all of them; None: this machine's
      processor, or where JAX has accelerators, all of those.
    threads: cores to use at most, on a processor; None: all.

  Raises:
    ValueError: k or threads is below 1.
    InputError: the index is damaged.
  """
  if k < 1:
    raise ValueError(f"k has to be at least 1, not {k}")
  cores = search_cpu.cores(threads)
  index.check()
  ids, scores = [np.zeros((0, k), np.int32)], [np.zeros((0, k), np.float32)]
  for start in range(0, len(queries), _BATCH):
    batch = queries[start : start + _BATCH]
    if _on_cpu(mesh):
      encode = functools.partial(_encode, index, batch)
      found = search_cpu.searcher(index).top_k(encode, len(batch), k, cores)
    else:
      from kard_jax.retrieval import search_xla

      found = search_xla.searcher(index, mesh).top_k(*_encode(index, batch, 0, len(batch)), k)
    ids.append(found[0])
    scores.append(found[1])
  return Hits(np.concatenate(ids), np.concatenate(scores))


def _encode(index: Index, queries: Sequence[str], low: int, high: int) -> search_cpu.Weighted:
  """The queries [low, high) as terms of the index, with weights."""
  encoded = index.encoder(queries[low:high])
  idf = index.scoring.idf(encoded.frequency)
  return encoded, *index.scoring.weights(idf, encoded.counts, encoded.ends)


def rescore(
  index: Index,
  queries: Sequence[str],
  passage_ids_BxC: Int[Any, "B C"],
  *,
  threads: int | None = None,
) -> Float32[np.ndarray, "B C"]:
  """BM25 scores of given passages under other queries: the same numbers that `top_k` would give.

  Nothing is searched: each term is looked up for each passage. On the host, whatever the devices.

  Args:
    index: from `index.open` or `index.build`.
    queries: B texts.
    passage_ids_BxC: positions of passages, C for each query; -1 for none.
    threads: cores to use at most; None: all.

  Returns:
    Scores; 0.0 where no term is shared, and where the position is -1.

  Raises:
    ValueError: a position is out of range, there is not one row for each query, or threads is
      below 1.
    InputError: the index is damaged.
  """
  wanted = np.asarray(passage_ids_BxC)
  if len(wanted) != len(queries):
    raise ValueError(f"{len(queries)} queries and {len(wanted)} rows of passages")
  if wanted.size and (wanted.min() < -1 or wanted.max() >= len(index)):
    raise ValueError(f"a passage position is outside -1..{len(index) - 1}")
  cores = search_cpu.cores(threads)
  index.check()
  scores = [np.zeros((0, *wanted.shape[1:]), np.float32)]
  for start in range(0, len(queries), _BATCH):
    batch = queries[start : start + _BATCH]
    encoded, weights, units = _encode(index, batch, 0, len(batch))
    rows = wanted[start : start + _BATCH]
    if search_cpu.available():
      scores.append(search_cpu.searcher(index).rescore(encoded, weights, units, rows, cores))
    else:
      scores.append(search_cpu.rescore_numpy(index, encoded, weights, units, rows))
  return np.concatenate(scores)


def _on_cpu(mesh: Mesh | None) -> bool:
  """Whether to search by the kernels: no devices were named, and JAX has no accelerators."""
  if mesh is not None or not search_cpu.available():
    return False
  if not _may_have_accelerators():
    return True
  import jax

  return jax.default_backend() == "cpu"


@functools.cache
def _may_have_accelerators() -> bool:
  """Whether it is worth asking JAX: all but the processor comes to it by one of these ways."""
  if os.environ.get("JAX_PLATFORMS") == "cpu":
    return False
  return (
    any(os.environ.get(name) for name in ("PJRT_NAMES_AND_LIBRARY_PATHS", "TPU_LIBRARY_PATH"))
    or any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))
    or bool(importlib.metadata.entry_points(group="jax_plugins"))
  )
