"""Reranks candidates: a recipe's held-out lists, to be scored, or lists in any file, by itself.

Examples:
  python launch/rerank.py --gin_file=gin_configs/recipes/strategyqa_rerank/6_rerank.gin
  python launch/rerank.py --gin_file=gin_configs/recipes/strategyqa_rerank/6_rerank.gin \\
    --lists=candidates.jsonl --out=ranked.jsonl --vectors=vectors
  python launch/rerank.py --cross_encoder=cross-encoder/ms-marco-MiniLM-L6-v2 \\
    --lists=candidates.jsonl --out=ranked.jsonl

A line of --lists is {"query": "...", "passages": [{"text": "...", ...}, ...]}; "question" serves
for "query", a passage may have a "title", and whatever else a line holds is kept. --out has the
same lines, each passage with its "score", best first.

Several processes share the lists (docs/multihost.md).

With --vectors, passages are named by the "id" that they have in the recipe's knowledge base, whose
vectors are computed once, kept in that folder, and read again by later runs.
"""

from __future__ import annotations

import pathlib
import sys

if __name__ == "__main__":  # run the module gin can import, with the project's root on the path
  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])
  from launch import rerank as module

  sys.exit(module.main())

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from kard_jax.core import config, distributed, files, gin_text, hosts, parts, progress
from kard_jax.core.files import InputError

if TYPE_CHECKING:  # they bring JAX and TensorFlow, which a look at --help does not need
  import flax.linen as nn

  from kard_jax.core.partitioning import Partitioner
  from kard_jax.core.provenance import Stage
  from kard_jax.retrieval.passages import Passages
  from tasks import registry
  from tasks.rankers import Ranker

_AT_ONCE = 256  # lists read and scored together: their passages are encoded once
_LENGTHS = {"query_length": 64, "passage_length": 256}  # tokens that a cross-encoder reads
Row = dict[str, Any]


def rerank(
  stage: Stage,
  *,
  dataset: registry.Dataset,
  split: str,
  network: nn.Module,
  folder: str,
  partitioner: Partitioner,
  query_length: int,
  passage_length: int,
  checkpoint: str = "best",
  candidates: int = 100,
) -> None:
  """Writes `reranking.jsonl`: what the reranker, BM25 and chance make of held-out lists.

  Lists are those of the split's rationales, compared with their scores, and where questions name
  gold passages, what BM25 finds by the question, compared with these.

  Args:
    stage: the work directory and the record.
    dataset: whose questions, prompts and vocabulary.
    split: which questions.
    network: as it was trained.
    folder: of its checkpoints, below the work directory.
    partitioner: mesh and rules.
    query_length: tokens of a question that are read.
    passage_length: tokens of a passage that are read.
    checkpoint: "best" or "latest".
    candidates: passages that BM25 finds, where the reference is gold.
  """
  from kard_jax import ranking
  from tasks import held_out, rankers

  partitioner = partitioner.of_this_host()
  dataset.locate(stage.workdir)
  for path in dataset.vocabulary_inputs:
    stage.reads(path)
  score = rankers.trained(
    stage.reads(folder),
    dataset,
    network=network,
    partitioner=partitioner,
    query_length=query_length,
    passage_length=passage_length,
    checkpoint=checkpoint,
  )
  lists = list(held_out.lists(stage, dataset, split, candidates))
  lists = lists[hosts.share(len(lists))]  # each of several hosts scores its part
  with progress.candidates(sum(len(one.texts) for one in lists)) as advance:
    scores = score([one.query for one in lists], [one.texts for one in lists], advance)
  rows = [
    # equal scores stand for all orders alike: what chance makes of a list, without drawing one
    one.row
    | {
      "scores": {"reranker": mine.tolist(), "bm25": one.bm25.tolist(), "random": [0.0] * len(mine)}
    }
    for one, mine in zip(lists, scores, strict=True)
  ]
  files.write_jsonl(stage.writes("reranking.jsonl"), rows)
  whole = stage.joins("reranking.jsonl")
  if not hosts.is_lead():
    return
  rows = [row for _, row in files.read_jsonl(whole)]
  for reference, card in ranking.summarise(rows).items():
    for name, figures in card["rankings"].items():
      shown = "  ".join(f"{figure} {at['value']:.3f}" for figure, at in figures.items())
      print(f"{reference:>9} {name:<8} {shown}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
  """The command line: a stage where only gin is given, else `alone`. Gives the exit status."""
  argv = sys.argv[1:] if argv is None else argv
  flags = config.parser(__doc__ or "")
  flags.add_argument("--redo", action="store_true", help="make all again although it is there")
  group = flags.add_argument_group("by itself")
  group.add_argument(
    "--lists", metavar="FILE", help="questions and candidates, .jsonl or .jsonl.gz"
  )
  group.add_argument("--out", metavar="FILE", help="where ranked candidates go")
  group.add_argument("--cross_encoder", metavar="MODEL", help="a Hugging Face folder or name")
  group.add_argument(
    "--vectors",
    metavar="FOLDER",
    help="of the knowledge base's passages; made if they are not there",
  )
  group.add_argument(
    "--k", type=int, metavar="N", help="keep the best N of each list; all if absent"
  )
  for name, length in _LENGTHS.items():
    group.add_argument(
      f"--{name}", type=int, metavar="N", help=f"tokens, for --cross_encoder ({length})"
    )
  arguments, overrides = config.parse_arguments(flags, argv)
  if arguments.lists is None and arguments.cross_encoder is None:
    return config.launch("rerank", __doc__ or "", argv)
  if arguments.lists is None or arguments.out is None:
    flags.error("by itself, --lists and --out are needed")
  if bool(arguments.gin_file) == bool(arguments.cross_encoder):
    flags.error("give --gin_file of a recipe's rerank stage, or --cross_encoder: one of them")
  if arguments.vectors and arguments.cross_encoder:
    flags.error("--vectors: a cross-encoder reads both sides together; nothing can be stored")
  if arguments.gin_file and (
    given := [name for name in _LENGTHS if getattr(arguments, name) is not None]
  ):
    flags.error(f"--{given[0]}: a recipe has its own; set it by --gin.{given[0].upper()}=N")
  return config.exit_status(lambda: alone(arguments, overrides))


def alone(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
  """Ranks the candidates of every line of a file; each of several hosts those of its part.

  Raises:
    InputError: a flag, a line, or the reranker cannot be used.
  """
  if arguments.k is not None and arguments.k < 1:
    raise InputError(f"--k={arguments.k}: at least 1 is needed")
  settings = gin_text.resolve(arguments.gin_file, overrides) if arguments.gin_file else None
  times = config.times(settings) if settings else hosts.Times()
  distributed.start(distributed.find(arguments), times)
  rows = list(files.read_jsonl(arguments.lists))
  wheres = [f"{arguments.lists}:{line}" for line, _ in rows]
  queries = [_query(row, where) for (_, row), where in zip(rows, wheres, strict=True)]
  sizes, score = _scorer(arguments, settings, [row for _, row in rows], wheres)
  share = hosts.share(len(rows))

  def ranked() -> Iterator[Row]:
    with progress.candidates(sum(sizes[share])) as advance:
      for start in range(share.start, share.stop, _AT_ONCE):
        part = slice(start, min(start + _AT_ONCE, share.stop))
        scores = score(queries[part], part, advance)
        for (_, row), mine in zip(rows[part], scores, strict=True):
          order = (-mine).argsort(kind="stable")[: arguments.k]
          passages = [row["passages"][at] | {"score": float(str(mine[at]))} for at in order]
          yield row | {"passages": passages}

  with parts.writer(arguments.out) as write:
    for ranked_row in ranked():
      write(files.to_line(ranked_row))
  if hosts.is_lead():
    count = f"{len(rows):>7,} lists, {sum(sizes):,} candidates ranked"
    print(f"{count}: {arguments.out}", flush=True)


def _scorer(
  arguments: argparse.Namespace,
  settings: gin_text.Settings | None,
  rows: Sequence[Row],
  wheres: list[str],
) -> tuple[list[int], Callable[[list[str], slice, Callable[[int], None]], list[Any]]]:
  """How many candidates each line has, and what scores a part of the lines."""
  if arguments.vectors is None:
    texts = [_texts(row, where) for row, where in zip(rows, wheres, strict=True)]
    if settings is None:
      from tasks import rankers

      lengths = [_length(arguments, name) for name in _LENGTHS]
      ranker = rankers.cross_encoder(arguments.cross_encoder, *lengths)
    else:
      ranker, _, _ = _recipes(settings)
    return list(map(len, texts)), lambda queries, part, tell: ranker(queries, texts[part], tell)
  from kard_jax.retrieval.passages import Passages

  assert settings is not None  # --vectors are of a recipe
  ranker, dataset, workdir = _recipes(settings)
  stored = Passages(workdir / "knowledge" / "passages")
  ids = [_ids(row, where, stored) for row, where in zip(rows, wheres, strict=True)]
  with hosts.lead_first("the passages' vectors"):
    by_ids = ranker.by_ids(arguments.vectors, stored, dataset.prompts.passage_text)
  return list(map(len, ids)), lambda queries, part, tell: by_ids(queries, ids[part], tell)


def _length(arguments: argparse.Namespace, name: str) -> int:
  given = getattr(arguments, name)
  if given is not None and given < 1:
    raise InputError(f"--{name}={given}: at least 1 is needed")
  return given or _LENGTHS[name]


def _recipes(settings: gin_text.Settings) -> tuple[Ranker, registry.Dataset, pathlib.Path]:
  """The reranker of a recipe's rerank stage, its dataset and its work directory."""
  config.activate(settings)
  import gin

  from tasks import rankers

  def value(name: str) -> Any:
    return _built(gin.query_parameter(f"launch.rerank.rerank.{name}"))

  names = ("network", "query_length", "passage_length", "checkpoint")
  workdir = pathlib.Path(gin_text.workdir(settings))
  dataset = value("dataset").locate(workdir)
  folder = workdir / value("folder")
  if not folder.is_dir():
    raise InputError(f"{folder}: no trained reranker; run the recipe up to its reranker stage")
  partitioner = value("partitioner").of_this_host()
  given = {name: value(name) for name in names}
  ranker = rankers.trained(folder, dataset, partitioner=partitioner, **given)
  return ranker, dataset, workdir


def _built(value: Any) -> Any:
  """What gin would pass: references are called, macros followed."""
  import copy

  return copy.deepcopy(value)


def _query(row: Row, where: str) -> str:
  query = row.get("query", row.get("question"))
  if not isinstance(query, str) or not query.strip():
    raise InputError(f'{where}: a text "query" (or "question") is needed')
  return query


def _passages(row: Row, where: str, name: str) -> list[Row]:
  """A line's passages, each of which has a text of this name."""
  passages = row.get("passages")
  if not isinstance(passages, list):
    raise InputError(f'{where}: "passages" is to be a list of {{"{name}": ...}}')
  for number, passage in enumerate(passages):
    if not isinstance(passage, dict) or not isinstance(passage.get(name), str):
      raise InputError(f'{where}: passage {number} has no "{name}"')
    if not isinstance(passage.get("title") or "", str):
      raise InputError(f'{where}: the "title" of passage {number} is no text')
  return passages


def _texts(row: Row, where: str) -> list[str]:
  titles = [(p.get("title") or "", p["text"]) for p in _passages(row, where, "text")]
  return [f"{title}: {text}" if title else text for title, text in titles]


def _ids(row: Row, where: str, stored: Passages) -> list[str]:
  ids = [passage["id"] for passage in _passages(row, where, "id")]
  try:
    for id in ids:
      stored.position(id)
  except InputError as error:
    raise InputError(f"{where}: {error}") from None
  return ids
