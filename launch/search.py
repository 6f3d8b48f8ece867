"""Finds the passages that answer queries best, in an index that launch/index.py made.

Examples:
  python launch/search.py --index=FOLDER "Which metal melts in the hand?"
  python launch/search.py --index=FOLDER --queries=questions.jsonl --k=100 --out=found.jsonl
  python launch/search.py --index=FOLDER --queries=topics.tsv --k=1000 --format=trec --out=run.txt
  zcat queries.txt.gz | python launch/search.py --index=FOLDER --queries=- --no-text

FOLDER holds passages/ and bm25/: what --out was for launch/index.py, or a recipe's knowledge/.
A query on the command line gives a table, a file of queries a JSON line each. Where JAX has
accelerators the search runs on them; JAX_PLATFORMS=cpu keeps it on the processor. Several processes
share the queries of a file (docs/multihost.md).
"""

from __future__ import annotations

import pathlib
import sys

if __name__ == "__main__":  # with the project's root on the path
  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])
  from launch import search as module

  sys.exit(module.main())

import argparse
import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from kard_jax.core import config, distributed, files, hosts, parts
from kard_jax.core.files import InputError
from kard_jax.retrieval import bm25, sealed, table
from kard_jax.retrieval import index as index_lib
from kard_jax.retrieval.passages import Passages
from kard_jax.retrieval.query_files import STDIN, Query, QueryFile

FORMATS = ("table", "jsonl", "trec")
Row = dict[str, Any]

_TAG = "kard_jax"  # the last column of TREC's run files: who ran it
_BATCH = 1000  # queries searched at a time
_HITS = 4_000_000  # found at a time, at most: bounds memory where k is large
_READ = 20_000  # passages read at a time


def main(argv: Sequence[str] | None = None) -> int:
  """The command line. Gives the exit status."""
  flags = _flags()
  arguments = flags.parse_args(argv)
  if bool(arguments.query) == (arguments.queries is not None):
    flags.error("give queries on the command line, or --queries=FILE (- for standard input)")
  try:
    return config.exit_status(lambda: search(arguments))
  except BrokenPipeError:  # whoever read our output has enough, as `head` does
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _flags() -> argparse.ArgumentParser:
  flags = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  flags.add_argument("query", nargs="*", help="queries, each in quotes")
  flags.add_argument("--index", required=True, metavar="FOLDER", help="with passages/ and bm25/")
  flags.add_argument(
    "--queries",
    metavar="FILE",
    help="a query a line (.txt), id and query (.tsv), or JSON lines with id or _id and text,"
    " question or query (.jsonl); .gz of these; - for standard input",
  )
  flags.add_argument("--field", metavar="NAME", help="of the JSON lines: where the query stands")
  flags.add_argument("--k", type=int, default=10, metavar="N", help="passages a query (10)")
  flags.add_argument(
    "--format",
    choices=FORMATS,
    help="table (for queries on the command line), jsonl (for others), or trec (run lines)",
  )
  flags.add_argument("--out", metavar="FILE", help="written whole or not at all; .gz is compressed")
  flags.add_argument(
    "--text",
    action=argparse.BooleanOptionalAction,
    default=True,
    help="give titles and texts, not ids and scores alone",
  )
  flags.add_argument("--threads", type=int, metavar="N", help="all cores by default")
  flags.add_argument(
    "--verify",
    action="store_true",
    help="compare the passages' checksums too (the index's are always compared)",
  )
  distributed.add_flags(flags)
  return flags


def search(arguments: argparse.Namespace) -> None:
  """Answers queries: searches them in batches and writes what each finds.

  Args:
    arguments: the flags.

  Raises:
    InputError: a flag, a query or the folder cannot be used; the index is damaged.
  """
  kind = arguments.format or ("jsonl" if arguments.queries or arguments.out else "table")
  for name, value in (("k", arguments.k), ("threads", arguments.threads)):
    if value is not None and value < 1:
      raise InputError(f"--{name}={value}: at least 1 is needed")
  if kind == "table" and arguments.out is not None:
    raise InputError("--format=table is to be read at once; with --out use jsonl or trec")
  if arguments.field is not None and arguments.queries is None:
    raise InputError("--field is for --queries in JSON lines; leave it out")
  distributed.start(distributed.find(arguments), hosts.Times())
  queries = _on_command_line(arguments.query)
  if arguments.queries is not None:
    queries = _of_this_host(arguments)
  elif not hosts.is_lead():
    queries = []  # process 0 answers these
  index, passages = _opened(arguments.index, verify=arguments.verify)
  k = min(arguments.k, len(index))
  with_text = arguments.text and kind != "trec"
  shown = table.console() if kind == "table" else None
  with _progress(queries, arguments.out) as advance, _output(arguments.out) as write:
    for batch in _batches(queries, max(1, min(_BATCH, _HITS // k))):
      hits = bm25.top_k(index, [query.text for query in batch], k, threads=arguments.threads)
      for query, found in zip(batch, _found(passages, hits, text=with_text), strict=True):
        if shown is not None:
          table.show(query.text, found, index.analyzer, shown, text=with_text)
        elif kind == "trec":
          write("".join(_run_lines(query, found)))
        else:
          write(files.to_line({"query_id": query.id, "query": query.text, "passages": found}))
      advance(len(batch))


def _of_this_host(arguments: argparse.Namespace) -> Iterable[Query]:
  """The queries of a file; of several hosts each has its part, when it has looked at all."""
  queries = QueryFile(arguments.queries, field=arguments.field)
  if hosts.count() == 1:
    return queries
  if arguments.queries == STDIN or arguments.out is None:
    raise InputError("several processes need a file of --queries, and --out for what they find")
  share = hosts.share(sum(1 for _ in queries))
  queries = QueryFile(arguments.queries, field=arguments.field)
  return itertools.islice(queries, share.start, share.stop)


def _on_command_line(texts: Sequence[str]) -> Iterable[Query]:
  for number, text in enumerate(texts, 1):
    if not text.strip():
      raise InputError(f"query {number} on the command line is empty")
    try:
      text.encode()
    except UnicodeEncodeError:
      raise InputError(f"query {number} on the command line is not valid Unicode") from None
  return [Query(str(number), text) for number, text in enumerate(texts, 1)]


def _opened(folder: str, *, verify: bool) -> tuple[index_lib.Index, Passages]:
  place = sealed.local(folder)
  for part in (place, place / "passages", place / "bm25"):
    if not part.is_dir():
      raise InputError(
        f"{part}: no such folder; --index is to be one that launch/index.py has written with --out"
      )
  passages = Passages(place / "passages", verify=verify)
  index = index_lib.open(place / "bm25", verify=verify)
  index_lib.check_corpus(index, passages)
  return index, passages


def _batches(queries: Iterable[Query], size: int) -> Iterator[list[Query]]:
  iterator = iter(queries)
  while batch := list(itertools.islice(iterator, size)):
    yield batch


def _found(passages: Passages, hits: bm25.Hits, *, text: bool) -> Iterator[list[Row]]:
  """What each query finds, best first: id and score, and with `text` title and text."""
  step = max(1, _READ // hits.ids_BxK.shape[1])
  for start in range(0, len(hits.ids_BxK), step):
    ids_BxK = hits.ids_BxK[start : start + step]
    known = np.unique(ids_BxK[ids_BxK >= 0]).tolist()  # in order, and each read once
    if text:
      rows = {at: vars(passage) for at, passage in zip(known, passages.many(known), strict=True)}
    else:
      rows = {at: {"id": passages.ids[at]} for at in known}
    for ids, scores in zip(ids_BxK.tolist(), hits.scores_BxK[start : start + step], strict=True):
      # A score is written as the shortest decimal that is this float32 when read again.
      yield [
        {"id": rows[at]["id"], "score": float(str(score)), **rows[at]}
        for at, score in zip(ids, scores, strict=True)
        if at >= 0
      ]


def _run_lines(query: Query, found: Sequence[Row]) -> Iterator[str]:
  """Lines of a TREC run: query, Q0, passage, rank from 1, score, tag."""
  for rank, row in enumerate(found, 1):
    for id in (query.id, row["id"]):
      if len(id.split()) != 1:
        raise InputError(f"--format=trec has no place for white space in the id {id!r}; use jsonl")
    yield f"{query.id} Q0 {row['id']} {rank} {row['score']} {_TAG}\n"


@contextlib.contextmanager
def _output(path: str | None) -> Iterator[Callable[[str], object]]:
  """Yields what writes text: to standard output, or to a file that is there at the end."""
  if path is None:
    yield lambda text: sys.stdout.buffer.write(text.encode())
    sys.stdout.flush()
    return
  place = epath.Path(path)
  if place.is_dir():
    raise InputError(f"--out={path}: a folder; name a file")
  try:
    with parts.writer(place) as write:
      yield write
  except OSError as error:
    raise InputError(f"--out={path}: cannot be written ({error.strerror})") from None


@contextlib.contextmanager
def _progress(queries: Iterable[Query], out: str | None) -> Iterator[Callable[[int], None]]:
  """Yields what counts queries; a bar where somebody looks on and nothing else is shown."""
  alone = out is not None or not sys.stdout.isatty()
  if not (isinstance(queries, QueryFile) and sys.stderr.isatty() and alone):
    yield lambda count: None
    return
  import rich.console
  import rich.progress

  columns = (
    rich.progress.TextColumn("{task.fields[count]:>12,} queries"),
    rich.progress.BarColumn(),
    rich.progress.TimeElapsedColumn(),
    rich.progress.TextColumn("left"),
    rich.progress.TimeRemainingColumn(),
  )
  with rich.progress.Progress(*columns, console=rich.console.Console(stderr=True)) as bar:
    task = bar.add_task("searching", total=queries.size, count=0)
    done = 0

    def advance(count: int) -> None:
      nonlocal done
      done += count
      bar.update(task, completed=queries.position(), count=done)

    yield advance
