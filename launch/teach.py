"""Asks a teacher for rationales and keeps those that lead to the gold answer (paper section 3.1).

Example:
  python launch/teach.py --gin_file=gin_configs/recipes/quickstart/3_teach.gin
"""

from __future__ import annotations

if __name__ == "__main__":  # run the module gin can import, with the project's root on the path
  import pathlib
  import sys

  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])
  from kard_jax.core import config

  sys.exit(config.launch("teach", __doc__ or ""))

import collections
from collections.abc import Sequence

from kard_jax import questions as questions_lib
from kard_jax import teacher as teacher_lib
from kard_jax.core import files
from kard_jax.core.provenance import Stage
from tasks import registry


def teach(
  stage: Stage,
  *,
  dataset: registry.Dataset,
  samples: int = 5,
  splits: Sequence[str] = ("train", "validation", "test"),
  judge: teacher_lib.Judge | None = None,
) -> None:
  """Writes `rationales.jsonl`: every rationale, kept or not, with the reason.

  Args:
    stage: the work directory and the record.
    dataset: whose questions, and whose teacher.
    samples: rationales for each question.
    splits: which questions; validation and test ones only serve measurements (silver passages).
    judge: which rationales are kept; by default those that state the gold answer.
  """
  stage.reads_outside(dataset.inputs())
  teacher = dataset.make_teacher()
  rows: list[dict] = []
  for split in splits:
    if not (stage.workdir / f"questions/{split}.jsonl").exists():
      continue
    questions = questions_lib.read(stage.reads(f"questions/{split}.jsonl"))
    rows += teacher_lib.teach(
      questions, teacher, dataset.prompts, samples, judge or teacher_lib.StatedAnswer()
    )
  files.write_jsonl(stage.writes("rationales.jsonl"), rows)
  for reason, count in collections.Counter(row["reason"] for row in rows).most_common():
    print(f"{count:>7,} rationales: {reason}", flush=True)
