"""Blocks of an index made by Beam's workers, where the local builder looks for those it has made.

The passages of each block are known from the lengths of their texts, so the blocks are those that
the local builder would cut, byte for byte; it finds them finished, and only puts them together.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kard_jax.core import files
from kard_jax.core.pipelines import SHARED, Beam, here, is_done, leaving
from kard_jax.retrieval import blocks, postings, sealed, segment
from kard_jax.retrieval.analyzer import Analyzer
from kard_jax.retrieval.passages import Passages
from kard_jax.retrieval.record import contents

_READ = 4096  # passages read at a time
_MOST_WORDS = 1 << 20  # that a worker remembers from block to block


class Job(NamedTuple):
  """What every worker is told.

  Attributes:
    passages: their folder.
    segment: which part of them, or None for all.
    corpus: their hash.
    work: the folder that takes the blocks.
    analyzer: text to terms.
    most_passages: of a block.
    most_characters: of a block's texts, unless it is one passage.
  """

  passages: str
  segment: int | None
  corpus: str
  work: str
  analyzer: Analyzer
  most_passages: int
  most_characters: int


def make_ahead(beam: Beam) -> Callable[[Passages, Path, Analyzer], None]:
  """What `index.build` calls before it makes blocks itself."""
  return functools.partial(run, beam)


def run(beam: Beam, passages: Passages, work: Path, analyzer: Analyzer) -> None:
  """Makes all blocks of some passages that are not there yet.

  Args:
    beam: the runner.
    passages: in a folder that every worker sees.
    work: takes `block-00000` and so on; every worker sees it too.
    analyzer: text to terms.

  Raises:
    InputError: a worker does not see a folder, or the blocks are not there at the end.
  """
  job = Job(
    beam.share(passages.directory, f"passages-{passages.corpus[:16]}"),
    passages.segment,
    passages.corpus,
    "",
    analyzer,
    postings.BLOCK,
    blocks.CHARACTERS,
  )
  plan = hashlib.sha256(json.dumps([*job[1:4], analyzer.to_json(), *job[5:]]).encode()).hexdigest()
  job = job._replace(work=beam.outbox(work, f"blocks-{plan[:16]}"))
  starts = range(0, len(passages), job.most_passages)
  spans = [(start, min(start + job.most_passages, len(passages))) for start in starts]
  with beam.pipeline() as (module, pipeline):
    (
      pipeline
      | "Spans" >> module.Create(spans)
      | "SpreadSpans" >> module.Reshuffle()
      | "Measure" >> module.Map(measure, job)
      | "Gather" >> module.GroupByKey()
      | "Cut" >> module.FlatMap(cut, job)
      | "SpreadBlocks" >> module.Reshuffle()
      | "Make" >> module.Map(make, job)
    )
  beam.collect(job.work, map(_name, itertools.count()), work)
  if (made := _made(work)) != len(passages):
    raise files.InputError(f"{work}: workers have left {made:,} passages in blocks; {SHARED}")
  beam.forget(job.work)


def measure(span: tuple[int, int], job: Job) -> tuple[int, tuple[int, bytes]]:
  """The first of some passages, and how many characters each text has (int32), all under key 0."""
  passages = _passages(job)
  sizes: list[int] = []
  for start in range(*span, _READ):
    some = passages.many(range(start, min(start + _READ, span[1])))
    sizes += [len(contents(passage)) for passage in some]
  return 0, (span[0], np.array(sizes, np.int32).tobytes())


def cut(
  measured: tuple[int, Iterable[tuple[int, bytes]]], job: Job
) -> Iterator[tuple[int, int, int]]:
  """(number, first passage, end) of each block, as the local builder cuts them."""
  parts = [np.frombuffer(sizes, np.int32) for _, sizes in sorted(measured[1])]
  ends = np.cumsum(np.concatenate([np.zeros(1, np.int64), *parts]))
  number = first = 0
  while first < len(ends) - 1:
    fits = int(np.searchsorted(ends, ends[first] + job.most_characters, "right")) - 1
    end = max(first + 1, min(first + job.most_passages, fits))
    yield number, first, end
    number, first = number + 1, end


def make(block: tuple[int, int, int], job: Job) -> None:
  """Makes a block and stores it, unless an earlier run has left it whole."""
  number, first, end = block
  if is_done(job.work, _name(number)):
    return
  passages = _passages(job)
  texts: list[str] = []
  for start in range(first, end, _READ):
    texts += map(contents, passages.many(range(start, min(start + _READ, end))))
  terms = _terms(job.analyzer)
  with leaving(job.work, _name(number)) as folder:
    segment.store_block(blocks.Maker()(texts, terms), folder)
  if len(terms) > _MOST_WORDS:
    _terms.cache_clear()


@functools.lru_cache(maxsize=1)
def _passages(job: Job) -> Passages:
  passages = Passages(here(job.passages), segment=job.segment)
  if passages.corpus != job.corpus:
    raise files.InputError(f"{job.passages}: a worker finds other passages there; {SHARED}")
  return passages


@functools.lru_cache(maxsize=1)
def _terms(analyzer: Analyzer) -> blocks.Terms:
  """What words come to, from block to block of one worker."""
  return blocks.Terms(analyzer)


def _name(number: int) -> str:
  return f"block-{number:05d}"


def _made(work: Path) -> int:
  """How many passages the blocks in a folder have."""
  headers = work.glob(f"block-*/{sealed.HEADER}")
  return sum(int(json.loads(header.read_bytes())["passages"]) for header in headers)
