"""Line plots as SVG text: what the memorisation page needs, and no more."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Sequence

WIDTH, HEIGHT = 460, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 56.0, 62.0, 12.0, 44.0  # margins


@dataclasses.dataclass(frozen=True)
class Axis:
  """An axis.

  Attributes:
    label: what is along it.
    low, high: its ends.
    ticks: (value, text).
    is_log: whether equal factors are equally far apart.
  """

  label: str
  low: float
  high: float
  ticks: Sequence[tuple[float, str]]
  is_log: bool = True

  def place(self, value: float) -> float:
    """0 at the low end, 1 at the high one."""
    scale = math.log if self.is_log else float
    return (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))


@dataclasses.dataclass(frozen=True)
class Mark:
  """A point of a line.

  Attributes:
    x, y: where it is.
    interval: of y, as a whisker.
    seeds: values of y as small dots.
    is_hollow: nothing was measured there, but that it lies beyond.
  """

  x: float
  y: float
  interval: tuple[float, float] | None = None
  seeds: Sequence[float] = ()
  is_hollow: bool = False


@dataclasses.dataclass(frozen=True)
class Line:
  """A line with its name at its end, in one of five colours."""

  name: str
  colour: int
  marks: Sequence[Mark]


@dataclasses.dataclass(frozen=True)
class Plot:
  """Lines over two axes.

  Attributes:
    x, y: the axes.
    lines: what is drawn.
    guides: (y, text) of dashed level lines.
    slope: points of one dashed line, and its text.
  """

  x: Axis
  y: Axis
  lines: Sequence[Line]
  guides: Sequence[tuple[float, str]] = ()
  slope: tuple[Sequence[tuple[float, float]], str] | None = None

  def svg(self, title: str) -> str:
    """The plot as an SVG element."""
    parts = [*self._axes(), *self._guides()]
    for line in self.lines:
      parts += self._line(line)
    parts += self._names()
    return (
      f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">'
      f"{''.join(parts)}</svg>"
    )

  def _at(self, x: float, y: float) -> tuple[float, float]:
    across = _LEFT + self.x.place(x) * (WIDTH - _LEFT - _RIGHT)
    up = HEIGHT - _BOTTOM - self.y.place(y) * (HEIGHT - _TOP - _BOTTOM)
    return round(across, 1), round(up, 1)

  def _axes(self) -> list[str]:
    parts = []
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM
    for value, text in self.y.ticks:
      _, y = self._at(self.x.low, value)
      parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y}" y2="{y}"/>')
      parts.append(_text(_LEFT - 7, y + 4, text, "end", "soft"))
    for value, text in self.x.ticks:
      x, _ = self._at(value, self.y.low)
      parts.append(f'<line class="axis" x1="{x}" x2="{x}" y1="{bottom}" y2="{bottom + 4}"/>')
      parts.append(_text(x, bottom + 18, text, "middle", "soft"))
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(_text((_LEFT + right) / 2, HEIGHT - 6.0, self.x.label, "middle", "soft"))
    return parts

  def _guides(self) -> list[str]:
    parts = []
    for value, text in self.guides:
      x, y = self._at(self.x.high, value)
      parts.append(f'<line class="guide" x1="{_LEFT}" x2="{x}" y1="{y}" y2="{y}"/>')
      parts.append(_text(_LEFT + 6, y - 5, text, "start", "soft"))
    if self.slope:
      points = [self._at(*point) for point in self.slope[0]]
      parts.append(f'<polyline class="guide" points="{_points(points)}"/>')
      x, y = points[-1]
      parts.append(_text(x - 10, y - 8, self.slope[1], "end", "soft"))
    return parts

  def _line(self, line: Line) -> list[str]:
    stroke, fill = f"s{line.colour}", f"f{line.colour}"
    points = [self._at(mark.x, mark.y) for mark in line.marks]
    parts = [f'<polyline class="path {stroke}" points="{_points(points)}"/>']
    for mark, (x, y) in zip(line.marks, points, strict=True):
      if mark.interval:
        ends = [self._at(mark.x, end)[1] for end in mark.interval]
        parts.append(f'<line class="{stroke}" x1="{x}" x2="{x}" y1="{ends[0]}" y2="{ends[1]}"/>')
      parts += [
        f'<circle class="seed {fill}" cx="{x}" cy="{self._at(mark.x, seed)[1]}" r="2.5"/>'
        for seed in mark.seeds
      ]
      look = f"hollow {stroke}" if mark.is_hollow else f"dot {fill}"
      parts.append(f'<circle class="{look}" cx="{x}" cy="{y}" r="4.5"/>')
    return parts

  def _names(self) -> list[str]:
    """The lines' names at their ends, pushed apart where they would overlap."""
    ends = [
      (*self._at(line.marks[-1].x, line.marks[-1].y), line) for line in self.lines if line.marks
    ]
    parts, last = [], -math.inf
    for x, y, line in sorted(ends, key=lambda end: end[1]):
      last = max(y + 4, last + 14)
      parts.append(_text(x + 10, last, line.name, "start", f"name f{line.colour}"))
    return parts


def _points(points: Sequence[tuple[float, float]]) -> str:
  return " ".join(f"{x},{y}" for x, y in points)


def _text(x: float, y: float, text: str, anchor: str, look: str) -> str:
  return (
    f'<text class="{look}" x="{round(x, 1)}" y="{round(y, 1)}" text-anchor="{anchor}">'
    f"{html.escape(text)}</text>"
  )
