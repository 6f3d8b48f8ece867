"""The score card in a terminal: tables of 80 columns, in plain text where no colour is wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from kard_jax.hits import HITS

REFERENCES: Mapping[str, str] = {"rationale": "By rationales", "gold": "By gold passages"}
FIGURES: Mapping[str, str] = {
  "hit@1": "hit@1",
  "hit@3": "hit@3",
  "hit@10": "hit@10",
  "ndcg@10": "nDCG@10",
  "kl": "KL",
}
_INTERVAL = "ndcg@10"  # the figure whose interval the table has room for


def show(card: Mapping[str, Any], console: Console | None = None) -> None:
  """Prints the score card as tables that fit 80 columns; plain text where no colour is wanted."""
  console = console or Console()
  console.print(tables(card, ascii_only=console.options.ascii_only))


def tables(card: Mapping[str, Any], *, ascii_only: bool = False) -> Group:
  """The score card as rich tables: accuracies with bars, then what else there is figures of."""
  about = card["questions"]
  options = " or ".join(map(str, about["options"]))
  head = f"{about['n']} questions, {options} options, chance {about['chance']:.1%}"
  if card["provenance"]["seed"] is not None:
    head += f", seed {card['provenance']['seed']}"
  if card.get("sweep"):
    head += f", {card['sweep']['name']} {card['sweep']['value']}"
  parts: list[Text | Table] = [Text(f"{card['title']}\n{head}")]
  if card["methods"]:
    parts.append(_accuracies(card, ascii_only))
  parts += _differences(card, ascii_only)
  parts += _votes_and_costs(card, ascii_only)
  if card["retrieval"]:
    parts.append(_retrieval(card, ascii_only))
  for reference, some in card.get("reranking", {}).items():
    parts += _ranked(reference, some, ascii_only)
  return Group(*parts)


def _accuracies(card: Mapping[str, Any], ascii_only: bool) -> Table:
  table = _table(ascii_only)
  table.add_column("Method", max_width=20)
  table.add_column("Accuracy", justify="right", no_wrap=True)
  table.add_column("95% interval", justify="right", no_wrap=True)
  table.add_column("0%       50%     100%", no_wrap=True)
  table.add_column("Unparsed", justify="right", no_wrap=True)
  for row in card["methods"].values():
    drawn = bar(
      row["accuracy"], row["interval"], card["questions"]["chance"], ascii_only=ascii_only
    )
    low, high = row["interval"]
    table.add_row(
      Text(row["label"]),
      f"{row['accuracy']:.1%}",
      f"{100 * low:.1f} - {100 * high:.1f}",
      Text(drawn, style="cyan"),
      f"{row['unparsed']:.1%}",
    )
  return table


def _differences(card: Mapping[str, Any], ascii_only: bool) -> list[Text | Table]:
  """The best method against each other one; the report has every two."""
  methods = card["methods"]
  if len(methods) < 2:
    return []
  best = max(methods, key=lambda method: methods[method]["accuracy"])
  table = _table(ascii_only)
  table.add_column("Best less", max_width=20)
  table.add_column("Difference", justify="right", no_wrap=True)
  table.add_column("95% interval", justify="right", no_wrap=True)
  table.add_column("Only best", justify="right", no_wrap=True)
  table.add_column("Only other", justify="right", no_wrap=True)
  table.add_column("p", justify="right", no_wrap=True)
  for pair in card["comparisons"]:
    if best not in (pair["a"], pair["b"]):
      continue
    sign, mine, other = (1, "b", "a") if pair["b"] == best else (-1, "a", "b")
    low, high = sorted(sign * end for end in pair["interval"])
    table.add_row(
      Text(methods[pair[other]]["label"]),
      f"{100 * sign * pair['difference'] + 0.0:+.1f}",
      f"{100 * low + 0.0:+.1f} to {100 * high + 0.0:+.1f}",
      str(pair[f"only_{mine}"]),
      str(pair[f"only_{other}"]),
      p_value(pair["p_holm"]),
    )
  note = "same questions: paired bootstrap; exact McNemar, p corrected for all pairs (Holm)"
  return [table, Text(f"Best: {methods[best]['label']}; {note}")]


def p_value(p: float) -> str:
  """Two significant digits are enough, and below 0.001 none is needed."""
  return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def _votes_and_costs(card: Mapping[str, Any], ascii_only: bool) -> list[Text | Table]:
  """One line a method: its votes, their calibration, and what a question costs."""
  methods = card["methods"].values()
  if not any(row["votes"] or any(v is not None for v in row["cost"].values()) for row in methods):
    return []
  table = _table(ascii_only)
  table.add_column("Votes and cost", max_width=20)
  for name in ("1 sample", "Agree", "ECE", "Read", "Cut", "Written", "s"):
    table.add_column(name, justify="right", no_wrap=True)
  for row in methods:
    votes, calibration, cost = row["votes"], row["calibration"], row["cost"]
    table.add_row(
      Text(row["label"]),
      _or_dash(votes and votes["single"]["value"], ".1%"),
      _or_dash(votes and votes["agreement"], ".1%"),
      _or_dash(calibration and calibration["ece"], ".1%"),
      *(_or_dash(cost[f"{some}_tokens"], ".0f") for some in ("prompt", "cut", "written")),
      _or_dash(cost["seconds"], ".3g"),
    )
  return [table, Text("Read, cut, written: tokens a question; s: seconds; -: not recorded")]


def _or_dash(value: float | None, how: str) -> str:
  return "-" if value is None else format(value, how)


def _retrieval(card: Mapping[str, Any], ascii_only: bool) -> Table:
  table = _table(ascii_only)
  table.add_column("Passage found", max_width=24)
  for k in HITS:
    table.add_column(f"hit@{k}", justify="right", no_wrap=True)
  table.add_column("Queries", justify="right", no_wrap=True)
  table.add_column("Reference", no_wrap=True)
  for row in card["retrieval"].values():
    shown = [_or_dash(row[f"hit@{k}"], ".1%") for k in HITS]
    if "before" in row:
      before = row["before"]
      cells = [_or_dash(before and before[f"hit@{k}"], ".1%") for k in HITS]
      table.add_row(Text("  before reranking"), *cells, "" if before else "not recorded", "")
    table.add_row(Text(row["label"]), *shown, str(row["n"]), row["reference"])
  return table


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
