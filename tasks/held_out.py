"""Lists that a reranker is measured on: a split's rationales' candidates, and gold passages.

A rationale's list is compared with the scores that BM25 gives its candidates under the rationale.
A question that names gold passages is asked of BM25, and what it finds compared with them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from kard_jax.core.files import InputError
from kard_jax.core.provenance import Stage
from kard_jax.questions import Question
from kard_jax.retrieval import bm25
from kard_jax.retrieval import index as index_lib
from kard_jax.retrieval.passages import Passages
from tasks.registry import Dataset
from tasks.workdir import Workdir

_AT_ONCE = 512  # questions


class HeldOut(NamedTuple):
  """A list to be ranked.

  Attributes:
    query: what a reranker reads of the question.
    texts: what it reads of the candidates.
    bm25: scores of the candidates under the question, [C].
    row: what `ranking.read` knows of the list besides scores.
  """

  query: str
  texts: list[str]
  bm25: np.ndarray
  row: dict[str, Any]


def lists(stage: Stage, dataset: Dataset, split: str, candidates: int) -> list[HeldOut]:
  """All lists of a split.

  Args:
    stage: the work directory; the files that are read are recorded.
    dataset: whose prompts.
    split: whose questions.
    candidates: passages by the question, where the reference is gold.

  Raises:
    InputError: a file is missing or wrong, or no question has a kept rationale or a gold passage.
  """
  workdir = Workdir(stage.workdir)
  stage.reads(f"questions/{split}.jsonl")
  stored = Passages(stage.reads("knowledge/passages"))
  index = index_lib.open(stage.reads("knowledge/bm25"), verify=True)
  index_lib.check_corpus(index, stored)
  found = _of_rationales(stage, workdir, dataset, split, stored, index)
  asked = [question for question in workdir.questions(split) if question.gold]
  for start in range(0, len(asked), _AT_ONCE):
    found += _of_gold(asked[start : start + _AT_ONCE], dataset, stored, index, candidates)
  if not found:
    raise InputError(
      f"{workdir.path}: no question of {split} has a kept rationale or a gold passage: there is "
      "nothing to compare a ranking with"
    )
  return found


def _of_rationales(
  stage: Stage,
  workdir: Workdir,
  dataset: Dataset,
  split: str,
  stored: Passages,
  index: index_lib.Index,
) -> list[HeldOut]:
  for name in workdir.splits():
    stage.reads(f"questions/{name}.jsonl")
  stage.reads("rationales.jsonl")
  kept = workdir.kept_rationales(split)
  if not kept:
    return []
  stage.reads("candidates.jsonl")
  known = workdir.candidates()
  result = []
  for question, sample, _ in kept:
    if (question.id, sample) not in known:
      raise InputError(
        f"{workdir.path / 'candidates.jsonl'}: no row for question {question.id!r}, sample "
        f"{sample}; run the ground stage again"
      )
    row = known[question.id, sample]
    positions = row.positions
    query = dataset.prompts.question_query(question)
    result.append(
      HeldOut(
        dataset.prompts.reranker_query(question),
        [dataset.prompts.passage_text(passage) for passage in stored.many(positions.tolist())],
        np.asarray(bm25.rescore(index, [query], positions[None]))[0],
        {
          "question_id": question.id,
          "sample": sample,
          "reference": "rationale",
          "passages": [stored.ids[position] for position in positions],
          "gains": [float(str(score)) for score in row.scores],
        },
      )
    )
  return result


def _of_gold(
  asked: list[Question], dataset: Dataset, stored: Passages, index: index_lib.Index, k: int
) -> list[HeldOut]:
  hits = bm25.top_k(index, [dataset.prompts.question_query(question) for question in asked], k)
  result = []
  for question, ids_K in zip(asked, hits.ids_BxK, strict=True):
    positions = ids_K[ids_K >= 0].tolist()
    passages = stored.many(positions)
    # by place, as BM25 gives equal scores an order
    order = np.arange(len(positions), 0, -1, dtype=np.float32)
    result.append(
      HeldOut(
        dataset.prompts.reranker_query(question),
        [dataset.prompts.passage_text(passage) for passage in passages],
        order,
        {
          "question_id": question.id,
          "sample": None,
          "reference": "gold",
          "passages": [passage.id for passage in passages],
          "gains": [float(passage.id in question.gold) for passage in passages],
        },
      )
    )
  return result
