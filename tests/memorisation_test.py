"""What answers show of storage, and the page that tells it."""

import math
import re

import pytest

from kard_jax import memorisation, memorisation_page
from kard_jax.memorisation import Needed, Point, bits_shown


def point(parameters, facts, knowledge, right, seed=0):
  return Point(
    student=f"width<{parameters}>",
    parameters=parameters,
    facts=facts,
    seed=seed,
    knowledge=knowledge,
    steps=10,
    exposures=20.0,
    questions=100,
    right=right,
    unparsed=0,
    options=8,
    found=1.0 if knowledge else None,
    loss=0.1,
    new_questions=10,
    new_right=9 if knowledge else 1,
  )


POINTS = [
  point(parameters, facts, knowledge, right + seed, seed)
  for parameters, facts, knowledge, right in (
    (1000, 64, False, 95),
    (1000, 256, False, 40),
    (4000, 64, False, 97),
    (4000, 256, False, 92),
    (4000, 1024, False, 50),
    (1000, 64, True, 96),
    (1000, 256, True, 96),
    (1000, 1024, True, 96),
  )
  for seed in range(3)
]


def test_bits_at_the_ends():
  assert bits_shown(1.0, 64, 8) == 64 * 3
  assert bits_shown(1 / 8, 64, 8) == bits_shown(0.05, 64, 8) == 0
  assert bits_shown(0.126, 64, 8) > 0


@pytest.mark.parametrize("accuracy", [0.3, 0.5, 0.9])
def test_bits_are_the_mutual_information_of_equally_likely_mistakes(accuracy):
  """Fano's bound is met where the wrong options are drawn alike: summed here cell by cell."""
  m = 5
  cell = lambda right: (accuracy if right else (1 - accuracy) / (m - 1)) / m
  cells = [cell(said == true) for said in range(m) for true in range(m)]
  information = sum(p * math.log2(p * m * m) for p in cells)
  assert bits_shown(accuracy, 10, m) == pytest.approx(10 * information)


@pytest.mark.parametrize(("accuracy", "options"), [(1.1, 8), (-0.1, 8), (0.5, 1)])
def test_what_tells_nothing_is_refused(accuracy, options):
  with pytest.raises(ValueError, match="tells nothing"):
    bits_shown(accuracy, 10, options)


def test_means_are_over_seeds_and_intervals_over_all_questions():
  found = memorisation.means(POINTS)
  assert [(m.parameters, m.knowledge, m.facts) for m in found[:4]] == [
    (1000, False, 64),
    (1000, False, 256),
    (1000, True, 64),
    (1000, True, 256),
  ]
  first = found[0]
  assert first.accuracies == (0.95, 0.96, 0.97)
  assert first.accuracy == pytest.approx(0.96)
  single = POINTS[0].row()["interval"]
  assert single[0] < first.interval[0] < 0.96 < first.interval[1] < single[1]  # three times as many
  assert first.bits < 3 * 64


def test_the_smallest_student_that_is_enough():
  found = memorisation.needed(memorisation.means(POINTS), 0.9)
  assert found == [
    Needed(64, False, 1000),
    Needed(256, False, 4000),
    Needed(1024, False, None),
    Needed(64, True, 1000),
    Needed(256, True, 1000),
    Needed(1024, True, 1000),
  ]


def test_a_row_gives_the_point_back():
  assert memorisation.read_point(POINTS[5].row()) == POINTS[5]


def test_the_page_says_what_the_points_do_and_asks_for_nothing():
  page = memorisation_page.render(POINTS, 0.9)
  assert not re.search(r"https?:|<script|@import|url\(|src=", page)
  assert "default-src 'none'" in page
  svgs = re.findall("<svg.+?</svg>", page, re.DOTALL)
  assert len(svgs) == 4
  without, with_knowledge, stored, needs = svgs
  assert [svg.count('class="dot') for svg in (without, with_knowledge)] == [5, 3]
  assert without.count('class="seed') == 15
  assert "chance" in without
  assert "all facts" in stored
  assert needs.count('class="hollow') == 1  # 1,024 facts without: none is enough
  assert "more" in needs
  assert "<td>96.0%</td>" in page  # the first mean
  assert "<td>90.0%</td>" in page  # facts never trained, read in a passage


def test_names_at_the_ends_of_lines_do_not_overlap():
  close = [point(size, 64, False, 90) for size in (1000, 2000, 3000)]
  page = memorisation_page.render([*close, point(1000, 64, True, 90)], 0.9)
  first = re.search("<svg.+?</svg>", page, re.DOTALL)[0]
  heights = [float(y) for y in re.findall(r'class="name f\d" x="[\d.]+" y="([\d.]+)"', first)]
  assert len(heights) == 3
  assert min(abs(a - b) for a in heights for b in heights if a is not b) >= 13.9
