"""Passage vectors computed once and kept on disk: late interaction then encodes a question alone.

A store is a folder: `vectors.bin`, one vector of P numbers for each token of each passage, in the
order of the passages; `offsets.npy`, where each passage begins; `header.json`, written last, with
shapes, element type, SHA-256 of both files, and what the vectors were made of. It is read by
memory-map: only candidates' pages are touched.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import json
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import ml_dtypes
import numpy as np

from kard_jax.core import files
from kard_jax.core.files import InputError, PathLike
from kard_jax.core.objective import Params
from kard_jax.core.partitioning import Partitioner
from kard_jax.reranker import score
from kard_jax.reranker.network import LateInteraction, TokenVectors

FORMAT = 1
DTYPES = {
  "float32": np.dtype(np.float32),
  "float16": np.dtype(np.float16),
  "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
_HEADER, _VECTORS, _OFFSETS = "header.json", "vectors.bin", "offsets.npy"
_AT_ONCE = 4096  # passages encoded together: sorted by length among themselves
_CANDIDATES = 16  # lists are padded to a multiple of this
_UNDER_WAY = 3  # questions whose candidates' vectors are in memory
_QUESTIONS = 1024  # encoded together, sorted by length among themselves


def fingerprint(params: Params) -> str:
  """The SHA-256 of parameters, by which a store knows its network's."""
  digest = hashlib.sha256()
  for path, leaf in jax.tree.leaves_with_path(params):
    digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}\0".encode())
    digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()


def write(
  folder: PathLike,
  network: LateInteraction,
  params: Params,
  passage_tokens: Iterable[score.Tokens],
  *,
  dtype: str = "float16",
  corpus: str = "",
  partitioner: Partitioner | None = None,
  tokens_per_call: int | None = None,
  progress: Callable[[int], None] = lambda count: None,
) -> int:
  """Encodes passages and writes a store, whole or not at all.

  Args:
    folder: local; is replaced.
    network: encodes.
    params: its parameters, unboxed.
    passage_tokens: token ids of each passage without padding, read as they are needed.
    dtype: "float16", "bfloat16" or "float32". Float16 keeps more digits, bfloat16 more range; unit
      vectors want float16.
    corpus: a name of the passages (a hash), to be compared when the store is used.
    partitioner: mesh and rules; None: the first device alone.
    tokens_per_call: see `score.rerank_scores`.
    progress: called with the number of passages done since the last call.

  Returns:
    How many passages there were.

  Raises:
    InputError: no such element type, or a number is too large for it.
  """
  if dtype not in DTYPES:
    raise InputError(f"dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
  run = score.Runner(network, params, tokens_per_call, partitioner)
  sizes, digest = [0], hashlib.sha256()
  with files.atomic(folder) as place:
    temporary = pathlib.Path(place)
    temporary.mkdir(parents=True)
    with (temporary / _VECTORS).open("wb") as file, run.active():
      for block in _blocks(passage_tokens):
        for vectors in _encoded(run, block):
          with np.errstate(over="ignore"):
            cast = vectors.astype(DTYPES[dtype])
          if not np.isfinite(cast).all():
            raise InputError(f"dtype {dtype!r}: passage {len(sizes) - 1} has vectors beyond it")
          data = cast.tobytes()
          digest.update(data)
          file.write(data)
          sizes.append(len(cast))
        progress(len(block))
    np.save(temporary / _OFFSETS, np.cumsum(sizes, dtype=np.int64), allow_pickle=False)
    header = {
      "format": FORMAT,
      "passages": len(sizes) - 1,
      "tokens": int(sum(sizes)),
      "width": network.width,
      "dtype": dtype,
      "corpus": corpus,
      "params": fingerprint(params),
      "sha256": {_VECTORS: digest.hexdigest(), _OFFSETS: files.sha256(temporary / _OFFSETS)},
    }
    (temporary / _HEADER).write_text(json.dumps(header, indent=2) + "\n")
  return len(sizes) - 1


class Store:
  """A store on disk.

  Attributes:
    header: see the module.
    offsets: [N + 1] where each passage's vectors begin.
    vectors: [tokens, P] memory-mapped.
  """

  def __init__(self, folder: PathLike, *, verify: bool = False):
    """Opens a store.

    Args:
      folder: that `write` wrote.
      verify: compare the files' SHA-256 (reads all of them).

    Raises:
      InputError: it is none, is not whole, or has changed.
    """
    self.folder = pathlib.Path(folder)
    self.header = _header(self.folder / _HEADER)
    paths = {name: self.folder / name for name in (_VECTORS, _OFFSETS)}
    for name, path in paths.items():
      if not path.is_file() or (verify and files.sha256(path) != self.header["sha256"][name]):
        raise InputError(f"{path}: is missing or has changed; make the store again")
    kind, width = DTYPES[self.header["dtype"]], self.header["width"]
    self.offsets = np.load(paths[_OFFSETS], allow_pickle=False)
    size = self.header["tokens"] * width * kind.itemsize
    if paths[_VECTORS].stat().st_size != size or len(self) + 1 != len(self.offsets):
      raise InputError(f"{paths[_VECTORS]}: is not whole; make the store again")
    shape = (self.header["tokens"], width)
    empty = not self.header["tokens"]
    self.vectors = (
      np.zeros(shape, kind) if empty else np.memmap(paths[_VECTORS], kind, "r", shape=shape)
    )

  def __len__(self) -> int:
    return self.header["passages"]

  def fits(self, params: Params, corpus: str = "") -> bool:
    """Whether the store is of these parameters and passages."""
    return self.header["params"] == fingerprint(params) and self.header["corpus"] == corpus

  def check(self, params: Params, corpus: str = "") -> None:
    """Compares what the store was made of with what it is to be used with.

    Raises:
      InputError: it is of other parameters or passages.
    """
    if self.header["params"] != fingerprint(params):
      raise InputError(f"{self.folder}: vectors of another reranker's parameters; make it again")
    if self.header["corpus"] != corpus:
      raise InputError(f"{self.folder}: vectors of other passages; make it again")

  def rerank_scores(
    self,
    network: LateInteraction,
    params: Params,
    query_tokens: Sequence[score.Tokens],
    positions: Sequence[score.Tokens],
    *,
    partitioner: Partitioner | None = None,
    progress: score.Progress = lambda count: None,
  ) -> list[np.ndarray]:
    """Scores of each question's candidates, as `score.rerank_scores` gives them.

    Args:
      network: that made the store.
      params: its parameters.
      query_tokens: of each question, without padding.
      positions: for each question, which passages; lists may differ in length and may be empty.
      partitioner: the mesh that candidates are dealt out over; None: the first device alone.
      progress: called with how many candidates have been given to the device since the last call.

    Raises:
      ValueError: as many lists as questions are needed, or a position is out of range.
    """
    if len(query_tokens) != len(positions):
      raise ValueError(f"{len(query_tokens)} questions, but {len(positions)} lists")
    queries = [np.asarray(tokens, np.int32) for tokens in query_tokens]
    lists = [np.asarray(some, np.int64) for some in positions]
    for listed in lists:
      if len(listed) and not 0 <= listed.min() <= listed.max() < len(self):
        raise ValueError(f"a position outside of the store's {len(self)} passages")
    run = score.Runner(network, params, None, partitioner)
    results: list[Any] = []
    for start in range(0, len(queries), _QUESTIONS):
      some = slice(start, start + _QUESTIONS)
      asked = [
        query for query, listed in zip(queries[some], lists[some], strict=True) if len(listed)
      ]
      encoded = _encoded_questions(run, asked)
      for query, listed in zip(queries[some], lists[some], strict=True):
        results.append(self._score(run, encoded[query.tobytes()], listed) if len(listed) else None)
        if len(results) > _UNDER_WAY and results[-_UNDER_WAY] is not None:  # frees its vectors
          results[-_UNDER_WAY] = np.asarray(results[-_UNDER_WAY])
        progress(len(listed))
    return [
      np.zeros(0, np.float32) if result is None else np.asarray(result)[: len(listed)]
      for result, listed in zip(results, lists, strict=True)
    ]

  def _score(self, run: score.Runner, query: TokenVectors, listed: np.ndarray) -> Any:
    """Scores of a question's candidates [C], and of as many more as it takes to deal them out."""
    starts, ends = self.offsets[listed], self.offsets[listed + 1]
    step = math.lcm(_CANDIDATES, score.devices(run.partitioner) if run.partitioner else 1)
    count = -(-len(listed) // step) * step
    length = score.padded(int((ends - starts).max()))
    vectors_CxMxP = np.zeros((count, length, self.vectors.shape[1]), self.vectors.dtype)
    mask_CxM = np.zeros((count, length), bool)
    for row, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
      vectors_CxMxP[row, : end - start] = self.vectors[start:end]
      mask_CxM[row, : end - start] = True
    passages = TokenVectors(vectors_CxMxP, mask_CxM)  # type: ignore[arg-type]
    if run.partitioner is not None:
      # the candidates alone are dealt out: one question cannot be, so its axes have no names here
      passages = jax.device_put(passages, run.partitioner.batch_sharding)
      query = jax.device_put(query, run.partitioner.replicated)
    return _compare(run.network, run.params, query, passages)


@functools.partial(jax.jit, static_argnames="network")
def _compare(
  network: nn.Module, params: Params, query: TokenVectors, passages: TokenVectors
) -> jax.Array:
  wide = passages.vectors.astype(query.vectors.dtype)
  lists = TokenVectors(wide[None], passages.mask[None])
  query = jax.tree.map(lambda x: x[None], query)
  scores_1xC: Any = network.apply({"params": params}, query, lists, method="compare")
  return scores_1xC[0]


def _encoded_questions(
  run: score.Runner, queries: Sequence[np.ndarray]
) -> dict[bytes, TokenVectors]:
  """Vectors and mask of each distinct question, by its tokens; those of a length together."""
  places: dict[int, list[np.ndarray]] = collections.defaultdict(list)
  for query in {query.tobytes(): query for query in queries}.values():
    places[score.padded(len(query))].append(query)
  found = {}
  ways = 1 if run.partitioner is None else score.devices(run.partitioner)
  with run.active():
    for length_L, alike in sorted(places.items()):
      most = run.rows(length_L)
      for start in range(0, len(alike), most):
        part = alike[start : start + most]
        # a question that comes alone is not to wait for rows of padding; powers of two are few
        rows = min(most, ways * (1 << (-(-len(part) // ways) - 1).bit_length()))
        tokens_NxL = np.full((rows, length_L), run.network.encoder.pad_id, np.int32)
        for row, query in enumerate(part):
          tokens_NxL[row, : len(query)] = query
        vectors, mask = map(np.asarray, run.encode(tokens_NxL, "encode_query"))
        for row, query in enumerate(part):
          found[query.tobytes()] = TokenVectors(vectors[row], mask[row])  # type: ignore[arg-type]
  return found


def _blocks(passage_tokens: Iterable[score.Tokens]) -> Iterator[list[np.ndarray]]:
  block: list[np.ndarray] = []
  for tokens in passage_tokens:
    block.append(np.asarray(tokens, np.int32))
    if len(block) == _AT_ONCE:
      yield block
      block = []
  if block:
    yield block


def _encoded(run: score.Runner, block: list[np.ndarray]) -> list[np.ndarray]:
  """Vectors [M, P] of each passage of a block, in buckets of length."""
  places: dict[int, list[int]] = collections.defaultdict(list)
  for at, tokens in enumerate(block):
    places[score.padded(len(tokens))].append(at)
  found: list[Any] = [None] * len(block)
  for length_M, some in sorted(places.items()):
    rows = run.rows(length_M)
    for start in range(0, len(some), rows):
      part = some[start : start + rows]
      tokens_NxM = np.full((rows, length_M), run.network.encoder.pad_id, np.int32)
      for row, at in enumerate(part):
        tokens_NxM[row, : len(block[at])] = block[at]
      vectors_NxMxP = np.asarray(run.encode(tokens_NxM, "encode_passages").vectors, np.float32)
      for row, at in enumerate(part):
        found[at] = vectors_NxMxP[row, : len(block[at])]
  return found


def _header(path: pathlib.Path) -> dict[str, Any]:
  if not path.is_file():
    raise InputError(f"{path}: no such file; the folder is no store of passage vectors")
  try:
    header = json.loads(path.read_text(encoding="utf-8"))
    known = header["format"] == FORMAT and header["dtype"] in DTYPES
    sizes = [header[name] for name in ("passages", "tokens", "width")]
    known = known and all(isinstance(size, int) and size >= 0 for size in sizes)
    known = known and {_VECTORS, _OFFSETS} <= set(header["sha256"])
  except (ValueError, KeyError, TypeError) as error:
    raise InputError(f"{path}: not the header of a store ({error}); make it again") from None
  if not known:
    raise InputError(f"{path}: of another version of kard_jax; make the store again")
  return header
