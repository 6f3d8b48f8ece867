"""The BM25 index on disk: segments of passages that rank as one (section 3.2).

A folder with `header.json` and a folder for each segment. What a segment holds depends on its
passages alone; how it counts depends on all of them and is worked out when the index is opened. So
passages are added as a new segment without rewriting the old ones. NumPy and the compiled kernels
only, so that an index can be built on a plain machine.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from kard_jax.core import files
from kard_jax.retrieval import builder, sealed, segment
from kard_jax.retrieval import passages as passages_lib
from kard_jax.retrieval import scoring as scoring_lib
from kard_jax.retrieval.analyzer import Analyzer
from kard_jax.retrieval.queries import Encoder
from kard_jax.retrieval.record import contents
from kard_jax.retrieval.segment import Segment

__all__ = ["Index", "add", "build", "check_corpus", "contents", "merge", "open"]

KIND = "kard_jax bm25 index"
VERSION = segment.VERSION
REMEDY = segment.REMEDY

_MOST_K1 = 1000  # beyond, what a term adds is too small a part of its weight to be kept exactly


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
  """A BM25 index, memory-mapped.

  Attributes:
    directory: where it lies.
    header: settings, counts, and the hashes of the passages of each `add`.
    analyzer: turns a query into terms as it did the passages.
    segments: in passage order.
    verified: all bytes were compared with their checksums.
  """

  directory: str
  header: dict[str, Any]
  analyzer: Analyzer
  segments: tuple[Segment, ...]
  verified: bool

  def __len__(self) -> int:
    """The number of passages."""
    return sum(map(len, self.segments))

  @property
  def corpora(self) -> tuple[tuple[int, str], ...]:
    """How many passages came at a time, and their hash (`Passages.corpora`)."""
    return tuple((int(count), digest) for count, digest in self.header["corpora"])

  @property
  def postings(self) -> int:
    """How many (term, passage) pairs there are."""
    return sum(int(part.header["postings"]) for part in self.segments)

  def size(self) -> int:
    """Bytes on disk."""
    return sum(file.stat().st_size for file in Path(self.directory).rglob("*") if file.is_file())

  @functools.cached_property
  def scoring(self) -> scoring_lib.Scoring:
    """Lengths and counts over all segments."""
    header = self.header
    return scoring_lib.make(
      self.segments, k1=header["k1"], b=header["b"], lengths=header["lengths"]
    )

  @functools.cached_property
  def encoder(self) -> Encoder:
    """Texts of queries to terms; it remembers words it has seen."""
    return Encoder(self.analyzer, self.segments)

  def check(self) -> None:
    """Compares all bytes with their checksums, once; searches do so before the first.

    Raises:
      InputError: a file changed after it was written.
    """
    if self.verified:
      return
    with _CHECK:
      if not self.verified:
        for part in self.segments:
          sealed.check(part.folder, segment.KIND, VERSION, remedy=REMEDY, verify=True)
        object.__setattr__(self, "verified", True)


_CHECK = threading.Lock()


def build(
  passages: Iterable[passages_lib.Passage],
  directory: files.PathLike,
  *,
  analyzer: Analyzer = Analyzer(),
  k1: float = 0.9,
  b: float = 0.4,
  lengths: str = "lucene",
  memory_limit: int | None = None,
  threads: int | None = None,
  progress: bool = False,
  work: files.PathLike | None = None,
  ahead: builder.Ahead | None = None,
) -> Index:
  """Indexes passages, whole or not at all.

  A build of `Passages` that was killed goes on where it was when it is called again, and ends in
  the same bytes: finished blocks wait in `work`.

  Args:
    passages: the corpus in order; `Passages` or any iterable. Read once.
    directory: the folder to write; replaced if it exists. On a local disk.
    analyzer: text to terms.
    k1: how slowly repeated terms stop counting, 0 to 1,000 (Anserini's default).
    b: how much long passages are held back, 0 to 1 (Anserini's default).
    lengths: "lucene" rounds passages' lengths as Lucene's one byte does, so that rankings agree
      with Lucene's; "exact" is BM25 by the book.
    memory_limit: bytes of resident memory to stay under; None: 2 GiB.
    threads: workers at most; None: one a core, as far as the memory limit allows.
    progress: show a progress bar on standard error.
    work: the folder where finished blocks wait, removed at the end; None: `.building-<name>`
      beside the index.
    ahead: makes blocks of stored passages before this does, see `beam_blocks`.

  Returns:
    The index, opened.

  Raises:
    InputError: there are no passages, a setting is out of range, or another process works on this
      index.
  """
  if not 0 <= k1 <= _MOST_K1:
    raise files.InputError(f"bm25: k1 has to be between 0 and {_MOST_K1}, not {k1}")
  if not 0 <= b <= 1:
    raise files.InputError(f"bm25: b has to be between 0 and 1, not {b}")
  if lengths not in scoring_lib.LENGTHS:
    raise files.InputError(
      f"bm25: lengths is one of {', '.join(scoring_lib.LENGTHS)}, not {lengths!r}"
    )
  path = sealed.local(directory)
  waiting = _work(path) if work is None else sealed.local(work)
  with builder.alone(waiting), files.atomic(path) as temporary:
    folder = sealed.local(temporary)
    folder.mkdir()
    corpus = builder.build(
      passages,
      folder / _name(0),
      waiting,
      analyzer=analyzer,
      memory_limit=builder.DEFAULT_MEMORY if memory_limit is None else memory_limit,
      threads=threads,
      progress=progress,
      ahead=ahead,
    )
    settings: dict[str, Any] = {"analyzer": analyzer.to_json(), "fields": ["title", "text"]}
    settings |= {"k1": k1, "b": b, "lengths": lengths}
    count = segment.open(folder / _name(0), 0, verify=False).header["passages"]
    corpora = [[c[1], c[2]] for c in getattr(passages, "corpora", ())] or [[count, corpus]]
    _write_header(folder, settings, [_name(0)], corpora)
  return open(directory)


def add(
  directory: files.PathLike,
  passages: Iterable[passages_lib.Passage],
  *,
  memory_limit: int | None = None,
  threads: int | None = None,
  progress: bool = False,
  ahead: builder.Ahead | None = None,
) -> Index:
  """Adds passages to an index, as a new segment behind the old ones, which are not rewritten.

  The index ranks as one built of all passages at once. Until the last moment it is the old one.

  Args:
    directory: of the index.
    passages: the new ones alone, in order.
    memory_limit: as of `build`.
    threads: as of `build`.
    progress: as of `build`.
    ahead: as of `build`.

  Returns:
    The index, opened.

  Raises:
    InputError: there are no passages, the folder is no index, or another process works on it.
  """
  path = sealed.local(directory)
  work = _work(path)
  open(directory)  # no working folder beside what is no index
  with builder.alone(work):
    index = open(directory)
    names = [part.folder.name for part in index.segments]
    name = _next_name(names)
    with files.atomic(path / name) as temporary:
      corpus = builder.build(
        passages,
        sealed.local(temporary),
        work,
        analyzer=index.analyzer,
        memory_limit=builder.DEFAULT_MEMORY if memory_limit is None else memory_limit,
        threads=threads,
        progress=progress,
        ahead=ahead,
      )
    count = segment.open(path / name, 0, verify=False).header["passages"]
    corpora = [*map(list, index.corpora), [count, corpus]]
    _write_header(path, _settings(index), [*names, name], corpora)
  return open(directory)


def merge(directory: files.PathLike) -> Index:
  """Puts all segments of an index together into one; rankings stay as they are.

  Postings are copied as they are; only the dictionaries are merged.

  Raises:
    InputError: the folder is no index, a segment is damaged, or another process works on it.
  """
  path = sealed.local(directory)
  open(directory)  # no working folder beside what is no index
  with builder.alone(_work(path)):
    index = open(directory, verify=True)
    if len(index.segments) == 1:
      return index
    names = [part.folder.name for part in index.segments]
    name = _next_name(names)
    with files.atomic(path / name) as temporary:
      segment.write(sealed.local(temporary), [], index.segments)
    _write_header(path, _settings(index), [name], [list(corpus) for corpus in index.corpora])
    for old in names:
      shutil.rmtree(path / old)
  return open(directory)


def open(directory: files.PathLike, *, verify: bool = False) -> Index:
  """Opens an index, memory-mapped: headers and sizes are checked, nothing else is read.

  Checksums are compared before the first search (`Index.check`), or here.

  Args:
    directory: what `build` wrote.
    verify: compare the SHA-256 of every file now, which reads all of them once. Stages do this.

  Raises:
    InputError: a file is missing, cut short or changed, or the format version is another. The
      message names the file.
  """
  path = sealed.local(directory)
  header = sealed.check(path, KIND, VERSION, remedy=REMEDY, verify=True)
  segments, first = [], 0
  try:
    for entry in header["segments"]:
      segments.append(segment.open(path / entry, first, verify=verify))
      first += len(segments[-1])
    index = Index(
      str(path), header, Analyzer.from_json(header["analyzer"]), tuple(segments), verify
    )
    whole = first > 0 and sum(count for count, _ in index.corpora) == first
  except (KeyError, TypeError) as error:
    raise files.InputError(f"{path / sealed.HEADER}: {error!r} is missing; {REMEDY}") from None
  if not whole:
    raise files.InputError(f"{path}: its segments do not fit the header; {REMEDY}")
  return index


def check_corpus(index: Index, passages: passages_lib.Passages) -> None:
  """Makes sure that positions of the index mean these passages.

  Raises:
    InputError: the index was built from others.
  """
  theirs = tuple((count, digest) for _, count, digest in passages.corpora)
  if index.corpora != theirs:
    raise files.InputError(
      f"{index.directory}: built from other passages ({len(index)}) than those in"
      f" {passages.directory} ({len(passages)}); {REMEDY}"
    )


def _name(number: int) -> str:
  return f"segment-{number:05d}"


def _next_name(names: Sequence[str]) -> str:
  return _name(1 + max(int(name.rsplit("-", 1)[1]) for name in names))


def _work(path: Path) -> Path:
  return path.parent / f".building-{path.name}"


def _settings(index: Index) -> dict[str, Any]:
  return {name: index.header[name] for name in ("analyzer", "fields", "k1", "b", "lengths")}


def _write_header(
  folder: Path, settings: dict[str, Any], segments: Sequence[str], corpora: Sequence[list[Any]]
) -> None:
  """Makes these segments the index: the one step by which a change becomes visible."""
  parts = [json.loads((folder / name / sealed.HEADER).read_bytes()) for name in segments]
  fields = {
    **settings,
    "segments": list(segments),
    "corpora": list(corpora),
    "passages": sum(part["passages"] for part in parts),
    "postings": sum(part["postings"] for part in parts),
  }
  headers = [f"{name}/{sealed.HEADER}" for name in segments]
  sealed.seal(folder, KIND, VERSION, fields, names=headers)
