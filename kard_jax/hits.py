"""How often retrieval finds the passage that is wanted: hit@k, before and after reranking.

Wanted are a question's gold passages or, where no question of the dataset names any, the first
passage of each of its silver lists (paper, section 3.2: what a rationale finds).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kard_jax.core.files import InputError
from kard_jax.questions import Question
from kard_jax.statistics import wilson

Row = dict[str, Any]

SILVER = "silver"  # what `rankings` calls the ranking that is read from the silver rows

RANKINGS: Mapping[str, str] = {
  "bm25": "kard_bm25",
  "reranker": "kard_reranker",
  "rationale": SILVER,
}
"""Where each retrieval figure is read: in the predictions of a method, or in the silver rows."""

HITS = (1, 3, 10)


def retrieval(
  questions: Sequence[Question],
  predictions: Mapping[str, Sequence[Row]],
  *,
  rankings: Mapping[str, str] | None = None,
  silver: Sequence[Row] = (),
  silver_questions: Sequence[Question] | None = None,
  silver_depth: int | None = None,
) -> dict[str, Row]:
  """The figures of each ranking; for the arguments see `scorecard.make`.

  Returns:
    name -> `{"hit@k": fraction, "intervals": {"hit@k": [low, high]}, "n", "reference", "source",
    "before"}`.
    Intervals (Wilson) are of one query a question; those of rationales, several a question and so
    not independent, are absent. `before` has the hits and intervals of the same queries before a
    reranker put the candidates in order: None where the rows of a reranker do not record that,
    absent where nothing reranks. A ranking without gold or silver to compare with is left out.

  Raises:
    InputError: `rankings` names a method that was not run.
  """
  sources = {**predictions, **({SILVER: silver} if silver else {})}
  if rankings is None:
    rankings = {name: source for name, source in RANKINGS.items() if source in sources}
    known = set(rankings.values())
    rankings |= {m: m for m, rows in predictions.items() if m not in known and _reranked(rows)}
  card: dict[str, Row] = {}
  for name, source in rankings.items():
    if source not in sources:
      raise InputError(
        f"the ranking {name!r} is read from {source!r}, which is not here; there are: "
        f"{', '.join(sources)}"
      )
    if source == SILVER:
      # Silver compared with itself would say 100 %: without gold there is nothing to report.
      wanted = {q.id: set(q.gold) for q in silver_questions or questions if q.gold}
      found = _hits(silver, "passages", wanted, silver_depth)
      reference = "gold"
    else:
      wanted, reference = references(questions, silver)
      rows = predictions[source]
      found = _hits(rows, "retrieved", wanted, max(HITS))  # so many are recorded, or all there were
      if name == "reranker" or _reranked(rows):
        found["before"] = _before(rows, wanted)
    if found["n"]:
      card[name] = found | {"reference": reference, "source": source}
  return card


def _reranked(rows: Sequence[Row]) -> bool:
  return any("retrieved_before" in row for row in rows)


def _before(rows: Sequence[Row], wanted: Mapping[str, set[str]]) -> Row | None:
  """As `_hits`; None unless each row has its list, so that both speak of the same queries."""
  if not all("retrieved_before" in row for row in rows):
    return None
  return _hits(rows, "retrieved_before", wanted, max(HITS))


def _hits(
  rows: Sequence[Row], field: str, wanted: Mapping[str, set[str]], depth: int | None
) -> Row:
  lists = [([p["id"] for p in row[field]], row["question_id"]) for row in rows]
  depth = depth or max((len(ids) for ids, _ in lists), default=0)
  lists = [(ids, name) for ids, name in lists if name in wanted]
  n = len(lists)
  if not n:
    return {"n": 0}
  figures = hit_at_k([ids for ids, _ in lists], [wanted[name] for _, name in lists], depth)
  row: Row = figures | {"n": n}
  if len({name for _, name in lists}) == n:
    row["intervals"] = {
      k: None if f is None else list(wilson(round(f * n), n)) for k, f in figures.items()
    }
  return row


def references(
  questions: Sequence[Question], silver: Sequence[Row]
) -> tuple[dict[str, set[str]], str]:
  """The passages that a ranking should find: gold, or the first silver ones if none has gold.

  Returns:
    their ids, by question; and "gold" or "silver".
  """
  gold = {q.id: set(q.gold) for q in questions if q.gold}
  if gold:
    return gold, "gold"
  ids = {q.id for q in questions}
  first: dict[str, set[str]] = {}
  for row in silver:
    if row["question_id"] in ids and row["passages"]:
      first.setdefault(row["question_id"], set()).add(row["passages"][0]["id"])
  return first, "silver"


def hit_at_k(
  rankings: Sequence[Sequence[str]], references: Sequence[set[str]], depth: int
) -> dict[str, float | None]:
  """How often one of the wanted passages is among the first k, for each k of `HITS`.

  Args:
    rankings: for each query the ids of its passages, best first; may be short or empty.
    references: for each query the ids that count as found.
    depth: where the rankings were cut.

  Returns:
    `{"hit@k": fraction}`; None where k lies below the cut, so that lists which were stored short do
    not pass for a poor retriever (unless all were found above it).
  """
  ranks = [
    next((rank for rank, name in enumerate(ranking, 1) if name in wanted), math.inf)
    for ranking, wanted in zip(rankings, references, strict=True)
  ]
  hits = {k: sum(rank <= k for rank in ranks) / len(ranks) for k in HITS}
  return {f"hit@{k}": hit if k <= depth or hit == 1 else None for k, hit in hits.items()}
