"""Grounding by Beam's workers: the rows of `silver`, whoever finds them, in the same order (3.2).

Queries are written to numbered files in a folder that every worker sees, a worker answers a file by
a folder of rows, and these, one after another, are what `silver.ground` and `silver.retrieve` give.
Folders that a killed run has left are not made again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kard_jax import silver as silver_lib
from kard_jax.core import files
from kard_jax.core.pipelines import SHARED, Beam, here, is_done, leaving
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
    asked: the folder with the files of queries.
    work: takes a folder of rows for each.
    silver, candidates, retrieved: passages in a row, as of `silver.ground` and `silver.retrieve`.
  """

  bm25: str
  passages: str
  header: str
  corpus: str
  asked: str
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
    self._index, self._passages = index, passages
    self._work = sealed.local(work).absolute()
    self._sizes = silver, candidates, retrieved
    self._pieces: list[Piece] = []

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
    header, corpus = _header(self._index), self._passages.corpus
    asked = self._work / "asked"
    plan = self._ask(asked, {RATIONALES: rationales, QUESTIONS: questions}, header)
    waiting = [piece for piece in self._pieces if not is_done(str(self._work), _name(piece))]
    if not waiting:
      return
    job = Job(
      beam.share(Path(self._index.directory), f"bm25-{header[:16]}"),
      beam.share(self._passages.directory, f"passages-{corpus[:16]}"),
      header,
      corpus,
      beam.share(asked, f"asked-{plan[:16]}"),
      beam.outbox(self._work, f"grounding-{plan[:16]}"),
      *self._sizes,
    )
    with beam.pipeline() as (module, pipeline):
      (
        pipeline
        | "Pieces" >> module.Create(waiting)
        | "Spread" >> module.Reshuffle()
        | "Search" >> module.Map(search, job)
      )
    beam.collect(job.work, map(_name, waiting), self._work)
    if missing := [piece for piece in waiting if not is_done(str(self._work), _name(piece))]:
      raise files.InputError(
        f"{self._work}: of {len(waiting)} pieces, workers have left {len(missing)} undone; {SHARED}"
      )
    beam.forget(job.work)

  def lines(self, kind: str) -> Iterator[str]:
    """The rows of a kind, "silver", "candidates" or "retrieved", as lines of JSON, in order."""
    for piece in self._pieces:
      if kind in ROWS[piece[0]]:
        with (self._work / _name(piece) / f"{kind}.jsonl").open(encoding="utf-8") as file:
          yield from file

  def _ask(self, folder: Path, queries: Mapping[str, Iterable[Any]], header: str) -> str:
    """Writes the files of queries; removes rows that were found for others; gives their hash."""
    digest = hashlib.sha256(json.dumps([header, self._sizes]).encode())
    self._pieces = []
    with files.atomic(folder) as temporary:
      temporary.mkdir()
      for name, every in queries.items():
        for number, some in enumerate(silver_lib.batched(every, A_FILE)):
          self._pieces.append((name, number))
          lines = "".join(map(files.to_line, some))
          digest.update(f"{name}-{number}\n{lines}".encode())
          (temporary / f"{_name((name, number))}.jsonl").write_text(lines)
    plan, path = digest.hexdigest(), self._work / "plan.json"
    if not (path.exists() and json.loads(path.read_text()) == plan):
      for left in self._work.glob("*-?????"):
        shutil.rmtree(left)
      files.write_json(path, plan)
    return plan


def search(piece: Piece, job: Job) -> None:
  """Finds the rows of one file of queries, unless an earlier run has left them."""
  name, _ = piece
  if is_done(job.work, _name(piece)):
    return
  with (here(job.asked) / f"{_name(piece)}.jsonl").open(encoding="utf-8") as file:
    asked = [json.loads(line) for line in file]
  rows = [row for some in silver_lib.batched(asked, AT_ONCE) for row in _rows(name, some, job)]
  with leaving(job.work, _name(piece)) as folder:
    folder.mkdir()
    for kind, of_kind in zip(ROWS[name], zip(*rows, strict=True), strict=True):
      files.write_jsonl(folder / f"{kind}.jsonl", of_kind)


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


def _name(piece: Piece) -> str:
  return f"{piece[0]}-{piece[1]:05d}"
