"""Passages: the knowledge base as numbered records on disk, read by number or by id (section 3.2).

Records are ArrayRecord, so that one of millions is read without the others. A passage's *position*,
its number in the corpus, is what index and reranker pass around; its id is what files name.

A folder of passages grows by *segments*: each is a sealed folder of its own, `segment-00001/` and
so on inside the first one, renamed into place when it is complete. What was there is never
rewritten, and positions go on counting.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import shutil
import threading
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from array_record.python import array_record_module

from kard_jax.core import files
from kard_jax.retrieval import ids as ids_lib
from kard_jax.retrieval import readers, sealed, strings
from kard_jax.retrieval.record import CorpusHash, Passage, validate

KIND = "kard_jax passages"
VERSION = 1
REMEDY = "write the passages again with launch/index.py"

# Sixteen records are compressed together: half the size of one by one, and a random read unpacks
# only a few kilobytes.
_WRITER = "group_size:16"
_READER = "readahead_buffer_size:0,max_parallelism:0"  # for random access
_SCAN = 1024  # records read or written at once when all are wanted
_OPEN = 256  # shards that are open at once: well below what a process may open


def read(path: files.PathLike) -> Iterator[Passage]:
  """Yields the passages of a file: `kard_jax.retrieval.readers.open_corpus`, formats by name."""
  return readers.open_corpus(path)


def write(
  passages: Iterable[Passage], directory: files.PathLike, *, shard_size: int = 100_000
) -> int:
  """Writes passages as ArrayRecord shards and a table of ids, whole or not at all.

  Args:
    passages: the corpus, in the order that positions will count; read once, never held.
    directory: the folder to write; replaced if it exists. On a local disk.
    shard_size: records in one file, at least 1.

  Returns:
    How many passages were written.

  Raises:
    InputError: there are none, a passage is not valid, or an id stands twice.
  """
  with files.atomic(sealed.local(directory)) as temporary:
    folder = sealed.local(temporary)
    folder.mkdir()
    return _fill(folder, passages, shard_size, f"{directory}: no passages to write")


def append(
  passages: Iterable[Passage], directory: files.PathLike, *, shard_size: int = 100_000
) -> int:
  """Adds passages behind those of a folder, as a new segment, whole or not at all.

  The older files stay as they are, and whoever has the folder open goes on seeing only them. A kill
  leaves at most a `.tmp-*` folder inside, which no reader looks at.

  Args:
    passages: the new ones; read once, never held.
    directory: what `write` wrote.
    shard_size: records in one file, at least 1.

  Returns:
    How many passages were added.

  Raises:
    InputError: as `write` and `Passages`; an id stands in the folder already; or someone else
      added a segment at the same time.
  """
  old = Passages(directory)
  final = _segment_folder(old.directory, len(old.corpora))
  folder = old.directory / f".tmp-{final.name}-{uuid.uuid4().hex[:8]}"
  try:
    folder.mkdir()
    none = f"{directory}: no passages to add"
    count = _fill(folder, passages, shard_size, none, old, {"after": old.corpus})
    try:
      folder.rename(final)
    except OSError as error:
      raise files.InputError(
        f"{final}: cannot be added ({error.strerror}); did another process add passages meanwhile?"
      ) from None
  finally:
    if folder.exists():
      shutil.rmtree(folder)
  return count


def _fill(
  folder: Path,
  passages: Iterable[Passage],
  shard_size: int,
  none: str,
  old: Passages | None = None,
  more: dict[str, Any] | None = None,
) -> int:
  """Writes a segment into an empty folder and seals it."""
  if shard_size < 1:
    raise files.InputError(f"shard_size: at least 1, not {shard_size}")
  ids, corpus = ids_lib.Gathered(), CorpusHash()
  taken = None if old is None else ids_lib.Taken(old.ids)
  writer = None
  try:
    for batch in _batches(passages, _SCAN):
      for number, passage in enumerate(batch, len(ids)):
        validate(passage.id, passage.title, passage.text, f"passage {number}")
      new = [passage.id for passage in batch]
      if taken is not None and (found := taken.first(new)) is not None:
        raise files.InputError(
          f"passage {len(ids) + found[0]}: the id {new[found[0]]!r} stands in {folder.parent}"
          f" already, at {found[1]} (counted from 0)"
        )
      records = [passage.record() for passage in batch]
      for number, record in enumerate(records, len(ids)):
        if number % shard_size == 0:
          if writer is not None:
            writer.close()
          path = folder / f"shard-{number // shard_size:05d}"
          writer = array_record_module.ArrayRecordWriter(str(path), _WRITER)
        assert writer is not None
        writer.write(record)
      corpus.add_records(records)
      ids.extend(new)
  finally:
    if writer is not None:
      writer.close()
  if not len(ids):
    raise files.InputError(none)
  shards = -(-len(ids) // shard_size)
  for shard in range(shards):
    (folder / f"shard-{shard:05d}").rename(folder / _shard_name(shard, shards))
  ids.save(folder)
  fields = {
    "count": len(ids),
    "shard_size": shard_size,
    "shards": shards,
    "corpus": corpus.hexdigest(),
    **(more or {}),
  }
  sealed.seal(folder, KIND, VERSION, fields)
  return len(ids)


class Corpus(NamedTuple):
  """A segment of the corpus: what an index keeps of each, to know its passages again.

  Attributes:
    first: the position of its first passage.
    size: how many it has.
    sha256: `CorpusHash` of them, in hex.
  """

  first: int
  size: int
  sha256: str


class _Shard(NamedTuple):
  first: int  # position of its first passage
  end: int
  path: Path


class Passages(Sequence[Passage]):
  """Random access to passages on disk: `len`, `[position]`, iteration, `position(id)`, `ids`.

  All of it may be called from several threads at once.

  Args:
    directory: what `write` wrote, and `append` added to. Segments that are added later are seen
      when it is opened again.
    verify: compare the SHA-256 of every file (reads all of them once).
    segment: open this one alone, its positions counted from 0; by default all of them.

  Attributes:
    directory: the folder.
    segment: which alone is open; None: all.
    corpora: one entry a segment, in order.
    corpus: hash of the whole: the one segment's own, or that of the chain of all segments' hashes.
      So the same passages written at once and in two parts have different ones.
    ids: all ids, by position.

  Raises:
    InputError: the folder is missing, cut short, changed, or of another format version.
  """

  def __init__(
    self, directory: files.PathLike, *, verify: bool = False, segment: int | None = None
  ):
    self.directory = sealed.local(directory)
    self.segment = segment
    folders = _segments(self.directory)
    if segment is not None:
      folders = [folders[segment]]
    corpora: list[Corpus] = []
    tables: list[strings.Strings] = []
    self._shards: list[_Shard] = []
    for folder in folders:
      header = sealed.check(folder, KIND, VERSION, remedy=REMEDY, verify=verify)
      chain = _chain(corpora)
      if corpora and header.get("after") != chain:
        raise files.InputError(
          f"{folder}: it was added to other passages than those before it; {REMEDY}"
        )
      first = sum(corpus.size for corpus in corpora)
      count, size, shards = (int(header[name]) for name in ("count", "shard_size", "shards"))
      for shard in range(shards):
        end = first + min((shard + 1) * size, count)
        self._shards.append(_Shard(first + shard * size, end, folder / _shard_name(shard, shards)))
      corpora.append(Corpus(first, count, header["corpus"]))
      tables.append(strings.load(folder, "ids", in_order=False, remedy=REMEDY))
    self.corpora: tuple[Corpus, ...] = tuple(corpora)
    self.corpus: str = _chain(corpora)
    self.ids: strings.Strings | ids_lib.Joined
    self.ids = tables[0] if len(tables) == 1 else ids_lib.Joined(tables)
    self._count = corpora[-1].first + corpora[-1].size
    self._firsts = [shard.first for shard in self._shards]
    self._lock = threading.Lock()
    self._readers: dict[int, tuple[threading.Lock, Any]] = {}  # the one used last stands last

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, position):  # type: ignore[override, no-untyped-def]
    """The passage at a position (a slice gives a list)."""
    if isinstance(position, slice):
      return self.many(range(*position.indices(self._count)))
    if not -self._count <= position < self._count:
      raise IndexError(f"passage {position} of {self._count}")
    return self.many([int(position) % self._count])[0]

  def __iter__(self) -> Iterator[Passage]:
    for start in range(0, self._count, _SCAN):
      yield from self.many(range(start, min(start + _SCAN, self._count)))

  def many(self, positions: Sequence[int]) -> list[Passage]:
    """The passages at several positions, in that order: faster than one by one.

    Args:
      positions: each in [0, len). A `range` of step 1 is the fastest.

    Raises:
      InputError: a record cannot be read: the file was damaged.
    """
    if isinstance(positions, range) and positions.step == 1 and len(positions):
      if not (positions.start >= 0 and positions.stop <= self._count):
        raise IndexError(f"passages {positions.start} to {positions.stop} of {self._count}")
      found: list[Passage] = []
      for shard, rows in self._spans(positions.start, positions.stop):
        found += self._decoded(shard, rows)
      return found
    by_shard: dict[int, list[int]] = {}
    for place, position in enumerate(positions):
      if not 0 <= position < self._count:
        raise IndexError(f"passage {position} of {self._count}")
      by_shard.setdefault(bisect.bisect_right(self._firsts, position) - 1, []).append(place)
    at: dict[int, Passage] = {}
    for shard, places in by_shard.items():
      rows = [int(positions[place]) - self._firsts[shard] for place in places]
      at.update(zip(places, self._decoded(shard, rows), strict=True))
    return [at[place] for place in range(len(positions))]

  def records(self, first: int, last: int) -> list[bytes]:
    """The records of the positions [first, last): `Passage.of_record` and `CorpusHash` take them.

    Raises:
      InputError: as `many`.
    """
    if not 0 <= first <= last <= self._count:
      raise IndexError(f"passages {first} to {last} of {self._count}")
    found: list[bytes] = []
    for shard, rows in self._spans(first, last):
      found += self._records(shard, rows)
    return found

  def position(self, id: str) -> int:
    """The position of the passage with this id.

    Raises:
      InputError: there is none.
    """
    place = self.ids.find(id)
    if place is None:
      raise files.InputError(f"{self.directory}: no passage has the id {id!r}")
    return place

  def _spans(self, first: int, last: int) -> Iterator[tuple[int, list[int]]]:
    """The shards that hold the positions [first, last), with the rows in each."""
    shard = bisect.bisect_right(self._firsts, first) - 1
    while first < last:
      start, end, _ = self._shards[shard]
      yield shard, list(range(first - start, min(last, end) - start))
      first, shard = end, shard + 1

  def _decoded(self, shard: int, rows: list[int]) -> list[Passage]:
    records = self._records(shard, rows)
    try:
      return [Passage.of_record(record) for record in records]
    except (ValueError, TypeError) as error:
      raise self._damaged(shard, error) from None

  def _records(self, shard: int, rows: list[int]) -> list[bytes]:
    try:
      lock, reader = self._reader(shard)
      with lock:  # ArrayRecord does not say that a reader may be shared; one at a time is no slower
        return reader.read(rows)
    except (RuntimeError, ValueError, TypeError) as error:
      raise self._damaged(shard, error) from None

  def _reader(self, shard: int) -> tuple[threading.Lock, Any]:
    with self._lock:
      entry = self._readers.pop(shard, None)
      if entry is None:
        path = str(self._shards[shard].path)
        entry = threading.Lock(), array_record_module.ArrayRecordReader(path, _READER)
      self._readers[shard] = entry
      if len(self._readers) > _OPEN:
        del self._readers[next(iter(self._readers))]
      return entry

  def _damaged(self, shard: int, error: Exception) -> files.InputError:
    path = self._shards[shard].path
    return files.InputError(f"{path}: a record cannot be read ({error}); {REMEDY}")


def _segments(directory: Path) -> list[Path]:
  """The folders of all segments, the first being `directory` itself.

  Raises:
    InputError: one is missing between others.
  """
  found = sorted(directory.glob("segment-*")) if directory.is_dir() else []
  for number, folder in enumerate(found, 1):
    if folder != _segment_folder(directory, number):
      missing = _segment_folder(directory, number)
      raise files.InputError(f"{missing}: no such folder, but {folder.name} is there; {REMEDY}")
  return [directory, *found]


def _segment_folder(directory: Path, number: int) -> Path:
  return directory / f"segment-{number:05d}"


def _chain(corpora: Sequence[Corpus]) -> str:
  """The hash of the whole corpus, of those of its segments."""
  if len(corpora) == 1:
    return corpora[0].sha256
  return hashlib.sha256("\n".join(corpus.sha256 for corpus in corpora).encode()).hexdigest()


def _shard_name(shard: int, shards: int) -> str:
  return f"passages-{shard:05d}-of-{shards:05d}.array_record"


def _batches(items: Iterable[Passage], size: int) -> Iterator[list[Passage]]:
  iterator = iter(items)
  while batch := list(itertools.islice(iterator, size)):
    yield batch
