"""The report: the score card as one page that opens from disk, with every question to browse.

It holds everything itself: `report.html`, `report.css`, `report*.js` (beside this file) and the
data as blocks of JSON. Text from data stays text: the JSON is escaped so that it cannot end its
block, the script makes nothing but text nodes of it, and a content security policy lets no other
script run and forbids every request.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kard_jax import report_data
from kard_jax.core import files
from kard_jax.questions import Question
from kard_jax.report_data import Run
from kard_jax.retrieval.passages import Passage

_HERE = pathlib.Path(__file__).parent

# In this order: the first has what the others use, the last one starts.
SCRIPTS = (
  "report.js",
  "report_charts.js",
  "report_tables.js",
  "report_runs.js",
  "report_question.js",
  "report_list.js",
)

# What could end or confuse a script block, and halves of surrogate pairs, which UTF-8 cannot hold.
_UNSAFE = re.compile("[<>&\u2028\u2029\ud800-\udfff]")


def write(
  path: files.PathLike,
  card: Mapping[str, Any],
  questions: Sequence[Question],
  predictions: Mapping[str, Sequence[Mapping[str, Any]]],
  passage: Callable[[str], Passage] | None = None,
  *,
  silver: Sequence[dict[str, Any]] = (),
  reranking: Sequence[Mapping[str, Any]] = (),
) -> None:
  """Writes the report of one run, whole or not at all; for the arguments see `report_data.Run`."""
  write_runs(path, [Run(card["title"], card, questions, predictions, passage, silver, reranking)])


def write_runs(path: files.PathLike, runs: Sequence[Run], across: Any = None) -> None:
  """Writes the report of runs side by side, whole or not at all; see `render`."""
  page = render(runs, across)
  with files.atomic(path) as temporary:
    temporary.write_bytes(page.encode())


def render(
  runs: Sequence[Run],
  across: Any = None,
  *,
  title: str | None = None,
  ranked: int = 10,
  excerpt: int = 1200,
) -> str:
  """The page as HTML.

  Args:
    runs: one, or several side by side.
    across: figures of several runs together, as `comparison.across` makes them.
    title: None takes the runs'.
    ranked: how many passages of each ranking are listed.
    excerpt: how many characters of a passage are kept; a longer one ends in an ellipsis.
  """
  data = report_data.blocks(runs, across, ranked=ranked, excerpt=excerpt)
  titles = dict.fromkeys(run.card["title"] for run in runs)
  style, script = _part("report.css"), "\n".join(map(_part, SCRIPTS))
  parts = {
    "title": html.escape(f"{title or ', '.join(titles)}: KARD score card"),
    "policy": (
      f"default-src 'none'; base-uri 'none'; form-action 'none'; "
      f"style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    ),
    "style": style,
    "script": script,
    "data": "\n".join(
      f'<script type="application/json" id="{name}">{script_json(value)}</script>'
      for name, value in data.items()
    ),
  }
  # One pass over the template, so that nothing in the data is taken for a field.
  return re.sub(r"\{\{(\w+)\}\}", lambda field: parts[field[1]], _part("report.html"))


def script_json(value: Any) -> str:
  """JSON that can stand in a `<script>` block whatever its texts hold.

  Raises:
    ValueError: a number is not finite, which JSON cannot say.
  """
  text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
  return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _part(name: str) -> str:
  return (_HERE / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
  """What a content security policy calls an inline block by."""
  return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
