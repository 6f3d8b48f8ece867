"""The score card: every method on the same questions, with its uncertainty (paper, section 4).

Accuracy with an interval for each method, hit@k for each way to rank passages, and where the
figures come from. Nothing here needs JAX; `report` shows the same figures as a page to browse.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from kard_jax.core import files
from kard_jax.core.files import InputError
from kard_jax.questions import Question

Row = dict[str, Any]

ABOUT: Mapping[str, tuple[str, str]] = {
  "ft": ("Fine-tuning", "Trained on answers alone: no rationale, no passage."),
  "kaft": ("Fine-tuning, BM25", "Trained on answers, reading what BM25 finds by the question."),
  "rd": ("No knowledge", "Reasoning distillation: trained on rationales, reads no passage."),
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

SILVER = "silver"  # what `rankings` calls the ranking that is read from the silver rows

RANKINGS: Mapping[str, str] = {
  "bm25": "kard_bm25",
  "reranker": "kard_reranker",
  "rationale": SILVER,
}
"""Where each retrieval figure is read: in the predictions of a method, or in the silver rows."""

REFERENCES: Mapping[str, str] = {"rationale": "By rationales", "gold": "By gold passages"}
FIGURES: Mapping[str, str] = {
  "hit@1": "hit@1",
  "hit@3": "hit@3",
  "hit@10": "hit@10",
  "ndcg@10": "nDCG@10",
  "kl": "KL",
}
_INTERVAL = "ndcg@10"  # the figure whose interval the table has room for

HITS = (1, 3, 10)
_Z = 1.959963984540054  # the 97.5 % point of the normal distribution: a 95 % interval


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
  inputs: Mapping[str, str] | None = None,
) -> dict[str, Any]:
  """Makes the score card, a JSON object whose figures are fractions between 0 and 1.

  Args:
    questions: what was answered.
    predictions: for each method its rows, one for each question, as `answer.read` gives them.
    rankings: which retrieval figures to give, and the method (or `SILVER`) each is read from; None
      gives those of `RANKINGS` that were run.
    silver: silver rows, of any questions. Those of `silver_questions` give the rationale's hit@k,
      one query a row. Where no question names a gold passage, the first passage of each of their
      silver rows stands in for it.
    silver_questions: the questions whose rationales are ranked, if they are of another split.
    silver_depth: how many passages a silver row could hold; None takes the longest row.
    reranking: what `ranking.summarise` made of lists of candidates; with it, `predictions` may be
      empty.
    about: label and description for methods and rankings, before those of `ABOUT`.
    title: what was run, for the head of the table and the report.
    seed: the run's seed, noted.
    inputs: the SHA-256 of what was read, by its name in the work directory; noted.

  Returns:
    `{"title", "questions": {"n", "options": [how many], "chance"}, "methods": {name: {"label",
    "description", "accuracy", "interval", "n", "unparsed", "unparsed_samples"}}, "retrieval":
    {name: {"label", "description", "hit@1", "hit@3", "hit@10", "n", "reference"}}, "reranking":
    {reference: {"lists", "questions", "rankings", "differences"}}, "provenance": {"seed",
    "inputs"}}`. Unparsed answers count as wrong. A rationale's hit@k is None where its rows were
    cut above k; a ranking without gold or silver to compare with is left out.

  Raises:
    InputError: there is nothing to score, methods answered different questions, or `rankings` names
      a method that was not run.
  """
  if not questions or not (predictions or reranking):
    raise InputError(
      "a score card needs questions, and the predictions of one method or more, or ranked lists"
    )
  ids = {q.id for q in questions}
  for method, rows in predictions.items():
    answered = {row["question_id"] for row in rows}
    if answered != ids or len(rows) != len(ids):
      raise InputError(
        f"method {method!r} answered other questions: {len(answered - ids)} that are not scored, "
        f"{len(ids - answered)} missing, {len(rows) - len(answered)} twice; methods are compared "
        "on the same questions"
      )
  names = {**ABOUT, **(about or {})}
  return {
    "title": title,
    "questions": {
      "n": len(questions),
      "options": sorted({len(q.options) for q in questions}),
      "chance": sum(1 / len(q.options) for q in questions) / len(questions),
    },
    "methods": {m: _named(m, names) | _accuracy(rows) for m, rows in predictions.items()},
    "retrieval": _retrieval(
      questions, predictions, rankings, silver, silver_questions, silver_depth, names
    ),
    "reranking": _reranking(reranking or {}, names),
    "provenance": {"seed": seed, "inputs": dict(inputs or {})},
  }


def wilson(successes: int, n: int) -> tuple[float, float]:
  """The 95 % Wilson score interval of a fraction.

  Unlike the usual plus-minus it stays within 0 and 1 and is right for few questions (Wilson 1927).

  Raises:
    ValueError: n is not positive, or successes are not between 0 and n.
  """
  if not 0 <= successes <= n or n < 1:
    raise ValueError(f"an interval needs 0 <= successes <= n and n > 0: {successes=}, {n=}")
  p = successes / n
  middle = p + _Z * _Z / (2 * n)
  half = _Z * math.sqrt(p * (1 - p) / n + _Z * _Z / (4 * n * n))
  scale = 1 + _Z * _Z / n
  # Exactly 0 and 1 at the ends, where rounding would leave the fraction outside its interval.
  low = 0.0 if successes == 0 else (middle - half) / scale
  high = 1.0 if successes == n else (middle + half) / scale
  return low, high


def _accuracy(rows: Sequence[Row]) -> Row:
  right = sum(row["answer"] == row["label"] for row in rows)
  samples = [sample["answer"] for row in rows for sample in row["samples"]]
  return {
    "accuracy": right / len(rows),
    "interval": list(wilson(right, len(rows))),
    "n": len(rows),
    "unparsed": sum(row["answer"] is None for row in rows) / len(rows),
    "unparsed_samples": samples.count(None) / max(1, len(samples)),
  }


def _retrieval(
  questions: Sequence[Question],
  predictions: Mapping[str, Sequence[Row]],
  rankings: Mapping[str, str] | None,
  silver: Sequence[Row],
  silver_questions: Sequence[Question] | None,
  silver_depth: int | None,
  names: Mapping[str, tuple[str, str]],
) -> dict[str, Row]:
  sources = {**predictions, **({SILVER: silver} if silver else {})}
  if rankings is None:
    rankings = {name: source for name, source in RANKINGS.items() if source in sources}
  card: dict[str, Row] = {}
  for name, source in rankings.items():
    if source not in sources:
      raise InputError(
        f"the ranking {name!r} is read from {source!r}, which is not here; there are: "
        f"{', '.join(sources)}"
      )
    if source == SILVER:
      # Silver compared with itself would say 100 %: without gold there is nothing to report.
      references = {q.id: set(q.gold) for q in silver_questions or questions if q.gold}
      reference = "gold"
      ranked = [(row["question_id"], row["passages"]) for row in silver]
      depth = silver_depth or max(len(row["passages"]) for row in silver)
    else:
      references, reference = _references(questions, silver)
      ranked = [(row["question_id"], row["retrieved"]) for row in predictions[source]]
      depth = max(HITS)  # rows of `answer` hold that many, or all that were found
    lists = [(i, [p["id"] for p in passages]) for i, passages in ranked if i in references]
    if lists:
      hits = hit_at_k([ids for _, ids in lists], [references[i] for i, _ in lists], depth)
      card[name] = _named(name, names) | hits | {"n": len(lists), "reference": reference}
  return card


def _references(
  questions: Sequence[Question], silver: Sequence[Row]
) -> tuple[dict[str, set[str]], str]:
  """The passages that a ranking should find: gold, or the first silver ones if none has gold."""
  gold = {q.id: set(q.gold) for q in questions if q.gold}
  if gold:
    return gold, "gold"
  ids = {q.id for q in questions}
  first: dict[str, set[str]] = {}
  for row in silver:
    if row["question_id"] in ids and row["passages"]:
      first.setdefault(row["question_id"], set()).add(row["passages"][0]["id"])
  return first, "silver"


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


def _named(name: str, names: Mapping[str, tuple[str, str]]) -> Row:
  label, description = names.get(name, (name, ""))
  return {"label": label, "description": description}


def show(card: Mapping[str, Any], console: Console | None = None) -> None:
  """Prints the score card as tables that fit 80 columns; plain text where no colour is wanted."""
  console = console or Console()
  console.print(tables(card, ascii_only=console.options.ascii_only))


def tables(card: Mapping[str, Any], *, ascii_only: bool = False) -> Group:
  """The score card as rich tables: accuracies with bars, and hit@k where there is any."""
  about = card["questions"]
  options = " or ".join(map(str, about["options"]))
  head = f"{about['n']} questions, {options} options, chance {about['chance']:.1%}"
  if card["provenance"]["seed"] is not None:
    head += f", seed {card['provenance']['seed']}"
  methods = _table(ascii_only)
  methods.add_column("Method", max_width=20)
  methods.add_column("Accuracy", justify="right", no_wrap=True)
  methods.add_column("95% interval", justify="right", no_wrap=True)
  methods.add_column("0%       50%     100%", no_wrap=True)
  methods.add_column("Unparsed", justify="right", no_wrap=True)
  for row in card["methods"].values():
    drawn = bar(row["accuracy"], row["interval"], about["chance"], ascii_only=ascii_only)
    low, high = row["interval"]
    methods.add_row(
      Text(row["label"]),
      f"{row['accuracy']:.1%}",
      f"{100 * low:.1f} - {100 * high:.1f}",
      Text(drawn, style="cyan"),
      f"{row['unparsed']:.1%}",
    )
  parts: list[Text | Table] = [Text(f"{card['title']}\n{head}")]
  if card["methods"]:
    parts.append(methods)
  if card["retrieval"]:
    retrieval = _table(ascii_only)
    retrieval.add_column("Passage found", max_width=24)
    for k in HITS:
      retrieval.add_column(f"hit@{k}", justify="right", no_wrap=True)
    retrieval.add_column("Queries", justify="right", no_wrap=True)
    retrieval.add_column("Reference", no_wrap=True)
    for row in card["retrieval"].values():
      hits = [row[f"hit@{k}"] for k in HITS]
      shown = ["-" if hit is None else f"{hit:.1%}" for hit in hits]
      retrieval.add_row(Text(row["label"]), *shown, str(row["n"]), row["reference"])
    parts.append(retrieval)
  for reference, some in card.get("reranking", {}).items():
    parts += _ranked(reference, some, ascii_only)
  return Group(*parts)


def _ranked(reference: str, card: Mapping[str, Any], ascii_only: bool) -> list[Text | Table]:
  """A reference's rankings, a line each; nDCG with its interval, as are differences to BM25."""
  rows = card["rankings"]
  table = _table(ascii_only)
  table.add_column(REFERENCES[reference], max_width=24)
  for figure in FIGURES:
    table.add_column(FIGURES[figure], justify="right", no_wrap=True)
  for row in rows.values():
    table.add_row(Text(row["label"]), *(_cell(figure, row["figures"]) for figure in FIGURES))
  lines = [f"{card['lists']:,} lists of {card['questions']:,} questions; 95 % by question"]
  for name, differences in card["differences"].items():
    for figure in (_INTERVAL, "hit@1"):
      value, (low, high) = differences[figure]["value"], differences[figure]["interval"]
      lines.append(
        f"{rows[name]['label']} less BM25, {FIGURES[figure]}: {100 * value:+.1f} "
        f"({100 * low:+.1f} to {100 * high:+.1f})"
      )
  return [table, Text("\n".join(lines))]


def _cell(figure: str, figures: Mapping[str, Any]) -> str:
  if figure not in figures:
    return "-"
  value, (low, high) = figures[figure]["value"], figures[figure]["interval"]
  if figure == "kl":
    return f"{value:.2f}"
  return f"{value:.1%}" + (f" ({100 * low:.1f} - {100 * high:.1f})" if figure == _INTERVAL else "")


def bar(
  value: float, interval: Sequence[float], chance: float, *, width: int = 21, ascii_only: bool
) -> str:
  """A fraction as a bar of characters, with its interval and a mark at chance.

  Returns:
    `width` characters; the first stands for 0 and the last for 1.
  """
  full, whisker, point, mark, empty = "=-O|." if ascii_only else "━─●┊·"
  place = lambda fraction: min(width - 1, max(0, round(fraction * (width - 1))))
  cells = [empty] * width
  cells[: place(value)] = full * place(value)
  low, high = place(interval[0]), place(interval[1])
  cells[low : high + 1] = whisker * (high + 1 - low)
  cells[place(chance)] = mark
  cells[place(value)] = point
  return "".join(cells)


def _table(ascii_only: bool) -> Table:
  return Table(box=box.ASCII if ascii_only else box.SIMPLE_HEAD, pad_edge=False)
