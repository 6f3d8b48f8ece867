"""What the report's script reads: figures and outcomes at once, and texts in parts, as needed.

A run of a thousand questions, nine methods and five samples has tens of megabytes of rationales and
passages. They stand in blocks of JSON of their own, which the script leaves alone until a question
of theirs is opened or searched. Passages stand once, whichever questions and runs name them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from kard_jax import hits, ranking
from kard_jax.questions import Question
from kard_jax.retrieval.passages import Passage

Row = Mapping[str, Any]

QUESTIONS_A_PART = 32
PASSAGES_A_PART = 256


class Run(NamedTuple):
  """One work directory's score card, and what it is made from.

  Attributes:
    name: what the run is called beside others.
    card: what `scorecard.make` returned.
    questions: the questions it is about.
    predictions: for each method its rows, in the order of `questions`.
    passage: gives a passage by its id; None shows ids alone. An id that it does not know (it raises
      KeyError or ValueError, as InputError is) is shown without text.
    silver: silver rows; where no question names a gold passage, their first passages stand in.
    reranking: rows of `ranking.read`: a question shows the rankings of its first list, of one that
      is compared with gold passages if there is one.
  """

  name: str
  card: Mapping[str, Any]
  questions: Sequence[Question]
  predictions: Mapping[str, Sequence[Row]]
  passage: Callable[[str], Passage] | None = None
  silver: Sequence[dict[str, Any]] = ()
  reranking: Sequence[Row] = ()


def blocks(
  runs: Sequence[Run], across: Any = None, *, ranked: int = 10, excerpt: int = 1200
) -> dict[str, Any]:
  """JSON values by the id of the block they stand in.

  Args:
    runs: one or more.
    across: figures of several runs together, as `comparison.across` makes them; None for one.
    ranked: how many passages of each ranking are listed.
    excerpt: how many characters of a passage are kept; a longer one ends in an ellipsis.

  Returns:
    `data`, what is needed at once; `run-<r>-<i>`, the texts of the i-th `QUESTIONS_A_PART`
    questions of a run; and `passages-<i>`, `[id, title, text]` of so many passages, which
    everything else names by position.
  """
  library = _Library(excerpt)
  references = [hits.references(run.questions, run.silver) for run in runs]
  result: dict[str, Any] = {
    "data": {
      "runs": [_run(run, *found) for run, found in zip(runs, references, strict=True)],
      "across": across,
      "questions_a_part": QUESTIONS_A_PART,
      "passages_a_part": PASSAGES_A_PART,
    }
  }
  for r, (run, (wanted, _)) in enumerate(zip(runs, references, strict=True)):
    lists = _lists(run.reranking)
    for i, places in enumerate(_batches(range(len(run.questions)), QUESTIONS_A_PART)):
      result[f"run-{r}-{i}"] = [_texts(run, at, wanted, lists, library, ranked) for at in places]
  for i, texts in enumerate(_batches(library.texts, PASSAGES_A_PART)):
    result[f"passages-{i}"] = texts
  return result


def _batches(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
  return [items[start : start + size] for start in range(0, len(items), size)]


class _Library:
  """Passages, each once, by position."""

  def __init__(self, excerpt: int):
    self.texts: list[tuple[str, str, str]] = []
    self._excerpt = excerpt
    self._positions: dict[tuple[str, str, str], int] = {}
    self._known: dict[tuple[int, str], int] = {}

  def position(self, name: str, run: Run) -> int:
    key = (id(run), name)
    if key not in self._known:
      entry = (name, *_text(name, run.passage, self._excerpt))
      if entry not in self._positions:
        self._positions[entry] = len(self.texts)
        self.texts.append(entry)
      self._known[key] = self._positions[entry]
    return self._known[key]


def _text(name: str, passage: Callable[[str], Passage] | None, excerpt: int) -> tuple[str, str]:
  if passage is None:
    return "", ""
  try:
    found = passage(name)
  except (KeyError, ValueError):
    return "", ""
  cut = len(found.text) > excerpt
  return found.title, found.text[:excerpt] + "…" if cut else found.text


def _run(run: Run, wanted: Mapping[str, set[str]], reference: str) -> dict[str, Any]:
  """A run's figures, and of each question what filters and the list need."""
  card = run.card
  return {
    "name": run.name,
    "title": card["title"],
    "about": card["questions"],
    "provenance": card["provenance"],
    "sweep": card["sweep"],
    "comparisons": card["comparisons"],
    "reference": reference if wanted else None,
    # Lists, because the keys of a JavaScript object do not keep their order if they are numbers.
    "methods": [
      {"name": name, **row, **_outcomes(run.predictions[name], wanted)}
      for name, row in card["methods"].items()
    ],
    "retrieval": [{"name": name, **row} for name, row in card["retrieval"].items()],
    "reranking": [
      {
        "reference": compared_with,
        "lists": some["lists"],
        "questions": some["questions"],
        "rankings": [{"name": name, **row} for name, row in some["rankings"].items()],
        "differences": [
          {"name": name, "figures": figures} for name, figures in some["differences"].items()
        ],
      }
      for compared_with, some in card["reranking"].items()
    ],
    "questions": [{"id": q.id, "question": q.question, "label": q.label} for q in run.questions],
  }


def _outcomes(rows: Sequence[Row], wanted: Mapping[str, set[str]]) -> dict[str, Any]:
  """Per question: the answer, and the rank of the wanted passage (0: not found) among how many."""
  reads = any(row["passages"] or row["retrieved"] for row in rows)

  def rank(row: Row) -> int | None:
    if row["question_id"] not in wanted:
      return None
    ids = [passage["id"] for passage in row["retrieved"]] or row["passages"]
    found = wanted[row["question_id"]]
    return next((at for at, name in enumerate(ids, 1) if name in found), 0)

  return {
    "answers": [row["answer"] for row in rows],
    "ranks": [rank(row) for row in rows] if reads and wanted else None,
    "read": [len(row["passages"]) for row in rows] if reads and wanted else None,
  }


def _lists(rows: Sequence[Row]) -> dict[str, Row]:
  """The list whose rankings a question shows, by question."""
  found: dict[str, Row] = {}
  for row in sorted(rows, key=lambda row: row["reference"] != "gold"):
    if len(row.get("passages", ())) == len(row["gains"]) > 0:  # figures alone need no ids
      found.setdefault(row["question_id"], row)
  return found


def _rankings(run: Run, row: Row, ranked: int) -> list[tuple[str, list[Row]]]:
  """Labels and passages, best first, BM25's list before others; equal scores rank nothing."""
  shown = run.card["reranking"][row["reference"]]["rankings"]
  found: list[tuple[str, list[Row]]] = []
  for name in sorted(row["scores"], key=lambda name: name != ranking.BASELINE):
    scores = row["scores"][name]
    if len(set(scores)) == 1 < len(scores):
      continue
    pairs = sorted(zip(row["passages"], scores, strict=True), key=lambda pair: -pair[1])
    best: list[Row] = [{"id": id, "score": score} for id, score in pairs[:ranked]]
    found.append((shown[name]["label"], best))
  return found


def _texts(
  run: Run,
  at: int,
  wanted: Mapping[str, set[str]],
  lists: Mapping[str, Row],
  library: _Library,
  ranked: int,
) -> dict[str, Any]:
  q = run.questions[at]
  place = lambda name: library.position(name, run)
  listed = lambda found: [[place(p["id"]), _rounded(p.get("score"))] for p in found[:ranked]]

  def answer(row: Row) -> dict[str, Any]:
    return {
      "samples": _grouped(row["samples"]),
      "passages": list(map(place, row["passages"])),
      "retrieved": listed(row["retrieved"]),
      "before": listed(row["retrieved_before"]) if "retrieved_before" in row else None,
      "cost": {key: _rounded(row.get(key)) for key in ("seconds", "prompt_tokens", "cut_tokens")},
    }

  return {
    "options": q.options,
    "wanted": list(map(place, sorted(wanted.get(q.id, ())))),
    "lists": [
      {"label": label, "list": listed(best)}
      for label, best in (_rankings(run, lists[q.id], ranked) if q.id in lists else ())
    ],
    "answers": [answer(run.predictions[method][at]) for method in run.card["methods"]],
  }


def _grouped(samples: Sequence[Row]) -> list[tuple[int | None, str, int]]:
  """`(answer, rationale, how many)`: what several samples say alike stands once."""
  key = lambda sample: (sample["answer"], sample["rationale"])
  counts: dict[tuple[int | None, str], int] = {}
  for sample in samples:
    counts[key(sample)] = counts.get(key(sample), 0) + 1
  return [(answer, rationale, n) for (answer, rationale), n in counts.items()]


def _rounded(value: Any) -> float | None:
  """Four significant digits: enough to read; None for what is not a number or not finite."""
  if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
    return None
  return float(f"{value:.4g}")
