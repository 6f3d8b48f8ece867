"""The report: the score card as one page that opens from disk, with every question to browse.

It holds everything itself: `report.html`, `report.css`, `report.js`, `report_questions.js` (beside
this file) and the data as JSON. Text from data stays text: the JSON is escaped so that it cannot
end its block, the script makes nothing but text nodes of it, and a content security policy lets no
other script run and forbids every request.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kard_jax.core import files
from kard_jax.questions import Question
from kard_jax.retrieval.passages import Passage

_HERE = pathlib.Path(__file__).parent

# What could end or confuse a script block, and halves of surrogate pairs, which UTF-8 cannot hold.
_UNSAFE = re.compile("[<>&\u2028\u2029\ud800-\udfff]")


def write(
  path: files.PathLike,
  card: Mapping[str, Any],
  questions: Sequence[Question],
  predictions: Mapping[str, Sequence[Mapping[str, Any]]],
  passage: Callable[[str], Passage] | None = None,
  *,
  ranked: int = 10,
  excerpt: int = 1200,
) -> None:
  """Writes the report, whole or not at all; for the arguments see `render`."""
  page = render(card, questions, predictions, passage, ranked=ranked, excerpt=excerpt)
  with files.atomic(path) as temporary:
    temporary.write_bytes(page.encode())


def render(
  card: Mapping[str, Any],
  questions: Sequence[Question],
  predictions: Mapping[str, Sequence[Mapping[str, Any]]],
  passage: Callable[[str], Passage] | None = None,
  *,
  ranked: int = 10,
  excerpt: int = 1200,
) -> str:
  """The report as HTML.

  Args:
    card: what `scorecard.make` returned.
    questions: the questions it is about.
    predictions: for each method its rows, in the order of `questions`.
    passage: gives a passage by its id; None shows ids alone. An id that it does not know (it raises
      KeyError or ValueError, as InputError is) is shown without text.
    ranked: how many passages of each ranking are listed.
    excerpt: how many characters of a passage are kept; a longer one ends in an ellipsis.
  """
  data = _data(card, questions, predictions, passage, ranked, excerpt)
  style, script = _part("report.css"), _part("report.js") + _part("report_questions.js")
  parts = {
    "title": html.escape(f"{card['title']}: KARD score card"),
    "policy": (
      f"default-src 'none'; base-uri 'none'; form-action 'none'; "
      f"style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    ),
    "style": style,
    "script": script,
    "data": script_json(data),
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


def _data(
  card: Mapping[str, Any],
  questions: Sequence[Question],
  predictions: Mapping[str, Sequence[Mapping[str, Any]]],
  passage: Callable[[str], Passage] | None,
  ranked: int,
  excerpt: int,
) -> dict[str, Any]:
  """What the script reads. Passages stand once, and everything else names them by position."""
  texts: list[list[str]] = []
  positions: dict[str, int] = {}

  def position(name: str) -> int:
    if name not in positions:
      positions[name] = len(texts)
      texts.append([name, *_text(name, passage, excerpt)])
    return positions[name]

  def compact(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
      "answer": row["answer"],
      "samples": [[sample["answer"], sample["rationale"]] for sample in row["samples"]],
      "passages": [position(name) for name in row["passages"]],
      "retrieved": [[position(s["id"]), _score(s.get("score"))] for s in row["retrieved"][:ranked]],
    }

  return {
    "title": card["title"],
    "about": card["questions"],
    "provenance": card["provenance"],
    # Lists, because the keys of a JavaScript object do not keep their order if they are numbers.
    "methods": [
      {"name": name, **row, "answers": list(map(compact, predictions[name]))}
      for name, row in card["methods"].items()
    ],
    "retrieval": [{"name": name, **row} for name, row in card["retrieval"].items()],
    "reranking": [
      {
        "reference": reference,
        "lists": some["lists"],
        "questions": some["questions"],
        "rankings": [{"name": name, **row} for name, row in some["rankings"].items()],
      }
      for reference, some in card.get("reranking", {}).items()
    ],
    "questions": [
      {
        "id": q.id,
        "question": q.question,
        "options": q.options,
        "label": q.label,
        "gold": list(map(position, q.gold)),
      }
      for q in questions
    ],
    "passages": texts,
  }


def _text(name: str, passage: Callable[[str], Passage] | None, excerpt: int) -> tuple[str, str]:
  if passage is None:
    return "", ""
  try:
    found = passage(name)
  except (KeyError, ValueError):
    return "", ""
  cut = len(found.text) > excerpt
  return found.title, found.text[:excerpt] + "…" if cut else found.text


def _score(score: Any) -> float | None:
  """Four significant digits: enough to read; None for what is not a number or not finite."""
  if not isinstance(score, int | float) or not math.isfinite(score):
    return None
  return float(f"{score:.4g}")
