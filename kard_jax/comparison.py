"""Runs side by side: work directories whose score cards are made, read back and compared.

A sweep's values, seeds, or students of several sizes. `report.write_runs` shows them on one page.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from etils import epath

from kard_jax import answer as answer_lib
from kard_jax import measures, ranking, scorecard, statistics
from kard_jax import questions as questions_lib
from kard_jax.core import files
from kard_jax.core.files import InputError
from kard_jax.report_data import Run
from kard_jax.retrieval.passages import Passages


def read(workdir: files.PathLike, name: str | None = None) -> Run:
  """A work directory as its score card was made from it.

  Args:
    workdir: where launch/score.py has been run.
    name: what the run is called beside others; None takes the value of its sweep, or the folder's.

  Raises:
    InputError: there is no score card, or what it was made from has changed since.
  """
  folder = epath.Path(workdir)
  path = folder / "scorecard/scorecard.json"
  try:
    card = json.loads(path.read_text())
    inputs, methods, sweep = card["provenance"]["inputs"], card["methods"], card["sweep"]
  except FileNotFoundError:
    raise InputError(f"{path}: not there; launch/score.py or launch/run.py makes it") from None
  except (ValueError, KeyError, TypeError) as error:
    raise InputError(f"{path}: not a score card ({error!r}); make it again") from None
  for place, digest in inputs.items():
    shown = place.startswith(("questions/", "predictions/", "silver"))
    if shown and (not (folder / place).exists() or files.sha256(folder / place) != digest):
      raise InputError(f"{folder / place}: not what {path} was made from; score the run again")
  asked = next((place for place in inputs if place.startswith("questions/")), None)
  if asked is None:
    raise InputError(f"{path}: names no questions that it was made from; make it again")
  questions = questions_lib.read(folder / asked)
  predictions = {
    method: answer_lib.read(folder / f"predictions/{method}.jsonl", questions) for method in methods
  }
  silver = scorecard.read_silver(folder / "silver.jsonl") if "silver.jsonl" in inputs else []
  passages = Passages(folder / "knowledge/passages")
  if name is None:
    name = f"{sweep['name']} {sweep['value']}" if sweep else folder.name
  passage = lambda id: passages[passages.position(id)]
  lists = ranking.read(folder / "reranking.jsonl") if "reranking.jsonl" in inputs else []
  return Run(name, card, questions, predictions, passage, silver, lists)


def across(runs: Sequence[Run], *, seed: int = 0) -> dict[str, Any] | None:
  """Each method in each run against the same method in the first run that has it.

  Args:
    runs: two or more.
    seed: of the bootstraps.

  Returns:
    `{"differences": {method: [one a run]}}`, of which each is None (the first run that has the
    method, or one without it) or a row as of `measures.compare`, with `p_holm` over all of them.
    None where the runs answered different questions.
  """
  asked = [{q.id: (q.question, q.options, q.label) for q in run.questions} for run in runs]
  if any(some != asked[0] for some in asked):
    return None
  differences: dict[str, list[dict[str, Any] | None]] = {}
  for method in dict.fromkeys(method for run in runs for method in run.predictions):
    right = [_right(run, method, list(asked[0])) for run in runs]
    first = next(filter(None, right))
    differences[method] = [
      measures.compare(first, some, seed=seed) if some and some is not first else None
      for some in right
    ]
  rows = [row for some in differences.values() for row in some if row]
  for row, p in zip(rows, statistics.holm([row["p"] for row in rows]), strict=True):
    row["p_holm"] = p
  return {"differences": differences}


def _right(run: Run, method: str, ids: Sequence[str]) -> list[bool] | None:
  rows = {row["question_id"]: row for row in run.predictions.get(method, ())}
  return [rows[id]["answer"] == rows[id]["label"] for id in ids] if rows else None
