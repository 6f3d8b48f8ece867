"""Rationale as query: silver passages for the student, candidates for the reranker (section 3.2).

A rationale names what a question only hints at, so BM25 finds by it the passages that hold the
knowledge. At answering time there is no rationale: the reranker learns to order, from the question
alone, the candidates that either query finds, as BM25 orders them by the rationale.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from kard_jax.core import files
from kard_jax.prompts import Prompts
from kard_jax.questions import Question
from kard_jax.retrieval import bm25
from kard_jax.retrieval.index import Index, check_corpus
from kard_jax.retrieval.passages import Passages

T = TypeVar("T")
Row = dict[str, Any]


def ground(
  index: Index,
  passages: Passages,
  questions: Iterable[Question],
  rationales: Iterable[Mapping[str, Any]],
  prompts: Prompts,
  *,
  silver: int = 10,
  candidates: int = 32,
  batch: int = 256,
  source: str = "rationales",
) -> Iterator[tuple[Row, Row]]:
  """Yields a `silver` row and a `candidates` row for each kept rationale, in their order.

  The silver row is `{"question_id", "sample", "passages": [{"id", "score"}]}`, best first. The
  candidates row has the passages that rationale and question find, `{"id", "score", "from"}`: every
  score is under the rationale, best first, ties in passage order; one that both find stands once,
  as from the "rationale". A question's passage without a word of the rationale has score 0.

  Args:
    index: of `passages`.
    passages: the knowledge base.
    questions: all that rationales may speak of.
    rationales: rows of rationales.jsonl, read as they are needed; those not kept are passed over.
    prompts: makes the two queries.
    silver: passages in a silver row, at most.
    candidates: passages of each of the two sides, at most (paper's code: 32).
    batch: rationales scored at once.
    source: where the rationales come from, for messages.

  Raises:
    InputError: a rationale is for an unknown question (with its row, counted from 1), or the index
      is of other passages.
  """
  for name, value in (("silver", silver), ("candidates", candidates), ("batch", batch)):
    _at_least_one(name, value)
  check_corpus(index, passages)
  known = {question.id: question for question in questions}
  for rows in _batched(_kept(rationales, known, source), batch):
    asked = [known[row["question_id"]] for row in rows]
    by_rationale = [
      prompts.rationale_query(question, row["rationale"])
      for question, row in zip(asked, rows, strict=True)
    ]
    hits = bm25.top_k(index, by_rationale, max(silver, candidates))
    # Rationales of one question stand together, so most of a batch asks the same few questions.
    unique = {question.id: question for question in asked}
    place = {id: number for number, id in enumerate(unique)}
    by_question = bm25.top_k(
      index, [prompts.question_query(question) for question in unique.values()], candidates
    ).ids_BxK[[place[question.id] for question in asked]]
    rescored = bm25.rescore(index, by_rationale, by_question)
    for number, row in enumerate(rows):
      head = {"question_id": row["question_id"], "sample": row["sample"]}
      ids, scores = hits.ids_BxK[number], hits.scores_BxK[number]
      merged = _merge(
        (ids[:candidates], scores[:candidates]), (by_question[number], rescored[number])
      )
      yield (
        {**head, "passages": _listed(passages, ids[:silver], scores[:silver])},
        {
          **head,
          "passages": [
            {"id": passages.ids[position], "score": _short(score), "from": side}
            for position, score, side in merged
          ],
        },
      )


def retrieve(
  index: Index,
  passages: Passages,
  questions: Iterable[Question],
  prompts: Prompts,
  *,
  k: int = 10,
  batch: int = 256,
) -> Iterator[Row]:
  """Yields `{"question_id", "passages": [{"id", "score"}]}`: BM25 by the question, best first.

  Args:
    index: of `passages`.
    passages: the knowledge base.
    questions: read as they are needed.
    prompts: makes the query.
    k: passages in a row, at most; fewer where fewer share a word with the question.
    batch: questions scored at once.

  Raises:
    InputError: the index is of other passages.
  """
  _at_least_one("k", k)
  _at_least_one("batch", batch)
  check_corpus(index, passages)
  for asked in _batched(questions, batch):
    hits = bm25.top_k(index, [prompts.question_query(question) for question in asked], k)
    for question, ids, scores in zip(asked, *hits, strict=True):
      yield {"question_id": question.id, "passages": _listed(passages, ids, scores)}


def _kept(
  rationales: Iterable[Mapping[str, Any]], known: Mapping[str, Question], source: str
) -> Iterator[Mapping[str, Any]]:
  for number, row in enumerate(rationales, 1):
    if row["question_id"] not in known:
      raise files.InputError(
        f"{source}:{number}: a rationale for the question {row['question_id']!r}, which is not"
        " among the questions; make questions and rationales anew, or leave the row out"
      )
    if row["kept"]:
      yield row


def _merge(
  by_rationale: tuple[np.ndarray, np.ndarray], by_question: tuple[np.ndarray, np.ndarray]
) -> list[tuple[int, np.float32, str]]:
  """(position, score, side) of the passages of both sides, each once, best first."""
  merged: dict[int, tuple[int, np.float32, str]] = {}
  for (ids, scores), side in ((by_rationale, "rationale"), (by_question, "question")):
    for position, score in zip(ids.tolist(), scores, strict=True):
      if position >= 0:
        merged.setdefault(position, (position, score, side))
  return sorted(merged.values(), key=lambda entry: (-entry[1], entry[0]))


def _listed(passages: Passages, ids: np.ndarray, scores: np.ndarray) -> list[Row]:
  return [
    {"id": passages.ids[position], "score": _short(score)}
    for position, score in zip(ids.tolist(), scores, strict=True)
    if position >= 0
  ]


def _short(score: np.float32) -> float:
  """The shortest decimal that is this float32 when read again: files stay small and exact."""
  return float(str(score))


def _batched(items: Iterable[T], size: int) -> Iterator[Sequence[T]]:
  iterator = iter(items)
  while batch := list(itertools.islice(iterator, size)):
    yield batch


def _at_least_one(name: str, value: int) -> None:
  if value < 1:
    raise files.InputError(f"{name}: at least 1 is needed, not {value}")
