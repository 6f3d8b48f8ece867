"""A segment: the arrays of an index over some passages in a row, memory-mapped.

Blocks' data lie one after another as they were made; only their dictionaries are merged, into one
sorted table of terms with a *directory* of chunks: where each term's postings lie in each block. So
nothing here depends on the rest of the corpus: segments are added, and put together, without
touching a posting. Scores are made of term frequencies, lengths and the whole index's counts.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import heapq
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kard_jax.core import files
from kard_jax.retrieval import native, postings, sealed, strings
from kard_jax.retrieval.blocks import Block

KIND = "kard_jax bm25 segment"
BLOCK_KIND = "kard_jax bm25 block"
VERSION = 2
REMEDY = "build the index again with launch/index.py"

_ROOM = 1 << 18  # terms merged at a time
_COPY = 1 << 24  # bytes copied at a time


@dataclasses.dataclass(frozen=True, eq=False)
class Segment:
  """Arrays of one segment: V terms, D chunks, K blocks, N passages.

  Attributes:
    folder: where it lies.
    first: the number of its first passage in the index.
    header: counts, sizes and checksums.
    terms: the V terms, sorted.
    term_chunks: uint32 [V + 1], where each term's chunks begin.
    chunks: CHUNK [D], by term, then by block.
    data: uint8, the postings of all blocks.
    block_data: int64 [K + 1], where each block's bytes begin.
    block_passages: int64 [K + 1], where each block's passages begin, from 0 in the segment.
    lengths: int32 [N], terms of each passage, repeated ones too.
  """

  folder: Path
  first: int
  header: dict[str, Any]
  terms: strings.Strings
  term_chunks: np.ndarray
  chunks: np.ndarray
  data: np.ndarray
  block_data: np.ndarray
  block_passages: np.ndarray
  lengths: np.ndarray

  def __len__(self) -> int:
    """N, the number of passages."""
    return int(self.header["passages"])

  def postings(self, term: int) -> tuple[np.ndarray, np.ndarray]:
    """The passages (int64, ascending, numbers in the segment) that have a term, and how often."""
    found = [
      (passages + self.block_passages[chunk["block"]], tfs)
      for chunk in self.chunks[self.term_chunks[term] : self.term_chunks[term + 1]]
      for passages, tfs in [postings.decode(chunk, self.data[self.block_data[chunk["block"]] :])]
    ]
    if not found:
      return np.zeros(0, np.int64), np.zeros(0, np.int64)
    return (
      np.concatenate([passages for passages, _ in found]),
      np.concatenate([tfs for _, tfs in found]).astype(np.int64),
    )


def store_block(block: Block, folder: Path) -> None:
  """Writes a block as a sealed folder, whole or not at all."""
  with files.atomic(folder) as temporary:
    path = sealed.local(temporary)
    path.mkdir()
    np.save(path / "terms.npy", block.terms)
    np.save(path / "offsets.npy", block.offsets)
    np.save(path / "chunks.npy", block.chunks)
    np.save(path / "data.npy", block.data)
    np.save(path / "lengths.npy", block.lengths)
    sealed.seal(path, BLOCK_KIND, VERSION, {"passages": len(block.lengths)})


def stored_passages(folder: Path) -> int | None:
  """How many passages a stored block has, or None when it is not there or not whole."""
  try:
    header = sealed.check(folder, BLOCK_KIND, VERSION, remedy="", verify=True)
  except files.InputError:
    return None
  return int(header["passages"])


def write(folder: Path, blocks: Sequence[Path], sources: Sequence[Segment] = ()) -> None:
  """Makes a segment of stored blocks, or of segments, in order.

  Args:
    folder: the folder to make; not there yet.
    blocks: what `store_block` wrote.
    sources: segments to put together instead.
  """
  folder.mkdir()
  parts = [_of_block(path) for path in blocks] + [_of_segment(segment) for segment in sources]
  terms, chunks, count = _write_dictionary(folder, parts)
  with sealed.ArrayWriter(folder / "lengths.npy", np.int32) as lengths:
    for part in parts:
      lengths.append(part.lengths)
  with sealed.ArrayWriter(folder / "data.npy", np.uint8) as data:
    for part in parts:
      for start in range(0, len(part.data), _COPY):
        data.append(part.data[start : start + _COPY])
        sealed.let_go(part.data)
  for name in ("block_data", "block_passages"):
    starts = [np.diff(getattr(part, name)) for part in parts]
    np.save(folder / f"{name}.npy", np.cumsum(np.concatenate([np.zeros(1, np.int64), *starts])))
  lengths_all = np.load(folder / "lengths.npy", mmap_mode="r")
  fields = {
    "passages": len(lengths_all),
    "with_terms": int(np.count_nonzero(lengths_all)),
    "total_length": int(lengths_all.sum(dtype=np.int64)),
    "terms": terms,
    "blocks": len(np.load(folder / "block_data.npy")) - 1,
    "chunks": chunks,
    "postings": count,
  }
  sealed.seal(folder, KIND, VERSION, fields)


def open(folder: Path, first: int, *, verify: bool) -> Segment:
  """Opens a segment, memory-mapped.

  Raises:
    InputError: a file is missing, cut short or changed, or of another version.
  """
  header = sealed.check(folder, KIND, VERSION, remedy=REMEDY, verify=verify)
  array = lambda name, dtype: sealed.array(folder, name, dtype, remedy=REMEDY)
  segment = Segment(
    folder=folder,
    first=first,
    header=header,
    terms=strings.load(folder, "terms", in_order=True, remedy=REMEDY, offsets=np.uint32),
    term_chunks=array("term_chunks", np.uint32),
    chunks=array("chunks", postings.CHUNK),
    data=array("data", np.uint8),
    block_data=array("block_data", np.int64),
    block_passages=array("block_passages", np.int64),
    lengths=array("lengths", np.int32),
  )
  sizes = np.diff(segment.block_passages)
  whole = (
    len(segment.terms) == len(segment.term_chunks) - 1 == header["terms"]
    and len(segment.chunks) == header["chunks"]
    and len(segment.lengths) == header["passages"]
    and len(segment.block_data) == len(segment.block_passages) == header["blocks"] + 1
    and segment.block_data[0] == segment.block_passages[0] == 0
    and segment.block_passages[-1] == header["passages"]
    and len(segment.data) == segment.block_data[-1]
    and bool((np.diff(segment.block_data) >= 0).all())
    and bool((sizes >= 0).all() and (sizes <= postings.BLOCK).all())
  )
  if not whole:
    raise files.InputError(f"{folder}: its arrays do not fit one another; {REMEDY}")
  return segment


@dataclasses.dataclass(frozen=True)
class _Part:
  """A block or a segment, as a source of another segment."""

  terms: np.ndarray
  offsets: np.ndarray
  chunks: np.ndarray
  term_chunks: np.ndarray | None  # None: one chunk a term
  data: np.ndarray
  lengths: np.ndarray
  block_data: np.ndarray
  block_passages: np.ndarray


def _of_block(folder: Path) -> _Part:
  load = lambda name: np.load(folder / f"{name}.npy", mmap_mode="r")
  data, lengths = load("data"), load("lengths")
  return _Part(
    terms=load("terms"),
    offsets=load("offsets"),
    chunks=load("chunks"),
    term_chunks=None,
    data=data,
    lengths=lengths,
    block_data=np.array([0, len(data)], np.int64),
    block_passages=np.array([0, len(lengths)], np.int64),
  )


def _of_segment(segment: Segment) -> _Part:
  terms, offsets = segment.terms.arrays()
  return _Part(
    terms=terms,
    offsets=offsets,
    chunks=segment.chunks,
    term_chunks=segment.term_chunks,
    data=segment.data[: segment.block_data[-1]],
    lengths=segment.lengths,
    block_data=segment.block_data,
    block_passages=segment.block_passages,
  )


def _write_dictionary(folder: Path, parts: Sequence[_Part]) -> tuple[int, int, int]:
  """Merges the parts' terms and directories; memory is that of some terms at a time.

  Returns:
    How many terms, chunks and postings there are.
  """
  if sum(len(part.block_data) - 1 for part in parts) > 1 << 16:
    raise files.InputError(
      f"{folder}: a segment holds at most 65,536 blocks (up to 4.29 billion passages)"
    )
  merged = _merge_native(parts) if native.library() is not None else _merge_python(parts)
  with (
    sealed.ArrayWriter(folder / "terms_data.npy", np.uint8) as data,
    sealed.ArrayWriter(folder / "terms_offsets.npy", np.uint32) as offsets,
    sealed.ArrayWriter(folder / "term_chunks.npy", np.uint32) as term_chunks,
    sealed.ArrayWriter(folder / "chunks.npy", postings.CHUNK) as chunks,
  ):
    offsets.append(np.zeros(1, np.uint32))
    term_chunks.append(np.zeros(1, np.uint32))
    bytes_so_far = chunks_so_far = terms = count = 0
    for term_bytes, sizes, counts, records in merged:
      data.append(term_bytes)
      offsets.append(bytes_so_far + np.cumsum(sizes))
      term_chunks.append(chunks_so_far + np.cumsum(counts))
      chunks.append(records)
      bytes_so_far += len(term_bytes)
      chunks_so_far += len(records)
      terms += len(sizes)
      count += int(records["last"].sum(dtype=np.int64)) + len(records)
      for part in parts:
        for array in (part.terms, part.offsets, part.chunks):
          sealed.let_go(array)
    if max(bytes_so_far, chunks_so_far) >= 1 << 32:
      raise files.InputError(
        f"{folder}: too many terms for one segment; index a part of the passages, then --add the"
        " rest"
      )
  return terms, chunks_so_far, count


_Merged = Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]


def _merge_native(parts: Sequence[_Part]) -> _Merged:
  library = _library()
  blocks = np.cumsum([0] + [len(part.block_data) - 1 for part in parts])
  arrays = [
    [
      np.ascontiguousarray(part.terms),
      np.ascontiguousarray(part.offsets, np.int64),
      np.ascontiguousarray(part.chunks),
    ]
    for part in parts
  ]
  term_chunks = [
    None if part.term_chunks is None else np.ascontiguousarray(part.term_chunks, np.int64)
    for part in parts
  ]
  pointers = [
    (ctypes.c_void_p * max(1, len(parts)))(*[row[i].ctypes.data for row in arrays])
    for i in range(3)
  ]
  ranges = (ctypes.c_void_p * max(1, len(parts)))(
    *[None if array is None else array.ctypes.data for array in term_chunks]
  )
  counts = np.array([len(part.offsets) - 1 for part in parts], np.int64)
  first = np.ascontiguousarray(blocks[:-1], np.int64)
  handle = library.kj_merge_new(
    *pointers, ranges, counts.ctypes.data, first.ctypes.data, int(blocks[-1]), len(parts)
  )
  if not handle:
    raise MemoryError
  try:
    longest = max((int(np.diff(part.offsets).max(initial=0)) for part in parts), default=0)
    most = int(blocks[-1])
    room = np.array([_ROOM, max(longest, _ROOM * 16), max(most, _ROOM * 4)], np.int64)
    while True:
      data, sizes = np.empty(room[1], np.uint8), np.empty(room[0], np.int64)
      each, chunks = np.empty(room[0], np.int64), np.empty(room[2], postings.CHUNK)
      used = np.zeros(3, np.int64)
      library.kj_merge_next(
        handle, *[array.ctypes.data for array in (room, data, sizes, each, chunks, used)]
      )
      if not used[0]:
        return
      yield data[: used[1]], sizes[: used[0]], each[: used[0]], chunks[: used[2]]
  finally:
    library.kj_merge_free(handle)


def _merge_python(parts: Sequence[_Part]) -> _Merged:
  """The same without a compiler."""

  def walk(number: int, part: _Part, first: int) -> Iterator[tuple[bytes, int, np.ndarray]]:
    for term in range(len(part.offsets) - 1):
      low, high = term, term + 1
      if part.term_chunks is not None:
        low, high = int(part.term_chunks[term]), int(part.term_chunks[term + 1])
      chunks = np.array(part.chunks[low:high])
      chunks["block"] += first
      yield part.terms[part.offsets[term] : part.offsets[term + 1]].tobytes(), number, chunks

  blocks = np.cumsum([0] + [len(part.block_data) - 1 for part in parts])
  rows = heapq.merge(
    *(walk(number, part, int(blocks[number])) for number, part in enumerate(parts)),
    key=lambda row: row[:2],
  )
  groups = itertools.groupby(rows, key=lambda row: row[0])
  merged = ((term, np.concatenate([chunks for *_, chunks in group])) for term, group in groups)
  while batch := list(itertools.islice(merged, _ROOM)):
    yield (
      np.frombuffer(b"".join(term for term, _ in batch), np.uint8),
      np.array([len(term) for term, _ in batch], np.int64),
      np.array([len(chunks) for _, chunks in batch], np.int64),
      np.concatenate([chunks for _, chunks in batch]),
    )


@functools.cache
def _library() -> ctypes.CDLL:
  """The kernels with the types of those used here."""
  pointer, number = ctypes.c_void_p, ctypes.c_int64
  functions: list[tuple[str, Any, list[Any]]] = [
    ("new", pointer, [pointer] * 6 + [number] * 2),
    ("free", None, [pointer]),
    ("next", number, [pointer] * 7),
  ]
  library = native.declare("kj_merge_", functions)
  assert library is not None
  return library
