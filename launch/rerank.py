"""Reranks candidates: a recipe's held-out lists, to be scored, or lists in any file, by itself.

Examples:
  python launch/rerank.py --gin_file=gin_configs/recipes/strategyqa_rerank/6_rerank.gin
  python launch/rerank.py --gin_file=gin_configs/recipes/strategyqa_rerank/6_rerank.gin \\
    --lists=candidates.jsonl --out=ranked.jsonl
  python launch/rerank.py --cross_encoder=cross-encoder/ms-marco-MiniLM-L6-v2 \\
    --lists=candidates.jsonl --out=ranked.jsonl

A line of --lists is {"query": "...", "passages": [{"text": "...", ...}, ...]}; "question" serves
for "query", a passage may have a "title", and whatever else a line holds is kept. --out has the
same lines, each passage with its "score", best first.
"""

from __future__ import annotations

import pathlib
import sys

if __name__ == "__main__":  # run the module gin can import, with the project's root on the path
  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])
  from launch import rerank as module

  sys.exit(module.main())

import argparse
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from kard_jax.core import config, files
from kard_jax.core.files import InputError

if TYPE_CHECKING:  # they bring JAX and TensorFlow, which a look at --help does not need
  import flax.linen as nn

  from kard_jax.core.partitioning import Partitioner
  from kard_jax.core.provenance import Stage
  from tasks import registry
  from tasks.rankers import Score

_AT_ONCE = 256  # lists read and scored together: their passages are encoded once
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
  lists = held_out.lists(stage, dataset, split, candidates)
  with _progress(sum(len(one.texts) for one in lists)) as advance:
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
    "--k", type=int, metavar="N", help="keep the best N of each list; all if absent"
  )
  group.add_argument("--query_length", type=int, default=64, metavar="N", help="tokens (64)")
  group.add_argument("--passage_length", type=int, default=256, metavar="N", help="tokens (256)")
  arguments, overrides = config.parse_arguments(flags, argv)
  if arguments.lists is None and arguments.cross_encoder is None:
    return config.launch("rerank", __doc__ or "", argv)
  if arguments.lists is None or arguments.out is None:
    flags.error("by itself, --lists and --out are needed")
  if bool(arguments.gin_file) == bool(arguments.cross_encoder):
    flags.error("give --gin_file of a recipe's rerank stage, or --cross_encoder: one of them")
  return config.exit_status(lambda: alone(arguments, overrides))


def alone(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
  """Ranks the candidates of every line of a file.

  Raises:
    InputError: a flag, a line, or the reranker cannot be used.
  """
  if arguments.k is not None and arguments.k < 1:
    raise InputError(f"--k={arguments.k}: at least 1 is needed")
  score = _scorer(arguments, overrides)
  rows = list(files.read_jsonl(arguments.lists))
  queries, texts = [], []
  for line, row in rows:
    where = f"{arguments.lists}:{line}"
    queries.append(_query(row, where))
    texts.append(_texts(row, where))

  def ranked() -> Iterator[Row]:
    with _progress(sum(map(len, texts))) as advance:
      for start in range(0, len(rows), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        scores = score(queries[part], texts[part], advance)
        for (_, row), mine in zip(rows[part], scores, strict=True):
          order = (-mine).argsort(kind="stable")[: arguments.k]
          passages = [row["passages"][at] | {"score": float(str(mine[at]))} for at in order]
          yield row | {"passages": passages}

  count = files.write_jsonl(arguments.out, ranked())
  print(
    f"{count:>7,} lists, {sum(map(len, texts)):,} candidates ranked: {arguments.out}", flush=True
  )


def _scorer(arguments: argparse.Namespace, overrides: Sequence[str]) -> Score:
  if arguments.cross_encoder is not None:
    from tasks import rankers

    lengths = (arguments.query_length, arguments.passage_length)
    return rankers.cross_encoder(arguments.cross_encoder, *lengths)
  settings = config.resolve(arguments.gin_file, overrides)
  config.activate(settings)
  import gin

  from tasks import rankers

  def value(name: str) -> Any:
    return gin.query_parameter(f"launch.rerank.rerank.{name}")

  names = ("network", "partitioner", "query_length", "passage_length", "checkpoint")
  options = {name: _built(value(name)) for name in names}
  workdir = pathlib.Path(config.workdir(settings))
  dataset = _built(value("dataset")).locate(workdir)
  folder = workdir / _built(value("folder"))
  if not folder.is_dir():
    raise InputError(f"{folder}: no trained reranker; run the recipe up to its reranker stage")
  return rankers.trained(folder, dataset, **options)


def _built(value: Any) -> Any:
  """What gin would pass: references are called, macros followed."""
  import copy

  return copy.deepcopy(value)


def _query(row: Row, where: str) -> str:
  query = row.get("query", row.get("question"))
  if not isinstance(query, str) or not query.strip():
    raise InputError(f'{where}: a text "query" (or "question") is needed')
  return query


def _texts(row: Row, where: str) -> list[str]:
  passages = row.get("passages")
  if not isinstance(passages, list):
    raise InputError(f'{where}: "passages" is to be a list of {{"text": ...}}')
  texts = []
  for number, passage in enumerate(passages):
    text = passage.get("text") if isinstance(passage, dict) else None
    if not isinstance(text, str):
      raise InputError(f'{where}: passage {number} has no "text"')
    title = passage.get("title") or ""
    texts.append(f"{title}: {text}" if title else text)
  return texts


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
  """Yields what counts candidates; a bar where somebody looks on."""
  if not sys.stderr.isatty():
    yield lambda count: None
    return
  import rich.console
  import rich.progress

  columns = (
    rich.progress.TextColumn("{task.completed:>12,.0f} candidates"),
    rich.progress.BarColumn(),
    rich.progress.TimeElapsedColumn(),
    rich.progress.TextColumn("left"),
    rich.progress.TimeRemainingColumn(),
  )
  with rich.progress.Progress(*columns, console=rich.console.Console(stderr=True)) as bar:
    task = bar.add_task("reranking", total=total)
    yield lambda count: bar.update(task, advance=count)
