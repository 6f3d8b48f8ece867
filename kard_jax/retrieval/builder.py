"""Builds a segment in bounded memory, on several cores, going on after a kill.

The passages are cut into blocks where their number or their text reaches a limit, so the same
passages give the same blocks, whoever makes them. A block is stored when it is made; a build that
was killed finds them again, makes the rest, and ends in the same bytes.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import fcntl
import itertools
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import rich.console
import rich.progress

from kard_jax.core import files
from kard_jax.retrieval import blocks as blocks_lib
from kard_jax.retrieval import passages as passages_lib
from kard_jax.retrieval import postings, segment
from kard_jax.retrieval.analyzer import Analyzer
from kard_jax.retrieval.record import contents

DEFAULT_MEMORY = 2 << 30

# Makes blocks of stored passages in a working folder before the builder does: others may be faster.
Ahead = Callable[[passages_lib.Passages, Path, Analyzer], None]

_READ = 4096  # passages read at a time
_BASE = 150 << 20  # bytes that Python and the libraries take before a build begins
# A block of English under way: its texts twice (two bytes a character at worst), what is counted
# and what is written, and once more its texts while they wait.
_BLOCK_BYTES = 192 << 20
_LEAST_WORDS = 1 << 16


def build(
  passages: Iterable[passages_lib.Passage],
  folder: Path,
  work: Path,
  *,
  analyzer: Analyzer,
  memory_limit: int,
  threads: int | None,
  progress: bool,
  ahead: Ahead | None = None,
) -> str:
  """Makes a segment of passages.

  Args:
    passages: in order; read once. `Passages` (or any sequence with `corpus`, the hash of its
      passages) can go on after a kill; what else is iterable begins anew.
    folder: the segment's folder to make.
    work: a folder for the blocks, held by `alone`; what an interrupted build of the same left
      there is used.
    analyzer: text to terms.
    memory_limit: bytes of resident memory to stay under.
    threads: workers at most; None: one a core. Fewer where the memory limit asks for it.
    progress: show a progress bar on standard error.
    ahead: makes blocks before this does.

  Returns:
    The hash of the passages.

  Raises:
    InputError: there are no passages, or a limit is too low.
  """
  workers, most_words = _plan(memory_limit, threads)
  _begin_or_go_on(work, passages, analyzer)
  if ahead is not None:
    if not isinstance(passages, passages_lib.Passages):
      raise ValueError("only stored passages can be indexed by others")
    ahead(passages, work, analyzer)
  stored, corpus = _make_blocks(passages, work, analyzer, workers, most_words, progress)
  if not stored:
    raise files.InputError(f"{folder.parent}: no passages to index")
  segment.write(folder, stored)
  return corpus


def _plan(memory_limit: int, threads: int | None) -> tuple[int, int]:
  """How many workers, and how many words may be known at once."""
  if threads is not None and threads < 1:
    raise files.InputError(f"threads: at least 1 is needed, not {threads}")
  least = _BASE + _BLOCK_BYTES + _LEAST_WORDS * blocks_lib.WORD_BYTES
  if memory_limit < least:
    raise files.InputError(
      f"memory_limit: at least {-(-least >> 20)}MiB is needed to build an index, not"
      f" {memory_limit >> 20}MiB"
    )
  room = memory_limit - _BASE
  workers = min(
    threads or len(os.sched_getaffinity(0)), max(1, room // (_BLOCK_BYTES + (32 << 20)))
  )
  # While the last blocks still use the old tables, new ones grow.
  words = (room - workers * _BLOCK_BYTES) // blocks_lib.WORD_BYTES // 2
  return workers, max(_LEAST_WORDS, words)


@contextlib.contextmanager
def alone(work: Path) -> Iterator[None]:
  """Makes a working folder and holds it against other processes; at the end it is removed.

  After an exception it stays if it holds what a next build can go on with. The system lets go of
  the lock when the process ends.

  Raises:
    InputError: another process holds it, or it holds other files.
  """
  path = work / "lock"
  if work.exists():
    for item in work.iterdir():  # it will be emptied: so not where somebody keeps anything else
      if item.name not in ("lock", "plan.json") and not item.name.startswith(("block-", ".tmp-")):
        raise files.InputError(f"{item}: not of an index to build; give an empty working folder")
  with contextlib.ExitStack() as stack:
    try:
      work.mkdir(parents=True, exist_ok=True)
      lock = stack.enter_context(path.open("w"))
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      held = os.path.samestat(os.fstat(lock.fileno()), path.stat())
    except (BlockingIOError, FileNotFoundError):
      held = False  # or its holder has just removed it
    if not held:
      raise files.InputError(
        f"{work}: another process works on this index; wait for it, or stop it first"
      )
    try:
      yield
    except BaseException:
      if not _resumable(work):
        shutil.rmtree(work)
      raise
    shutil.rmtree(work)


def _resumable(work: Path) -> bool:
  """Whether there are blocks of passages that can be told from others."""
  try:
    known = json.loads((work / "plan.json").read_bytes())["corpus"] is not None
  except (OSError, ValueError, KeyError, TypeError):
    return False
  return known and any(work.glob("block-*"))


def _begin_or_go_on(work: Path, passages: Any, analyzer: Analyzer) -> None:
  """Empties the working folder unless it is of the same passages and settings."""
  plan = {
    "version": segment.VERSION,
    "analyzer": analyzer.to_json(),
    "corpus": getattr(passages, "corpus", None),
    "block": [postings.BLOCK, blocks_lib.CHARACTERS],
  }
  path = work / "plan.json"
  try:
    same = json.loads(path.read_bytes()) == plan and plan["corpus"] is not None
  except (OSError, ValueError):
    same = False
  for item in work.iterdir():
    if item.name == "lock" or (same and not item.name.startswith(".tmp-")):
      continue
    shutil.rmtree(item) if item.is_dir() else item.unlink()
  files.write_json(path, plan)


def _make_blocks(
  passages: Iterable[passages_lib.Passage],
  work: Path,
  analyzer: Analyzer,
  workers: int,
  most_words: int,
  progress: bool,
) -> tuple[list[Path], str]:
  """Stores the blocks that are not stored yet; returns all of them, and the passages' hash."""
  own = threading.local()
  terms = blocks_lib.Terms(analyzer)

  def make(texts: list[str], folder: Path, terms: blocks_lib.Terms) -> int:
    if not hasattr(own, "maker"):
      own.maker = blocks_lib.Maker()
    segment.store_block(own.maker(texts, terms), folder)
    return len(texts)

  reader = _Reader(passages)
  stored: list[Path] = []
  waiting: collections.deque[concurrent.futures.Future[int]] = collections.deque()
  with (
    concurrent.futures.ThreadPoolExecutor(workers) as pool,
    _bar(progress, reader.total) as advance,
  ):
    while not reader.done:
      folder = work / f"block-{len(stored):05d}"
      there = segment.stored_passages(folder) if folder.exists() else None
      if there is not None:
        reader.skip(there)
        advance(there)
      elif texts := reader.block():
        # Blocks that wait hold their texts: no more of them than workers.
        while len(waiting) >= workers:
          advance(waiting.popleft().result())
        if len(terms) > most_words:
          terms = blocks_lib.Terms(analyzer)  # the old ones go with the last block that uses them
        waiting.append(pool.submit(make, texts, folder, terms))
      else:
        break
      stored.append(folder)
    while waiting:
      advance(waiting.popleft().result())
  return stored, reader.corpus


class _Reader:
  """Cuts passages into the texts of blocks, and hashes them where they do not know their hash."""

  def __init__(self, passages: Iterable[passages_lib.Passage]):
    self._known = getattr(passages, "corpus", None)
    self._digest = passages_lib.CorpusHash()
    self.total = len(passages) if isinstance(passages, Sequence) else None
    self._many = getattr(passages, "many", None)
    self._rows = iter(passages) if self._many is None else None
    self._at, self._ahead, self.done = 0, collections.deque[str](), False

  @property
  def corpus(self) -> str:
    """The hash of all passages, once all are read."""
    return self._known or self._digest.hexdigest()

  def block(self) -> list[str]:
    """The texts of the next block; empty at the end."""
    texts: list[str] = []
    characters = 0
    while len(texts) < postings.BLOCK:
      if not self._ahead:
        self._read(postings.BLOCK - len(texts))
        if not self._ahead:
          self.done = True
          break
      characters += len(self._ahead[0])
      if texts and characters > blocks_lib.CHARACTERS:
        break
      texts.append(self._ahead.popleft())
    return texts

  def skip(self, count: int) -> None:
    """Passes over passages of a block that is stored."""
    waiting = min(count, len(self._ahead))
    for _ in range(waiting):
      self._ahead.popleft()
    self._at += count - waiting
    if self._rows is not None:
      collections.deque(itertools.islice(self._rows, count - waiting), maxlen=0)
    self.done = not self._ahead and self._at == self.total

  def _read(self, most: int) -> None:
    if self._many is not None:
      assert self.total is not None
      end = min(self._at + min(_READ, most), self.total)
      rows = self._many(range(self._at, end)) if self._at < end else []
      self._at = end
    else:
      assert self._rows is not None
      rows = list(itertools.islice(self._rows, min(_READ, most)))
    if self._known is None:
      try:
        for row in rows:
          self._digest.add(row)
      except UnicodeEncodeError as error:
        raise files.InputError(f"passage {row.id!r}: not valid Unicode ({error.reason})") from None
    self._ahead.extend(map(contents, rows))


@contextlib.contextmanager
def _bar(progress: bool, total: int | None) -> Iterator[Any]:
  """Yields what moves the bar on by some passages."""
  if not progress:
    yield lambda count: None
    return
  columns = (
    rich.progress.TextColumn("indexing"),
    rich.progress.BarColumn(),
    rich.progress.MofNCompleteColumn(),
    rich.progress.TextColumn("passages"),
    rich.progress.TimeElapsedColumn(),
    rich.progress.TextColumn("left"),
    rich.progress.TimeRemainingColumn(),
  )
  console = rich.console.Console(stderr=True)
  with rich.progress.Progress(*columns, console=console) as bar:
    task = bar.add_task("indexing", total=total)
    yield lambda count: bar.advance(task, count)
