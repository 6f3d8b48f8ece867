"""Finds silver passages and reranker candidates by rationales (paper sections 3.2 and 3.3).

Examples:
  python launch/ground.py --gin_file=gin_configs/recipes/quickstart/4_ground.gin
  python launch/ground.py --gin_file=gin_configs/recipes/quickstart/4_ground.gin \\
    --gin.RUNNER="'DirectRunner'" --gin.BEAM_OPTIONS="'--direct_num_workers=2 ...'"
"""

from __future__ import annotations

if __name__ == "__main__":  # run the module gin can import, with the project's root on the path
  import pathlib
  import sys

  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])
  from kard_jax.core import config

  sys.exit(config.launch("ground", __doc__ or ""))


import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from kard_jax import beam_grounding
from kard_jax import questions as questions_lib
from kard_jax import silver as silver_lib
from kard_jax import teacher as teacher_lib
from kard_jax.core import files, hosts, pipelines
from kard_jax.core.provenance import Stage
from kard_jax.questions import Question
from kard_jax.retrieval import index as index_lib
from kard_jax.retrieval import passages as passages_lib
from tasks import registry


def ground(
  stage: Stage,
  *,
  dataset: registry.Dataset,
  silver: int = 10,
  candidates: int = 32,
  retrieved: int = 10,
  recorded: Callable[[str | None], Sequence[Recorded]] | None = None,
  beam: pipelines.Beam | None = None,
) -> None:
  """Writes `silver.jsonl`, `candidates.jsonl` and `retrieved.jsonl`.

  Args:
    stage: the work directory and the record.
    dataset: whose prompts make the queries.
    silver: passages by the rationale, for each kept rationale.
    candidates: passages by the rationale and by the question, each at most so many.
    retrieved: passages by the question, for each question.
    recorded: gives lists that were made elsewhere, for the dataset's source; they take the place of
      those that BM25 would find by the rationales.
    beam: a runner whose workers search; None: this process does. The rows are the same.
  """
  questions = read_all(stage)
  path = stage.reads("rationales.jsonl")
  # Each of several hosts takes its part of the rationales, and of the questions.
  rationales = list(teacher_lib.read_rationales(path, questions))
  rationales = rationales[hosts.share(len(rationales))]
  stored = passages_lib.Passages(stage.reads("knowledge/passages"), verify=True)
  index = index_lib.open(stage.reads("knowledge/bm25"), verify=True)
  lists: Iterable[tuple[silver_lib.Row, silver_lib.Row]] | None = None
  if recorded is not None:
    stage.reads_outside(dataset.inputs())
    spaces = recorded(dataset.source)
    spaces = spaces[hosts.share(len(spaces))]
    lists = map(functools.partial(_recorded, silver=silver), spaces)
  elif beam is None:
    lists = silver_lib.ground(
      index,
      stored,
      questions,
      rationales,
      dataset.prompts,
      silver=silver,
      candidates=candidates,
      source=str(path),
    )
  count = 0 if lists is None else _write(stage, lists)
  asked = questions[hosts.share(len(questions))]
  if beam is None:
    found = silver_lib.retrieve(index, stored, asked, dataset.prompts, k=retrieved)
    files.write_jsonl(stage.writes("retrieved.jsonl"), found)
  else:
    sizes = {"silver": silver, "candidates": candidates, "retrieved": retrieved}
    work = stage.workdir / ".grounding"  # outlives a kill, as the scratch does not
    with beam_grounding.Grounding(index, stored, work, **sizes) as grounding:
      kept = silver_lib.queries(questions, rationales, dataset.prompts, source=str(path))
      by_question = ((q.id, dataset.prompts.question_query(q)) for q in asked)
      grounding.run(beam, kept if lists is None else (), by_question)
      for name in ("silver", "candidates", "retrieved") if lists is None else ("retrieved",):
        with stage.writes(f"{name}.jsonl").open("w") as file:
          for line in grounding.lines(name):
            file.write(line)
            count += name == "silver"
  for name in ("silver.jsonl", "candidates.jsonl", "retrieved.jsonl"):
    stage.joins(name)
  print(f"{count:>7,} rationales with silver passages and candidates", flush=True)


def _write(stage: Stage, lists: Iterable[tuple[silver_lib.Row, silver_lib.Row]]) -> int:
  """Writes the rows of rationales; returns of how many."""
  count = 0
  with (
    stage.writes("silver.jsonl").open("w") as silver_file,
    stage.writes("candidates.jsonl").open("w") as candidates_file,
  ):
    for silver_row, candidates_row in lists:
      count += 1
      silver_file.write(files.to_line(silver_row))
      candidates_file.write(files.to_line(candidates_row))
  return count


class Recorded(Protocol):
  """A rationale's candidates, (passage, score under the rationale), by rationale and question."""

  question: str
  sample: int
  by_rationale: list[tuple[str, float]]
  by_question: list[tuple[str, float]]


def _recorded(space: Recorded, silver: int) -> tuple[silver_lib.Row, silver_lib.Row]:
  """The rows of a recorded list, as `silver.ground` makes them; a passage stands once."""
  head = {"question_id": space.question, "sample": space.sample}
  found: dict[str, tuple[float, str]] = {}
  for side, listed in (("rationale", space.by_rationale), ("question", space.by_question)):
    for id, score in listed:
      found.setdefault(id, (score, side))
  best = sorted(space.by_rationale, key=lambda pair: -pair[1])[:silver]
  return (
    {**head, "passages": [{"id": id, "score": score} for id, score in best]},
    {
      **head,
      "passages": [
        {"id": id, "score": score, "from": side}
        for id, (score, side) in sorted(found.items(), key=lambda item: -item[1][0])
      ],
    },
  )


def read_all(stage: Stage) -> list[Question]:
  """The questions of every split in a work directory."""
  questions = []
  for split in ("train", "validation", "test"):
    if (stage.workdir / f"questions/{split}.jsonl").exists():
      questions += questions_lib.read(stage.reads(f"questions/{split}.jsonl"))
  return questions
