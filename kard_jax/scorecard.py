"""The score card: every method on the same questions, with its uncertainty (paper, section 4).

Accuracy with an interval for each method, paired comparisons of every two, what votes and their
shares are worth, what a question costs, hit@k for each way to rank passages, and where the figures
come from. Nothing here needs JAX; `scorecard_table` prints the figures, `report` shows them as a
page to browse, and docs/scorecard.md explains each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kard_jax import hits, measures, statistics
from kard_jax.core import files
from kard_jax.core.files import InputError
from kard_jax.questions import Question

Row = dict[str, Any]

ABOUT: Mapping[str, tuple[str, str]] = {
  "fewshot": ("Few-shot", "Not trained: reads solved examples, answers without a rationale."),
  "fewshot_cot": ("Few-shot CoT", "Not trained: reads solved examples with their rationales."),
  "fewshot_passages": ("Few-shot, BM25", "Few-shot, reading what BM25 finds by the question."),
  "fewshot_cot_passages": (
    "Few-shot CoT, BM25",
    "Few-shot with rationales, reading what BM25 finds by the question.",
  ),
  "ft": ("Fine-tuning", "Trained on answers alone: no rationale, no passage."),
  "kaft": ("Fine-tuning, BM25", "Trained on answers, reading what BM25 finds by the question."),
  "rd": ("No knowledge", "Reasoning distillation: trained on rationales, reads no passage."),
  "dapt_rd": ("DAPT, no knowledge", "Pre-trained on the passages first, then trained as above."),
  "kard_bm25": ("KARD, BM25", "Reads what BM25 ranks first, with the question as its query."),
  "kard_reranker": (
    "KARD, reranker",
    "Reads what the reranker ranks first among BM25's candidates.",
  ),
  "kard_silver": ("KARD, silver", "The oracle: reads what BM25 finds by a teacher's rationale."),
  "bm25": ("BM25 by question", "The query is the question: all that is known when answering."),
  "reranker": ("Reranker", "BM25's candidates, ordered anew from the question alone."),
  "rationale": ("BM25 by rationale", "The query is a teacher's rationale: how silver is found."),
  "random": ("Random order", "What chance makes of the same candidates."),
}
"""What the methods and rankings of the paper are called, and what they are, in one line each."""


def read_silver(path: files.PathLike) -> list[Row]:
  """Reads silver rows, `{"question_id", "sample", "passages": [{"id", "score"}]}`.

  Raises:
    InputError: the file is missing, or a row is broken or repeats question and sample.
  """
  rows: dict[tuple[str, int], Row] = {}
  for line, row in files.read_jsonl(path):
    where = f"{path}:{line}"
    name, sample, passages = (row.get(field) for field in ("question_id", "sample", "passages"))
    if not isinstance(name, str) or not isinstance(sample, int) or not isinstance(passages, list):
      raise InputError(
        f'{where}: "question_id", "sample" and "passages" are needed: a text, a whole '
        "number and a list"
      )
    for passage in passages:
      if not isinstance(passage, dict) or not isinstance(passage.get("id"), str):
        raise InputError(f'{where}: a passage is {{"id", "score"}}, not {passage!r}')
    if (name, sample) in rows:
      raise InputError(f"{where}: question {name!r} has a sample {sample} already; keep one")
    rows[name, sample] = row
  return list(rows.values())


def make(
  questions: Sequence[Question],
  predictions: Mapping[str, Sequence[Row]],
  *,
  rankings: Mapping[str, str] | None = None,
  silver: Sequence[Row] = (),
  silver_questions: Sequence[Question] | None = None,
  silver_depth: int | None = None,
  reranking: Mapping[str, Mapping[str, Any]] | None = None,
  about: Mapping[str, tuple[str, str]] | None = None,
  title: str = "KARD",
  seed: int | None = None,
  sweep: tuple[str, Any] | None = None,
  inputs: Mapping[str, str] | None = None,
) -> dict[str, Any]:
  """Makes the score card, a JSON object whose rates are fractions between 0 and 1.

  Args:
    questions: what was answered.
    predictions: for each method its rows, one for each question, as `answer.read` gives them.
    rankings: which retrieval figures to give, and the method (or `hits.SILVER`) each is read from;
      None gives those of `hits.RANKINGS` that were run, and other methods that rerank.
    silver: silver rows, of any questions. Those of `silver_questions` give the rationale's hit@k,
      one query a row. Where no question names a gold passage, the first passage of each of their
      silver rows stands in for it.
    silver_questions: the questions whose rationales are ranked, if they are of another split.
    silver_depth: how many passages a silver row could hold; None takes the longest row.
    reranking: what `ranking.summarise` made of lists of candidates; with it, `predictions` may be
      empty.
    about: label and description for methods and rankings, before those of `ABOUT`.
    title: what was run, for the head of the table and the report.
    seed: the run's seed, noted; bootstraps are drawn from it too (0 where it is None).
    sweep: where the run is one of several, what is varied and its value here.
    inputs: the SHA-256 of what was read, by its name in the work directory; noted.

  Returns:
    `{"title", "questions": {"n", "options": [how many], "chance"}, "methods": {name: {"label",
    "description", "accuracy", "interval", "n", "wrong", "unparsed", "unparsed_samples", "votes",
    "calibration", "cost"}}, "comparisons": [...], "retrieval": {name: {"label", "description",
    "hit@1", "hit@3", "hit@10", "n", "reference", ...}}, "reranking": {reference: {"lists",
    "questions", "rankings", "differences"}}, "sweep": {"name", "value"} or None, "provenance":
    {"seed", "resamples", "inputs"}}`. Unparsed answers count as wrong in the accuracy, and stand
    apart in `wrong` and `unparsed`. What the rows do not record is None. For `votes`,
    `calibration`, `cost` and `comparisons` see `measures`, for `retrieval` see `hits.retrieval`.

  Raises:
    InputError: there is nothing to score, methods answered different questions, or `rankings` names
      a method that was not run.
  """
  if not questions or not (predictions or reranking):
    raise InputError(
      "a score card needs questions, and the predictions of one method or more, or ranked lists"
    )
  _check_same_questions({q.id for q in questions}, predictions)
  names = {**ABOUT, **(about or {})}
  drawn = seed or 0
  found = hits.retrieval(
    questions,
    predictions,
    rankings=rankings,
    silver=silver,
    silver_questions=silver_questions,
    silver_depth=silver_depth,
  )
  return {
    "title": title,
    "questions": {
      "n": len(questions),
      "options": sorted({len(q.options) for q in questions}),
      "chance": sum(1 / len(q.options) for q in questions) / len(questions),
    },
    "methods": {
      method: _named(method, names)
      | measures.accuracy(rows)
      | {
        "votes": measures.votes(rows, seed=drawn),
        "calibration": measures.calibration(rows),
        "cost": measures.cost(rows),
      }
      for method, rows in predictions.items()
    },
    "comparisons": measures.comparisons(predictions, seed=drawn),
    "retrieval": {name: _named(name, names) | row for name, row in found.items()},
    "reranking": _reranking(reranking or {}, names),
    "sweep": None if sweep is None else {"name": sweep[0], "value": sweep[1]},
    "provenance": {
      "seed": seed,
      "resamples": statistics.RESAMPLES,
      "inputs": dict(inputs or {}),
    },
  }


def _check_same_questions(ids: set[str], predictions: Mapping[str, Sequence[Row]]) -> None:
  for method, rows in predictions.items():
    answered = {row["question_id"] for row in rows}
    if answered != ids or len(rows) != len(ids):
      raise InputError(
        f"method {method!r} answered other questions: {len(answered - ids)} that are not scored, "
        f"{len(ids - answered)} missing, {len(rows) - len(answered)} twice; methods are compared "
        "on the same questions"
      )


def _reranking(
  cards: Mapping[str, Mapping[str, Any]], names: Mapping[str, tuple[str, str]]
) -> dict[str, Any]:
  """The rankings' figures with labels."""
  return {
    reference: {
      **card,
      "rankings": {
        name: _named(name, names) | {"figures": figures}
        for name, figures in card["rankings"].items()
      },
    }
    for reference, card in cards.items()
  }


def _named(name: str, names: Mapping[str, tuple[str, str]]) -> Row:
  label, description = names.get(name, (name, ""))
  return {"label": label, "description": description}
