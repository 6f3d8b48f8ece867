"""Rationale as query: silver passages for the student, candidates for the reranker (section 3.2).

A rationale names what a question only hints at, so BM25 finds by it the passages that hold the
knowledge. At answering time there is no rationale: the reranker learns to order, from the question
alone, the candidates that either query finds, as BM25 orders them by the rationale.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

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
  check_numbers(silver=silver, candidates=candidates, batch=batch)
  check_corpus(index, passages)
  for some in batched(queries(questions, rationales, prompts, source=source), batch):
    yield from find(index, passages, some, silver=silver, candidates=candidates)


class Queries(NamedTuple):
  """What is asked for a rationale.

  Attributes:
    question_id, sample: the rationale's.
    by_rationale: the query of the rationale.
    by_question: the query of its question.
  """

  question_id: str
  sample: int
  by_rationale: str
  by_question: str


def queries(
  questions: Iterable[Question],
  rationales: Iterable[Mapping[str, Any]],
  prompts: Prompts,
  *,
  source: str = "rationales",
) -> Iterator[Queries]:
  """Yields the queries of each kept rationale, in their order; arguments and errors of `ground`."""
  known = {question.id: question for question in questions}
  for row in _kept(rationales, known, source):
    question = known[row["question_id"]]
    yield Queries(
      question.id,
      row["sample"],
      prompts.rationale_query(question, row["rationale"]),
      prompts.question_query(question),
    )


def find(
  index: Index, passages: Passages, some: Sequence[Queries], *, silver: int, candidates: int
) -> Iterator[tuple[Row, Row]]:
  """Yields the two rows of each of some rationales, whose queries are asked at once."""
  by_rationale = [row.by_rationale for row in some]
  hits = bm25.top_k(index, by_rationale, max(silver, candidates))
  # Rationales of one question stand together, so most of a batch asks the same few questions.
  unique = {row.question_id: row.by_question for row in some}
  place = {id: number for number, id in enumerate(unique)}
  by_question = bm25.top_k(index, list(unique.values()), candidates).ids_BxK[
    [place[row.question_id] for row in some]
  ]
  rescored = bm25.rescore(index, by_rationale, by_question)
  for number, row in enumerate(some):
    head = {"question_id": row.question_id, "sample": row.sample}
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
  check_numbers(k=k, batch=batch)
  check_corpus(index, passages)
  for asked in batched(((q.id, prompts.question_query(q)) for q in questions), batch):
    yield from look_up(index, passages, asked, k=k)


def look_up(
  index: Index, passages: Passages, asked: Sequence[tuple[str, str]], *, k: int
) -> Iterator[Row]:
  """Yields the rows of some questions, (id, query), which are asked at once."""
  hits = bm25.top_k(index, [query for _, query in asked], k)
  for (id, _), ids, scores in zip(asked, *hits, strict=True):
    yield {"question_id": id, "passages": _listed(passages, ids, scores)}


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


def batched(items: Iterable[T], size: int) -> Iterator[Sequence[T]]:
  """Yields lists of so many items; the last may be shorter."""
  iterator = iter(items)
  while batch := list(itertools.islice(iterator, size)):
    yield batch


def check_numbers(**numbers: int) -> None:
  """Makes sure that each is 1 at least.

  Raises:
    InputError: one is not.
  """
  for name, value in numbers.items():
    if value < 1:
      raise files.InputError(f"{name}: at least 1 is needed, not {value}")
