"""Finds silver passages and reranker candidates by rationales (paper sections 3.2 and 3.3).

Example:
  python launch/ground.py --gin_file=gin_configs/recipes/quickstart/4_ground.gin
"""

from __future__ import annotations

if __name__ == "__main__":  # run the module gin can import, with the project's root on the path
  import pathlib
  import sys

  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])
  from kard_jax.core import config

  sys.exit(config.launch("ground", __doc__ or ""))


from kard_jax import questions as questions_lib
from kard_jax import silver as silver_lib
from kard_jax import teacher as teacher_lib
from kard_jax.core import files
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
) -> None:
  """Writes `silver.jsonl`, `candidates.jsonl` and `retrieved.jsonl`.

  Args:
    stage: the work directory and the record.
    dataset: whose prompts make the queries.
    silver: passages by the rationale, for each kept rationale.
    candidates: passages by the rationale and by the question, each at most so many.
    retrieved: passages by the question, for each question.
  """
  questions = read_all(stage)
  path = stage.reads("rationales.jsonl")
  rationales = teacher_lib.read_rationales(path, questions)
  stored = passages_lib.Passages(stage.reads("knowledge/passages"), verify=True)
  index = index_lib.open(stage.reads("knowledge/bm25"), verify=True)
  with (
    stage.writes("silver.jsonl").open("w") as silver_file,
    stage.writes("candidates.jsonl").open("w") as candidates_file,
  ):
    rows = silver_lib.ground(
      index,
      stored,
      questions,
      rationales,
      dataset.prompts,
      silver=silver,
      candidates=candidates,
      source=str(path),
    )
    count = 0
    for silver_row, candidates_row in rows:
      count += 1
      silver_file.write(files.to_line(silver_row))
      candidates_file.write(files.to_line(candidates_row))
  found = silver_lib.retrieve(index, stored, questions, dataset.prompts, k=retrieved)
  files.write_jsonl(stage.writes("retrieved.jsonl"), found)
  print(f"{count:>7,} rationales with silver passages and candidates", flush=True)


def read_all(stage: Stage) -> list[Question]:
  """The questions of every split in a work directory."""
  questions = []
  for split in ("train", "validation", "test"):
    if (stage.workdir / f"questions/{split}.jsonl").exists():
      questions += questions_lib.read(stage.reads(f"questions/{split}.jsonl"))
  return questions
