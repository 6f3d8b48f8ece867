"""The memorisation experiment as a page that opens from disk: three plots and their figures.

The page holds everything itself, has no script and makes no request.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

from kard_jax.memorisation import Mean, Needed, Point, means, needed
from kard_jax.memorisation_plot import Axis, Line, Mark, Plot

_STYLE = """
:root { color-scheme: light dark; --page: #f7f7f5; --card: #fff; --ink: #1c2024; --soft: #5c656e;
  --line: #dfe1e0; --c0: #d98a1f; --c1: #b0391f; --c2: #6d3fa0; --c3: #2b5fae; --c4: #18734f; }
@media (prefers-color-scheme: dark) { :root { --page: #14171a; --card: #1c2024; --ink: #e7e9ea;
  --soft: #9aa4ad; --line: #32383e; --c0: #efb45c; --c1: #f0937c; --c2: #b795e6; --c3: #7fabec;
  --c4: #6fd0a3; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.2rem 3rem; max-width: 68rem; background: var(--page);
  color: var(--ink); font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.15; letter-spacing: -0.02em; margin: 0; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 0.2rem; }
p { max-width: 46rem; margin: 0.5rem 0; color: var(--soft); }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { flex: 1 1 20rem; margin: 0.6rem 0 0; padding: 0.8rem; background: var(--card);
  border: 1px solid var(--line); border-radius: 0.5rem; }
figcaption { font-weight: 600; font-size: 0.95rem; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--ink); font: 12px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
svg .soft { fill: var(--soft); } svg .name { font-weight: 600; }
.grid { stroke: var(--line); } .axis { stroke: var(--soft); }
.guide { stroke: var(--soft); stroke-dasharray: 4 4; fill: none; }
.path { fill: none; stroke-width: 2.5; stroke-linejoin: round; }
.dot { stroke: var(--card); stroke-width: 1.5; } .hollow { fill: var(--card); stroke-width: 2; }
.seed { opacity: 0.45; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.88rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.2rem 0.7rem; text-align: right; border-bottom: 1px solid var(--line); }
td { white-space: nowrap; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
"""
_STYLE += "".join(
  f".s{n} {{ stroke: var(--c{n}); }} .f{n} {{ fill: var(--c{n}) !important; }}\n" for n in range(5)
)


def render(points: Sequence[Point], enough: float) -> str:
  """The page as HTML.

  Args:
    points: of all students.
    enough: the accuracy that the second plot asks for.
  """
  found = means(points)
  sizes = sorted({mean.parameters for mean in found})
  accuracy = [
    _figure(f"{kind} the knowledge base", _accuracy_plot(found, sizes, points[0].options, knows))
    for kind, knows in (("Without", False), ("With", True))
  ]
  stored = _figure("Bits that answers without it show", _bits_plot(found, sizes, points[0].options))
  needs = _figure(
    f"Smallest student that answers {enough:.0%}", _needed_plot(needed(found, enough), sizes)
  )
  seeds = len({point.seed for point in points})
  return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>What a student must store</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>What a student must store</h1>
<p>Students of {len(sizes)} sizes learn N facts of {math.log2(points[0].options):.3g} bits each (one
of {points[0].options} values of an invented place), and are asked about each in a wording that was
held out. Some answer from their parameters alone; the others read the passage that BM25 finds by
the question. Lines bear the student's number of parameters; they are means of {seeds} seeds, pale
dots the seeds, whiskers 95% intervals (Wilson).</p>
<h2>Accuracy against the number of facts</h2>
<div class="plots">{"".join(accuracy)}</div>
<h2>How storage grows</h2>
<p>Answers of accuracy p among m options show at least log₂m - H(p) - (1 - p) log₂(m - 1) bits of
each fact (Fano). Without the knowledge base they can be nowhere but in the parameters.</p>
<div class="plots">{stored}{needs}</div>
<h2>Figures</h2>
<div class="scroll">{_table(found, points)}</div>
</body>
</html>
"""


def _figure(caption: str, plot: Plot) -> str:
  return f"<figure><figcaption>{html.escape(caption)}</figcaption>{plot.svg(caption)}</figure>"


def _facts_axis(found: Sequence[Mean | Needed]) -> Axis:
  facts = sorted({one.facts for one in found})
  return Axis("facts", facts[0] / 1.3, facts[-1] * 1.3, [(float(n), f"{n:,}") for n in facts])


def _accuracy_plot(
  found: Sequence[Mean], sizes: Sequence[int], options: int, knowledge: bool
) -> Plot:
  ticks = [(0.25 * n, f"{25 * n}%") for n in range(5)]
  y = Axis("right answers", 0.0, 1.02, ticks, is_log=False)
  lines = []
  for number, size in enumerate(sizes):
    some = [mean for mean in found if (mean.parameters, mean.knowledge) == (size, knowledge)]
    marks = [
      Mark(float(mean.facts), mean.accuracy, mean.interval, mean.accuracies) for mean in some
    ]
    lines.append(Line(_name(size), number, marks))
  return Plot(_facts_axis(found), y, lines, guides=[(1 / options, "chance")])


def _bits_plot(found: Sequence[Mean], sizes: Sequence[int], options: int) -> Plot:
  without = [mean for mean in found if not mean.knowledge]
  bits = math.log2(options)
  asked = [(float(mean.facts), mean.facts * bits) for mean in without]
  low, high = min(y for _, y in asked), max(y for _, y in asked)
  ticks = [(10.0**n, f"{10**n:,}") for n in range(1, 7) if low / 4 <= 10**n <= high * 2]
  lines = []
  for number, size in enumerate(sizes):
    marks = [
      Mark(float(mean.facts), mean.bits)
      for mean in without
      if mean.parameters == size and mean.bits > low / 4
    ]
    lines.append(Line(_name(size), number, marks))
  y = Axis("bits", low / 4, high * 2, ticks)
  slope = sorted(set(asked))
  return Plot(_facts_axis(without), y, lines, slope=(slope, "all facts"))


def _needed_plot(found: Sequence[Needed], sizes: Sequence[int]) -> Plot:
  none = sizes[-1] * 2.2  # above all that were tried
  ticks = [(float(size), f"{size:,}") for size in sizes]
  ticks += [(none, "more")] if any(need.parameters is None for need in found) else []
  lines = []
  for name, number, knows in (("without", 1, False), ("with", 3, True)):
    some = [need for need in found if need.knowledge == knows]
    marks = [
      Mark(float(n.facts), float(n.parameters or none), is_hollow=n.parameters is None)
      for n in some
    ]
    lines.append(Line(name, number, marks))
  y = Axis("parameters", sizes[0] / 1.6, ticks[-1][0] * 1.3, ticks)
  return Plot(_facts_axis(found), y, lines)


def _name(size: int) -> str:
  return f"{size / 1000:.3g}k"


def _table(found: Sequence[Mean], points: Sequence[Point]) -> str:
  heads = [
    "Parameters", "Knowledge", "Facts", "Accuracy", "95%", "By seed", "Facts never trained",
    "Passage found", "Bits shown", "Bits asked", "A parameter", "Times seen", "Loss",
  ]  # fmt: skip
  rows = ["".join(f"<th>{head}</th>" for head in heads)]
  for mean in found:
    some = [
      point
      for point in points
      if (point.parameters, point.knowledge, point.facts)
      == (mean.parameters, mean.knowledge, mean.facts)
    ]
    asked = sum(point.new_questions for point in some)
    new = sum(point.new_right for point in some)
    cells: list[Any] = [
      f"{mean.parameters:,}",
      "with" if mean.knowledge else "without",
      f"{mean.facts:,}",
      f"{mean.accuracy:.1%}",
      " - ".join(f"{100 * end:.1f}" for end in mean.interval),
      " ".join(f"{100 * value:.1f}" for value in mean.accuracies),
      f"{new / asked:.1%}" if asked else "",
      f"{sum(point.found or 0 for point in some) / len(some):.1%}" if mean.knowledge else "",
      f"{mean.bits:,.0f}",
      f"{mean.facts * math.log2(some[0].options):,.0f}",
      "" if mean.knowledge else f"{mean.bits / mean.parameters:.3f}",
      f"{some[0].exposures:,.0f}",
      f"{some[0].loss:.4f}",
    ]
    rows.append("".join(f"<td>{cell}</td>" for cell in cells))
  return "<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"
