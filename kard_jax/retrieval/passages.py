"""Passages: the knowledge base as numbered records on disk, read by number or by id (section 3.2).

Records are ArrayRecord, so that one of millions is read without the others. A passage's *position*,
its number in the corpus, is what index and reranker pass around; its id is what files name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from array_record.python import array_record_module

from kard_jax.core import files
from kard_jax.retrieval import sealed, strings

KIND = "kard_jax passages"
VERSION = 1
REMEDY = "write the passages again with launch/index.py"

# Sixteen records are compressed together: half the size of one by one, and a random read unpacks
# only a few kilobytes.
_WRITER = "group_size:16"
_READER = "readahead_buffer_size:0,max_parallelism:0"  # for random access
_SCAN = 1024  # records read at once when all are wanted


@dataclasses.dataclass(frozen=True)
class Passage:
  """One passage of the knowledge base.

  Attributes:
    id: unique in the corpus.
    title: of the article or chapter; may be empty.
    text: never empty.
  """

  id: str
  title: str
  text: str

  def record(self) -> bytes:
    """The bytes that are stored, and hashed: JSON with keys in a fixed order."""
    row = {"id": self.id, "title": self.title, "text": self.text}
    return json.dumps(row, ensure_ascii=False).encode()


class CorpusHash:
  """SHA-256 over passages in order: what an index keeps, to know its passages again."""

  def __init__(self) -> None:
    self._digest = hashlib.sha256()

  def add(self, passage: Passage) -> None:
    """Takes the next passage."""
    self._digest.update(passage.record() + b"\n")

  def hexdigest(self) -> str:
    """The hash of the passages so far."""
    return self._digest.hexdigest()


def read(path: files.PathLike) -> Iterator[Passage]:
  """Yields the passages of a JSON-lines file: `{"id", "title", "text"}`, the title may be left out.

  Args:
    path: `.jsonl` or `.jsonl.gz`; other fields of a row are passed over.

  Raises:
    InputError: names file and line: no passage at all, a field missing, empty or of a wrong type, a
      repeated id, text that is not valid Unicode.
  """
  seen: dict[str, int] = {}
  for line, row in files.read_jsonl(path):
    where = f"{path}:{line}"
    for field in ("id", "text"):
      if field not in row:
        raise files.InputError(f"{where}: the field {field!r} is missing")
    title = row.get("title")
    fields = {"id": row["id"], "title": "" if title is None else title, "text": row["text"]}
    _validate(fields, where)
    passage = Passage(**fields)
    if passage.id in seen:
      raise files.InputError(
        f"{where}: the id {passage.id!r} stands in line {seen[passage.id]} already"
      )
    seen[passage.id] = line
    yield passage
  if not seen:
    raise files.InputError(f"{path}: no passages in this file")


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
  if shard_size < 1:
    raise files.InputError(f"shard_size: at least 1, not {shard_size}")
  ids: list[str] = []
  corpus = CorpusHash()
  with files.atomic(sealed.local(directory)) as temporary:
    folder = sealed.local(temporary)
    folder.mkdir()
    writer = None
    try:
      for number, passage in enumerate(passages):
        _validate(dataclasses.asdict(passage), f"passage {number}")
        if number % shard_size == 0:
          if writer is not None:
            writer.close()
          writer = array_record_module.ArrayRecordWriter(
            str(folder / f"shard-{number // shard_size:05d}"), _WRITER
          )
        assert writer is not None
        writer.write(passage.record())
        corpus.add(passage)
        ids.append(passage.id)
    finally:
      if writer is not None:
        writer.close()
    if not ids:
      raise files.InputError(f"{directory}: no passages to write")
    shards = -(-len(ids) // shard_size)
    for shard in range(shards):
      (folder / f"shard-{shard:05d}").rename(folder / _shard_name(shard, shards))
    strings.save(folder, "ids", ids, in_order=False)
    fields = {
      "count": len(ids),
      "shard_size": shard_size,
      "shards": shards,
      "corpus": corpus.hexdigest(),
    }
    sealed.seal(folder, KIND, VERSION, fields)
  return len(ids)


class Passages(Sequence[Passage]):
  """Random access to passages on disk: `len`, `[position]`, iteration, `position(id)`, `ids`.

  Args:
    directory: what `write` wrote.
    verify: compare the SHA-256 of every file (reads all of them once).

  Raises:
    InputError: the folder is missing, cut short, changed, or of another format version.
  """

  def __init__(self, directory: files.PathLike, *, verify: bool = False):
    self.directory = sealed.local(directory)
    header = sealed.check(self.directory, KIND, VERSION, remedy=REMEDY, verify=verify)
    self._count, self._shard_size = int(header["count"]), int(header["shard_size"])
    self._shards = int(header["shards"])
    self.corpus: str = header["corpus"]
    self.ids = strings.load(self.directory, "ids", in_order=False, remedy=REMEDY)
    self._readers: dict[int, array_record_module.ArrayRecordReader] = {}

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
      positions: each in [0, len).

    Raises:
      InputError: a record cannot be read: the file was damaged.
    """
    by_shard: dict[int, list[int]] = {}
    for place, position in enumerate(positions):
      if not 0 <= position < self._count:
        raise IndexError(f"passage {position} of {self._count}")
      by_shard.setdefault(int(position) // self._shard_size, []).append(place)
    found: dict[int, Passage] = {}
    for shard, places in by_shard.items():
      rows = [int(positions[place]) - shard * self._shard_size for place in places]
      for place, record in zip(places, self._records(shard, rows), strict=True):
        found[place] = record
    return [found[place] for place in range(len(positions))]

  def position(self, id: str) -> int:
    """The position of the passage with this id.

    Raises:
      InputError: there is none.
    """
    place = self.ids.find(id)
    if place is None:
      raise files.InputError(f"{self.directory}: no passage has the id {id!r}")
    return place

  def _records(self, shard: int, rows: list[int]) -> list[Passage]:
    path = self.directory / _shard_name(shard, self._shards)
    try:
      if shard not in self._readers:
        self._readers[shard] = array_record_module.ArrayRecordReader(str(path), _READER)
      return [Passage(**json.loads(record)) for record in self._readers[shard].read(rows)]
    except (RuntimeError, ValueError, TypeError) as error:
      raise files.InputError(f"{path}: a record cannot be read ({error}); {REMEDY}") from None


def _shard_name(shard: int, shards: int) -> str:
  return f"passages-{shard:05d}-of-{shards:05d}.array_record"


def _validate(fields: dict[str, Any], where: str) -> None:
  for field, value in fields.items():
    if not isinstance(value, str):
      raise files.InputError(f"{where}: {field!r} has to be a string, not {value!r}")
    if field != "title" and not value.strip():
      raise files.InputError(f"{where}: {field!r} is empty")
    try:
      value.encode()
    except UnicodeEncodeError as error:
      raise files.InputError(f"{where}: {field!r} is not valid Unicode ({error.reason})") from None
