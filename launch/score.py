"""Makes the score card of a work directory: every method on the same questions.

Example:
  python launch/score.py --gin_file=gin_configs/recipes/quickstart/9_score.gin
"""

from __future__ import annotations

if __name__ == "__main__":  # run the module gin can import, with the project's root on the path
  import pathlib
  import sys

  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])
  from kard_jax.core import config

  sys.exit(config.launch("score", __doc__ or ""))

from collections.abc import Sequence

from kard_jax import answer as answer_lib
from kard_jax import questions as questions_lib
from kard_jax import ranking, report, scorecard
from kard_jax.core import files
from kard_jax.core.files import InputError
from kard_jax.core.provenance import Stage
from kard_jax.retrieval import passages as passages_lib


def score(
  stage: Stage,
  *,
  dataset: str,
  split: str,
  methods: Sequence[str],
  title: str | None = None,
  rationale_split: str | None = None,
  silver: int = 10,
  seed: int | None = None,
  sweep: str | None = None,
  sweep_value: int | float | str | None = None,
  tau: float = 1.0,
  rationale_tau: float = 1.0,
) -> None:
  """Writes `scorecard/scorecard.json` and `scorecard/report.html`.

  Args:
    stage: the work directory and the record.
    dataset: its name.
    split: the questions that were answered.
    methods: names of `predictions/<method>.jsonl`, in the order of the table.
    title: what was run; None is "KARD on <dataset>".
    rationale_split: the split whose rationales' hit@k is given, where it is another one.
    silver: how many passages a row of silver.jsonl may hold (the ground stage's).
    seed: noted in the score card; the bootstraps' too.
    sweep: where the run is one of several that differ in one thing, what that is called; noted.
    sweep_value: what it is here: a number, or a name such as a model's size.
    tau: temperature of the reranker's scores in the KL of `reranking.jsonl`, where that is there.
    rationale_tau: that of BM25's.
  """
  questions = questions_lib.read(stage.reads(f"questions/{split}.jsonl"))
  predictions: dict[str, list[dict]] = {}
  absent, empty = [], []
  for method in methods:
    if not (stage.workdir / f"predictions/{method}.jsonl").exists():
      absent.append(method)
      continue
    path = stage.reads(f"predictions/{method}.jsonl")
    if path.stat().length:
      predictions[method] = answer_lib.read(path, questions)
    else:
      empty.append(method)
  reranking, lists = {}, []
  if (stage.workdir / "reranking.jsonl").exists():
    taus = {"reranker": tau, "bm25": rationale_tau, "random": 1.0}
    lists = ranking.read(stage.reads("reranking.jsonl"))
    reranking = ranking.summarise(lists, taus, rationale_tau, seed=seed or 0)
  if not predictions and not reranking:
    raise InputError(f"{stage.workdir / 'predictions'}: no predictions of {', '.join(methods)}")
  if absent:
    print(f"not run, so not in the table: {', '.join(absent)}", flush=True)
  if empty:
    print(f"no passages to read, so not in the table: {', '.join(empty)}", flush=True)
  grounded = bool(predictions) and (stage.workdir / "silver.jsonl").exists()
  silver_questions = questions
  if rationale_split:
    silver_questions = questions_lib.read(stage.reads(f"questions/{rationale_split}.jsonl"))
  silver_rows = scorecard.read_silver(stage.reads("silver.jsonl")) if grounded else []
  card = scorecard.make(
    questions,
    predictions,
    silver=silver_rows,
    silver_questions=silver_questions,
    silver_depth=silver,
    reranking=reranking,
    title=title or f"KARD on {dataset}",
    seed=seed,
    sweep=None if sweep is None else (sweep, sweep_value),
    inputs=stage.input_hashes(),
  )
  passages = passages_lib.Passages(stage.reads("knowledge/passages"))
  folder = stage.writes("scorecard")
  files.write_json(folder / "scorecard.json", card)
  report.write(
    folder / "report.html",
    card,
    questions,
    predictions,
    lambda id: passages[passages.position(id)],
    silver=silver_rows,
    reranking=lists,
  )
