"""Stores passages and indexes them for BM25: a dataset's, as a stage, or any file's, by itself.

Examples:
  python launch/index.py --gin_file=gin_configs/recipes/quickstart/2_index.gin
  python launch/index.py --passages=corpus.jsonl.gz --out=FOLDER
  python launch/index.py --passages=psgs_w100.tsv.gz --out=FOLDER --memory_limit=1GiB --threads=8
  python launch/index.py --passages=tfds:wikipedia/20230601.en --words=100 --out=FOLDER
  python launch/index.py --passages=more.jsonl --out=FOLDER --add
  python launch/index.py --out=FOLDER --merge --verify
  python launch/index.py --passages=corpus.jsonl.gz --out=FOLDER --runner=DirectRunner \\
    --beam_options="--direct_num_workers=2 --direct_running_mode=multi_processing"

FOLDER gets passages/ and bm25/. Killed, the same command goes on with what is complete. Of several
processes one does it, and the others wait (docs/multihost.md).
"""

from __future__ import annotations

import pathlib
import sys

if __name__ == "__main__":  # run the module gin can import, with the project's root on the path
  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])
  from launch import index as module

  sys.exit(module.main())

import argparse
import contextlib
import fcntl
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from etils import epath

from kard_jax.core import config, distributed, files, hosts, pipelines
from kard_jax.core.files import InputError
from kard_jax.retrieval import beam_blocks, readers, sealed
from kard_jax.retrieval import index as index_lib
from kard_jax.retrieval import passages as passages_lib
from kard_jax.retrieval.analyzer import Analyzer

if TYPE_CHECKING:  # they bring TensorFlow, which an index does not need
  from kard_jax.core.provenance import Stage
  from tasks import registry

_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def index(
  stage: Stage,
  *,
  dataset: registry.Dataset,
  analyzer: Analyzer = Analyzer(),
  k1: float = 0.9,
  b: float = 0.4,
  lengths: str = "lucene",
  memory_limit: str | None = None,
  threads: int | None = None,
  beam: pipelines.Beam | None = None,
) -> None:
  """Writes `knowledge/passages/` and `knowledge/bm25/`.

  Args:
    stage: the work directory and the record.
    dataset: whose passages.
    analyzer: text to terms.
    k1: how soon more of the same term counts no more (Anserini's default).
    b: how much long passages pay (Anserini's default).
    lengths: "lucene" (rounded to a byte, so that rankings are Lucene's) or "exact".
    memory_limit: such as "1GiB"; None: what `index.build` takes.
    threads: workers at most; None: one a core.
    beam: a runner whose workers make the index's blocks; None: this process makes them. The index
      is the same.
  """
  stage.reads_outside(dataset.inputs())
  folder = stage.writes("knowledge/passages")
  count = passages_lib.write(dataset.read_passages(), folder)
  stored = passages_lib.Passages(folder)
  built = index_lib.build(
    stored,
    stage.writes("knowledge/bm25"),
    analyzer=analyzer,
    k1=k1,
    b=b,
    lengths=lengths,
    memory_limit=None if memory_limit is None else size(memory_limit),
    threads=threads,
    progress=sys.stderr.isatty(),
    work=stage.workdir / "knowledge/.building-bm25",  # outlives a kill, as the scratch does not
    ahead=None if beam is None else beam_blocks.make_ahead(beam),
  )
  print(f"{count:>7,} passages, {built.postings:,} postings", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
  """The command line: a stage where a gin file is given, else `alone`. Gives the exit status."""
  argv = sys.argv[1:] if argv is None else argv
  flags, names = _flags()
  arguments, overrides = config.parse_arguments(flags, argv)
  given = [name for name in names if getattr(arguments, name) not in (None, False)]
  if arguments.gin_file or overrides:
    if given:
      flags.error(f"--{given[0]} is for an index by itself; with --gin_file, set macros instead")
    return config.launch("index", __doc__ or "", argv)
  if arguments.out is None:
    flags.error("give --gin_file, or --out (and --passages) for an index by itself")
  if arguments.passages is None and not (arguments.merge or arguments.verify):
    flags.error("--passages is needed, or --merge or --verify for an index that is there")

  def work() -> None:
    distributed.start(distributed.find(arguments), hosts.Times())
    if hosts.is_lead():
      alone(arguments)
    hosts.meet("the index, by process 0", None)

  return config.exit_status(work)


def _flags() -> tuple[argparse.ArgumentParser, list[str]]:
  """All flags, and the names of those that make an index by itself."""
  flags = config.parser(__doc__ or "")
  flags.add_argument("--redo", action="store_true", help="make all again although it is there")
  group = flags.add_argument_group("an index by itself, without gin")
  kinds = ", ".join(readers.FORMATS)
  actions = [
    group.add_argument("--passages", metavar="SOURCE", help="a file, a folder, or tfds:NAME"),
    group.add_argument("--out", metavar="FOLDER", help="where passages/ and bm25/ go"),
    group.add_argument("--format", help=f"{kinds}; told from name and first line if left out"),
    group.add_argument("--words", type=int, metavar="N", help="cut into passages of N words"),
    group.add_argument(
      "--fill", action="store_true", help="fill short last passages from the text's start (DPR)"
    ),
    group.add_argument("--split", help="which part of a TFDS dataset, as in train[:1%%]"),
    group.add_argument("--data_dir", metavar="FOLDER", help="where TFDS keeps its datasets"),
    group.add_argument("--analyzer", help="english (default), unicode or whitespace"),
    group.add_argument("--k1", type=float, help="how slowly repeated terms stop counting (0.9)"),
    group.add_argument("--b", type=float, help="how much long passages are held back (0.4)"),
    group.add_argument("--lengths", help="lucene (one byte, the default) or exact"),
    group.add_argument("--memory_limit", metavar="SIZE", help="such as 1GiB or 800MB"),
    group.add_argument("--threads", type=int, metavar="N", help="all cores by default"),
    group.add_argument("--runner", help="Apache Beam's, to make the index (docs/beam.md)"),
    group.add_argument("--beam_options", metavar="FLAGS", help="the runner's, in quotes"),
    group.add_argument("--beam_storage", metavar="FOLDER", help="a bucket's, where workers read"),
    group.add_argument("--add", action="store_true", help="add to what is there, as a new segment"),
    group.add_argument("--merge", action="store_true", help="make one segment of the index's"),
    group.add_argument("--verify", action="store_true", help="compare every file's checksum"),
  ]
  return flags, [action.dest for action in actions]


def alone(arguments: argparse.Namespace) -> None:
  """Stores and indexes passages without a recipe; adds, merges, verifies.

  Args:
    arguments: the flags.

  Raises:
    InputError: a source, a flag or what is in the folder cannot be used.
  """
  out = sealed.local(arguments.out)
  passages, bm25 = out / "passages", out / "bm25"
  settings, effort = _settings(arguments), _effort(arguments)
  source = None if arguments.passages is None else _source(arguments)
  if not passages.exists() and (arguments.add or source is None):
    raise InputError(f"{passages}: there are no passages yet; give --passages, and not --add")
  out.mkdir(parents=True, exist_ok=True)
  started = time.time()
  with _alone_in(out):
    if source is not None:
      _store(arguments, out, *source)
      stored = passages_lib.Passages(passages)
      built = _built(bm25, stored, settings)
      if built is not None and not arguments.redo:
        print(f"{bm25}: built before", flush=True)
      elif arguments.add:
        built = index_lib.open(bm25)
        for number, corpus in enumerate(stored.corpora):
          if corpus.first >= len(built):  # a kill may have left more than one to add
            new = passages_lib.Passages(passages, segment=number)
            built = index_lib.add(bm25, new, **effort)
      else:
        built = index_lib.build(stored, bm25, **settings, **effort)
      index_lib.check_corpus(built, stored)
      print(f"{len(built):>12,} passages indexed in {bm25}", flush=True)
    if arguments.merge:
      index_lib.merge(bm25)
      print(f"merged: {bm25} is one segment", flush=True)
    if arguments.verify:
      stored = passages_lib.Passages(passages, verify=True)
      index_lib.check_corpus(index_lib.open(bm25, verify=True), stored)
      print(f"verified: every file in {passages} and {bm25} is as it was written", flush=True)
  print(f"{time.time() - started:>12.1f} s", flush=True)


@contextlib.contextmanager
def _alone_in(folder: pathlib.Path) -> Iterator[None]:
  """Holds a folder against other runs of this command, and removes what killed ones left."""
  handle = os.open(folder, os.O_RDONLY)
  try:
    try:
      fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go when the process ends
    except OSError:
      raise InputError(
        f"{folder}: another process is at work there; wait for it, or stop it"
      ) from None
    for place in (folder, folder / "passages", folder / "bm25"):
      for left in place.glob(".tmp-*"):
        if left.name.startswith(".tmp-old-"):
          continue  # something whole, which was just to be replaced
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    yield
  finally:
    os.close(handle)


def _settings(arguments: argparse.Namespace) -> dict[str, Any]:
  """What decides an index."""
  if arguments.add and arguments.redo:
    raise InputError("--redo makes all anew, --add keeps it: give one of them")
  if arguments.add:
    for name in ("analyzer", "k1", "b", "lengths"):
      if getattr(arguments, name) is not None:
        raise InputError(f"--{name}: passages are added as the index was built; leave it out")
  return {
    "analyzer": Analyzer(kind=arguments.analyzer or "english"),
    "k1": 0.9 if arguments.k1 is None else arguments.k1,
    "b": 0.4 if arguments.b is None else arguments.b,
    "lengths": arguments.lengths or "lucene",
  }


def _effort(arguments: argparse.Namespace) -> dict[str, Any]:
  """What building an index may take."""
  if arguments.threads is not None and arguments.threads < 1:
    raise InputError(f"--threads={arguments.threads}: at least 1")
  limit = None if arguments.memory_limit is None else size(arguments.memory_limit)
  effort = {"memory_limit": limit, "threads": arguments.threads, "progress": sys.stderr.isatty()}
  beam = pipelines.chosen(
    arguments.runner, arguments.beam_options or (), arguments.beam_storage or None
  )
  return effort if beam is None else effort | {"ahead": beam_blocks.make_ahead(beam)}


def _built(
  folder: epath.Path, stored: passages_lib.Passages, settings: dict[str, Any]
) -> index_lib.Index | None:
  """The index of these passages, if an earlier run has built it with these settings."""
  if not folder.exists():
    return None
  try:
    found = index_lib.open(folder)
    index_lib.check_corpus(found, stored)
  except InputError:
    return None
  same = found.analyzer == settings["analyzer"] and all(
    found.header.get(name) == settings[name] for name in ("k1", "b", "lengths")
  )
  return found if same else None


def size(text: str) -> int:
  """Bytes of a size: `1GiB`, `800MB`, `1.5G` (of 1024), `1000000`.

  Raises:
    InputError: it is none.
  """
  found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?B?|B)", text.strip())
  if not found or float(found[1]) == 0:
    raise InputError(f"memory_limit: a size such as 1GiB or 800MB is needed, not {text!r}")
  base = 1000 if found[3] == "B" else 1024
  return int(float(found[1]) * base ** _UNITS[found[2]])


def _store(
  arguments: argparse.Namespace,
  out: pathlib.Path,
  passages: Iterator[passages_lib.Passage],
  mine: dict[str, Any],
) -> None:
  """Writes or adds the passages, unless an earlier run has done so from the same source.

  `source.json` says what each segment was made of. It is written first: where a kill kept the
  passages from being written, its last entry has no segment yet.
  """
  record, folder = out / "source.json", out / "passages"
  try:
    before: list[Any] = json.loads(record.read_text()) if record.exists() else []
  except ValueError:
    raise InputError(f"{record}: not JSON; delete it, and use --redo") from None
  there = len(passages_lib.Passages(folder).corpora) if folder.exists() else 0
  done = before[:there][-1:] == [mine] and (there > 1 if arguments.add else there == 1)
  if done and not arguments.redo:
    print(f"{folder}: written before from {arguments.passages}", flush=True)
    return
  if there and not arguments.add and not arguments.redo:
    raise InputError(
      f"{folder}: there are passages already, of another source or other flags; --add adds to them,"
      " --redo replaces them, another --out keeps them"
    )
  after = [*before[:there], mine] if arguments.add else [mine]
  if arguments.add or not there:  # with --redo the old ones count until they are replaced
    files.write_json(record, after)
  write = passages_lib.append if arguments.add else passages_lib.write
  count = write(_counted(passages), folder)
  files.write_json(record, after)
  print(f"{count:>12,} passages {'added' if arguments.add else 'written'}", flush=True)


def _source(arguments: argparse.Namespace) -> tuple[Iterator[passages_lib.Passage], dict[str, Any]]:
  """The passages, and what tells them from others: names, sizes, times, flags."""
  source, cut = arguments.passages, {"words": arguments.words, "fill": arguments.fill}
  flags = {"format": arguments.format, "split": arguments.split, **cut}
  if source.startswith("tfds:"):
    if arguments.format is not None:
      raise InputError("--format: a TFDS dataset knows its own; leave it out")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow reads it when it is imported
    logging.getLogger("absl").setLevel(logging.ERROR)
    from tasks import wikipedia

    found = wikipedia.fingerprint(source, arguments.data_dir)
    options = {"data_dir": arguments.data_dir, "split": arguments.split, **cut}
    return wikipedia.read(source, **options), {**flags, "dataset": found}
  for name in ("split", "data_dir"):
    if getattr(arguments, name) is not None:
      raise InputError(f"--{name} is for TFDS datasets, whose names begin with tfds:")
  passages = readers.open_corpus(source, format=arguments.format, **cut)
  place = epath.Path(source if "://" in source else os.path.abspath(source))
  paths = [place / name for name in sorted(files.names_below(place))] if place.is_dir() else [place]
  stats = [(str(path), path.stat()) for path in paths]
  return passages, {**flags, "files": [[name, stat.length, stat.mtime] for name, stat in stats]}


def _counted(passages: Iterable[passages_lib.Passage]) -> Iterator[passages_lib.Passage]:
  """Passes passages on; where somebody looks on, tells how many there were."""
  shown = sys.stderr.isatty()
  for number, passage in enumerate(passages, 1):
    if shown and number % 10_000 == 0:
      print(f"\r{number:>12,} passages", end="", file=sys.stderr, flush=True)
    yield passage
  if shown:
    print("\r" + " " * 24 + "\r", end="", file=sys.stderr, flush=True)
