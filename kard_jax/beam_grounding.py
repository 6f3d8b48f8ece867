"""Grounding by Beam's workers: the rows of `silver`, whoever finds them, in the same order (3.2).

Queries are written to numbered files in a folder that every worker sees, a worker answers a file by
files of rows, and these, one after another, are what `silver.ground` and `silver.retrieve` give.
Files that a killed run has left are not made again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kard_jax import silver as silver_lib
from kard_jax.core import files
from kard_jax.core.pipelines import SHARED, Beam, here
from kard_jax.retrieval import index as index_lib
from kard_jax.retrieval import sealed
from kard_jax.retrieval.index import Index
from kard_jax.retrieval.passages import Passages

RATIONALES, QUESTIONS = "rationales", "questions"  # what is asked
ROWS = {RATIONALES: ("silver", "candidates"), QUESTIONS: ("retrieved",)}  # what comes of it
AT_ONCE = 256  # queries; memory is for so many
A_FILE = 1024

Piece = tuple[str, int]  # what is asked, and the number of the file


class Job(NamedTuple):
  """What every worker is told.

  Attributes:
    bm25, passages: the folders of index and passages.
    header, corpus: the hashes of the index's header and of the passages.
    work: the folder with the queries, which takes the rows.
    silver, candidates, retrieved: passages in a row, as of `silver.ground` and `silver.retrieve`.
  """

  bm25: str
  passages: str
  header: str
  corpus: str
  work: str
  silver: int
  candidates: int
  retrieved: int


class Grounding:
  """Rows found by Beam, in a working folder; a context manager that removes it at a good end.

  Args:
    index: of the passages.
    passages: the knowledge base.
    work: the folder, which every worker sees, as it does those of index and passages.
    silver, candidates, retrieved: as of `silver.ground` and `silver.retrieve`.
  """

  def __init__(
    self,
    index: Index,
    passages: Passages,
    work: files.PathLike,
    *,
    silver: int,
    candidates: int,
    retrieved: int,
  ):
    silver_lib.check_numbers(silver=silver, candidates=candidates, k=retrieved)
    index_lib.check_corpus(index, passages)
    self._work = sealed.local(work).absolute()
    self._job = Job(
      str(Path(index.directory).absolute()),
      str(passages.directory.absolute()),
      _header(index),
      passages.corpus,
      str(self._work),
      silver,
      candidates,
      retrieved,
    )
    self._pieces: dict[str, int] = {}

  def __enter__(self) -> Grounding:
    self._work.mkdir(parents=True, exist_ok=True)
    return self

  def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
    if kind is None:
      shutil.rmtree(self._work)

  def run(
    self,
    beam: Beam,
    rationales: Iterable[silver_lib.Queries],
    questions: Iterable[tuple[str, str]],
  ) -> None:
    """Has all rows found that an earlier run has not left.

    Args:
      beam: the runner.
      rationales: `silver.queries` of them.
      questions: (id, query) of each.

    Raises:
      InputError: a worker does not see a folder, or rows are not there at the end.
    """
    digest = hashlib.sha256(json.dumps(self._job).encode())
    for name, asked in ((RATIONALES, rationales), (QUESTIONS, questions)):
      self._pieces[name] = 0
      for number, some in enumerate(silver_lib.batched(asked, A_FILE)):
        lines = "".join(map(files.to_line, some))
        digest.update(lines.encode())
        with files.atomic(_file(self._work, name, number)) as temporary:
          temporary.write_text(lines)
        self._pieces[name] += 1
    self._forget_others(digest.hexdigest())
    pieces = [(name, number) for name, count in self._pieces.items() for number in range(count)]
    waiting = [piece for piece in pieces if not _is_done(self._work, piece)]
    if waiting:
      with beam.pipeline() as (module, pipeline):
        (
          pipeline
          | "Pieces" >> module.Create(waiting)
          | "Spread" >> module.Reshuffle()
          | "Search" >> module.Map(search, self._job)
        )
    if missing := [piece for piece in pieces if not _is_done(self._work, piece)]:
      raise files.InputError(
        f"{self._work}: of {len(pieces)} pieces, workers have left {len(missing)} undone; {SHARED}"
      )

  def lines(self, kind: str) -> Iterator[str]:
    """The rows of a kind, "silver", "candidates" or "retrieved", as lines of JSON, in order."""
    [name] = [asked for asked, kinds in ROWS.items() if kind in kinds]
    for number in range(self._pieces[name]):
      with _file(self._work, kind, number).open(encoding="utf-8") as file:
        yield from file

  def _forget_others(self, plan: str) -> None:
    """Removes rows that were found for something else."""
    path = self._work / "plan.json"
    if path.exists() and json.loads(path.read_text()) == plan:
      return
    for kinds in ROWS.values():
      for kind in kinds:
        for left in self._work.glob(f"{kind}-*"):
          left.unlink()
    files.write_json(path, plan)


def search(piece: Piece, job: Job) -> None:
  """Finds the rows of one file of queries, unless an earlier run has left them."""
  name, number = piece
  work = here(job.work)
  if _is_done(work, piece):
    return
  with _file(work, name, number).open(encoding="utf-8") as file:
    asked = [json.loads(line) for line in file]
  rows = [row for some in silver_lib.batched(asked, AT_ONCE) for row in _rows(name, some, job)]
  for kind, of_kind in zip(ROWS[name], zip(*rows, strict=True), strict=True):
    files.write_jsonl(_file(work, kind, number), of_kind)


def _rows(name: str, asked: Sequence[Any], job: Job) -> Iterator[tuple[silver_lib.Row, ...]]:
  index, passages = _opened(job)
  if name == RATIONALES:
    kept = [silver_lib.Queries(*row) for row in asked]
    yield from silver_lib.find(index, passages, kept, silver=job.silver, candidates=job.candidates)
  else:
    some = [(id, query) for id, query in asked]
    for row in silver_lib.look_up(index, passages, some, k=job.retrieved):
      yield (row,)


@functools.lru_cache(maxsize=1)
def _opened(job: Job) -> tuple[Index, Passages]:
  index, passages = index_lib.open(here(job.bm25)), Passages(here(job.passages))
  if (_header(index), passages.corpus) != (job.header, job.corpus):
    raise files.InputError(f"{job.bm25}: a worker finds another index there; {SHARED}")
  return index, passages


def _header(index: Index) -> str:
  return files.sha256(Path(index.directory) / sealed.HEADER)


def _file(work: Path, name: str, number: int) -> Path:
  return work / f"{name}-{number:05d}.jsonl"


def _is_done(work: Path, piece: Piece) -> bool:
  name, number = piece
  return all(_file(work, kind, number).exists() for kind in ROWS[name])
