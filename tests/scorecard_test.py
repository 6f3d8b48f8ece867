"""The score card: figures counted by hand, intervals that solve their equation, the table."""

import io
import json
import pathlib
import re
import subprocess
import sys

import pytest
from rich.console import Console

from kard_jax import ranking, report, report_data, scorecard, scorecard_table, statistics
from kard_jax.core import files
from kard_jax.core.files import InputError
from kard_jax.questions import Question

QUESTIONS = [
  Question(f"q{i}", "Which?", ("a", "b", "c", "d"), i % 4, gold=(f"gold{i}",)) for i in range(10)
]


def rows(answers, ranks=None, questions=QUESTIONS):
  """Rows with these answers, and the gold passage at these ranks (None: not found)."""
  made = []
  for i, (q, given) in enumerate(zip(questions, answers, strict=True)):
    ranking = [f"other{j}" for j in range(10)] if ranks else []
    if ranks and ranks[i]:
      ranking[ranks[i] - 1] = f"gold{i}"
    made.append(
      {
        "question_id": q.id,
        "passages": ranking[:1],
        "retrieved": [{"id": name, "score": 1.0} for name in ranking],
        "samples": [{"rationale": "r", "answer": given}, {"rationale": "s", "answer": None}],
        "answer": given,
        "label": q.label,
      }
    )
  return made


RIGHT = [q.label for q in QUESTIONS]
SOME = RIGHT[:3] + [None, None] + [(label + 1) % 4 for label in RIGHT[5:]]
RANKS = [1, 1, 2, 3, 4, 10, None, None, None, None]


def silver_rows(ids, names):
  return [
    {"question_id": i, "sample": s, "passages": [{"id": n, "score": 2.0} for n in found]}
    for s, (i, found) in enumerate(zip(ids, names, strict=True))
  ]


def test_accuracy_by_hand():
  card = scorecard.make(QUESTIONS, {"rd": rows(SOME), "kard_bm25": rows(RIGHT, RANKS)}, seed=3)
  assert list(card["methods"]) == ["rd", "kard_bm25"]
  rd = card["methods"]["rd"]
  assert (rd["accuracy"], rd["n"], rd["unparsed"]) == (0.3, 10, 0.2)  # unparsed counts as wrong
  assert rd["unparsed_samples"] == 12 / 20
  assert rd["interval"] == list(statistics.wilson(3, 10))
  assert card["methods"]["kard_bm25"]["accuracy"] == 1
  assert card["methods"]["kard_bm25"]["unparsed"] == 0
  assert card["questions"] == {"n": 10, "options": [4], "chance": 0.25}
  assert card["provenance"] == {"seed": 3, "resamples": 10_000, "inputs": {}}
  assert json.loads(json.dumps(card)) == card


def test_labels_and_descriptions():
  card = scorecard.make(
    QUESTIONS, {"rd": rows(SOME), "mine": rows(RIGHT)}, about={"rd": ("Bare", "Nothing to read.")}
  )
  assert card["methods"]["rd"]["label"] == "Bare"
  assert card["methods"]["rd"]["description"] == "Nothing to read."
  assert card["methods"]["mine"]["label"] == "mine"
  for label, description in scorecard.ABOUT.values():
    assert len(label) <= 18, "the terminal table has no room for more"
    assert description.endswith(".")


def test_chance_of_questions_with_different_options():
  questions = [Question("a", "?", ("x", "y"), 0), Question("b", "?", ("x", "y", "z", "w"), 3)]
  card = scorecard.make(questions, {"rd": rows([0, 3], questions=questions)})
  assert card["questions"] == {"n": 2, "options": [2, 4], "chance": (1 / 2 + 1 / 4) / 2}


def test_retrieval_against_gold_by_hand():
  silver = silver_rows(
    ["q0", "q0", "q1", "unknown"],
    [["gold0"] + ["x"] * 9, ["x", "gold0"], ["x"] * 3 + ["gold1"], ["gold0"]],
  )
  card = scorecard.make(
    QUESTIONS,
    {"kard_bm25": rows(SOME, RANKS), "kard_reranker": rows(RIGHT, [1] * 10)},
    silver=silver,
  )
  figures = {
    name: (row["hit@1"], row["hit@3"], row["hit@10"], row["n"], row["reference"])
    for name, row in card["retrieval"].items()
  }
  assert figures == {
    "bm25": (0.2, 0.4, 0.6, 10, "gold"),
    "reranker": (1, 1, 1, 10, "gold"),
    "rationale": (1 / 3, 2 / 3, 1, 3, "gold"),
  }


def test_the_rationales_may_be_of_another_split():
  train = [Question("t0", "?", ("x", "y"), 0, gold=("gold",)), Question("t1", "?", ("x", "y"), 0)]
  silver = silver_rows(["t0", "t0", "t1", "q0"], [["gold"], ["no"], ["no"], ["gold0"]])
  card = scorecard.make(QUESTIONS, {"rd": rows(SOME)}, silver=silver, silver_questions=train)
  row = card["retrieval"]["rationale"]
  assert (row["hit@1"], row["n"]) == (0.5, 2)  # t1 has no gold, q0 is not of the split


def test_without_gold_the_first_silver_passages_are_the_reference():
  questions = [Question(q.id, q.question, q.options, q.label) for q in QUESTIONS]
  silver = silver_rows(["q0", "q0", "q3", "q4"], [["gold0", "other0"], ["no"], ["gold3"], []])
  card = scorecard.make(questions, {"kard_bm25": rows(SOME, RANKS, questions)}, silver=silver)
  assert list(card["retrieval"]) == ["bm25"]  # silver against silver would say nothing
  row = card["retrieval"]["bm25"]
  assert (row["hit@1"], row["hit@3"], row["n"], row["reference"]) == (0.5, 1, 2, "silver")


def test_without_any_reference_there_is_no_figure():
  questions = [Question(q.id, q.question, q.options, q.label) for q in QUESTIONS]
  card = scorecard.make(questions, {"kard_bm25": rows(SOME, RANKS, questions)})
  assert card["retrieval"] == {}


def test_only_questions_with_gold_are_counted():
  questions = [
    Question(q.id, q.question, q.options, q.label, gold=q.gold if i < 3 else ())
    for i, q in enumerate(QUESTIONS)
  ]
  row = scorecard.make(questions, {"kard_bm25": rows(SOME, RANKS)})["retrieval"]["bm25"]
  assert (row["hit@1"], row["hit@3"], row["n"]) == (2 / 3, 1, 3)


def test_silver_rows_cut_short_do_not_pass_for_misses():
  def rationale(second="no", **keywords):
    silver = silver_rows(["q0", "q1"], [["gold0"], [second]])
    card = scorecard.make(QUESTIONS, {"rd": rows(SOME)}, silver=silver, **keywords)
    row = card["retrieval"]["rationale"]
    return row["hit@1"], row["hit@3"], row["hit@10"]

  assert rationale() == (0.5, None, None)
  assert rationale(silver_depth=3) == (0.5, 0.5, None)
  assert rationale(silver_depth=10) == (0.5, 0.5, 0.5)
  assert rationale("gold1") == (1, 1, 1)  # what was found above the cut is found
  # Predictions hold ten, or all that were found: there a short list is a miss.
  short = rows(SOME, RANKS)
  for row in short:
    row["retrieved"] = row["retrieved"][:2]
  figures = scorecard.make(QUESTIONS, {"kard_bm25": short})["retrieval"]["bm25"]
  assert (figures["hit@1"], figures["hit@3"], figures["hit@10"]) == (0.2, 0.3, 0.3)


def test_rankings_are_an_argument():
  predictions = {"mine": rows(SOME, RANKS), "kard_bm25": rows(SOME, RANKS)}
  card = scorecard.make(QUESTIONS, predictions, rankings={"dense": "mine"})
  assert list(card["retrieval"]) == ["dense"]
  with pytest.raises(InputError, match=r"'dense' is read from 'yours'.*mine, kard_bm25"):
    scorecard.make(QUESTIONS, predictions, rankings={"dense": "yours"})


def test_hits_before_and_after_reranking():
  after, before = rows(RIGHT, [1] * 10), rows(RIGHT, RANKS)
  for row, other in zip(after, before, strict=True):
    row["retrieved_before"] = other["retrieved"]
  card = scorecard.make(QUESTIONS, {"kard_reranker": after, "mine": after, "rd": rows(SOME)})
  assert list(card["retrieval"]) == ["reranker", "mine"]  # what reranks is told without being asked
  row = card["retrieval"]["reranker"]
  assert row["hit@1"] == 1
  assert row["intervals"]["hit@1"] == list(statistics.wilson(10, 10))
  before = row["before"]
  assert (before["hit@1"], before["hit@3"], before["hit@10"], before["n"]) == (0.2, 0.4, 0.6, 10)
  assert before["intervals"]["hit@3"] == list(statistics.wilson(4, 10))
  text = printed(card, width=80)
  assert re.search(r"before reranking +20\.0% +40\.0% +60\.0%", text)
  # One row without it: the figure would be of other queries.
  del after[3]["retrieved_before"]
  card = scorecard.make(QUESTIONS, {"kard_reranker": after, "kard_bm25": rows(SOME, RANKS)})
  assert card["retrieval"]["reranker"]["before"] is None
  assert "before" not in card["retrieval"]["bm25"]  # nothing reranks there
  assert "not recorded" in printed(card, width=80)


def test_a_run_of_a_sweep_says_so():
  card = scorecard.make(QUESTIONS, {"rd": rows(SOME)}, sweep=("passages", 3))
  assert card["sweep"] == {"name": "passages", "value": 3}
  assert printed(card, width=80).splitlines()[1].endswith("passages 3")
  assert scorecard.make(QUESTIONS, {"rd": rows(SOME)})["sweep"] is None


def test_the_best_is_compared_with_each_other():
  text = printed(full_card(), width=80)
  assert "Best: KARD, reranker" in text
  # 10 of 10 against 3 of 10, and the p of 7 to 0 three times.
  assert re.search(r"No knowledge +\+70\.0 +\+40\.0 to \+100\.0 +7 +0 +0\.047", text)
  assert "Best" not in printed(scorecard.make(QUESTIONS, {"rd": rows(SOME)}), width=80)


def test_votes_and_costs_are_printed_where_there_are_any():
  text = printed(full_card(), width=80)
  assert re.search(r"No knowledge +15\.0% +50\.0% +12\.5% +- +- +- +-", text)
  one = rows(SOME)
  for row in one:
    del row["samples"][1]
  assert "Votes" not in printed(scorecard.make(QUESTIONS, {"rd": one}), width=80)


def test_nothing_to_score():
  with pytest.raises(InputError, match="predictions of one method"):
    scorecard.make(QUESTIONS, {})
  with pytest.raises(InputError, match="needs questions"):
    scorecard.make([], {"rd": []})


def test_methods_must_answer_the_same_questions():
  for other, says in (
    (rows(SOME)[1:], "0 that are not scored, 1 missing, 0 twice"),
    (rows(SOME)[1:] + rows(SOME)[1:2], "0 that are not scored, 1 missing, 1 twice"),
    (rows(SOME) + rows(SOME)[:1], "0 that are not scored, 0 missing, 1 twice"),
    ([*rows(SOME), {**rows(SOME)[0], "question_id": "z"}], "1 that are not scored, 0 missing"),
  ):
    with pytest.raises(InputError, match=f"'kaft' answered other questions: {says}"):
      scorecard.make(QUESTIONS, {"rd": rows(RIGHT), "kaft": other})


def test_read_silver(tmp_path):
  path = tmp_path / "silver.jsonl"
  good = silver_rows(["q0", "q0"], [["a"], []])
  files.write_jsonl(path, good)
  assert scorecard.read_silver(path) == good
  for bad, says in (
    ({"question_id": "q0", "sample": 0, "passages": []}, "'q0' has a sample 0 already"),
    ({"question_id": "q0", "passages": []}, "are needed"),
    ({"question_id": 3, "sample": 0, "passages": []}, "are needed"),
    ({"question_id": "q0", "sample": 7, "passages": "a"}, "are needed"),
    ({"question_id": "q0", "sample": 7, "passages": ["a"]}, "a passage is"),
  ):
    files.write_jsonl(path, [*good, bad])
    with pytest.raises(InputError, match=f"silver.jsonl:3: .*{says}"):
      scorecard.read_silver(path)


def printed(card, **keywords):
  out = io.StringIO()
  scorecard_table.show(card, Console(file=out, **keywords))
  return out.getvalue()


def full_card(**keywords):
  predictions = {
    "rd": rows(SOME),
    "kard_bm25": rows(SOME, RANKS),
    "kard_reranker": rows(RIGHT, [1] * 10),
  }
  silver = silver_rows(["q0", "q1"], [["gold0"], ["x"]])
  return scorecard.make(QUESTIONS, predictions, silver=silver, title="A world", seed=0, **keywords)


def test_the_table_fits_80_columns_and_needs_no_colour():
  text = printed(full_card(), width=80)
  assert "\x1b" not in text
  lines = text.splitlines()
  assert max(map(len, lines)) <= 80
  assert lines[0] == "A world"
  assert lines[1] == "10 questions, 4 options, chance 25.0%, seed 0"
  for label in ("No knowledge", "KARD, BM25", "KARD, reranker"):  # each on a line of its own
    line = next(line for line in lines if label in line)
    assert "%" in line
    assert "●" in line
  assert "30.0%" in text
  assert "10.8 - 60.3" in text
  assert "20.0%    40.0%    60.0%" in text  # hit@1, 3 and 10 of BM25
  assert "50.0%        -        -" in text  # silver rows of one passage


def test_the_table_in_plain_ascii():
  raw = io.BytesIO()
  stream = io.TextIOWrapper(raw, encoding="ascii")
  scorecard_table.show(full_card(), Console(file=stream, width=80))
  stream.flush()
  text = raw.getvalue().decode("ascii")
  assert "KARD, reranker" in text
  assert max(map(len, text.splitlines())) <= 80


def test_labels_are_text_and_not_markup():
  card = full_card(about={"rd": ("[red]x[/red]", ""), "bm25": ("[bold]y", "")})
  card["title"] = "[link=x]t"
  text = printed(card, width=80)
  for label in ("[red]x[/red]", "[bold]y", "[link=x]t"):
    assert label in text


def test_bar():
  drawn = scorecard_table.bar(0.5, (0.4, 0.6), 0.25, width=21, ascii_only=True)
  assert drawn == "=====|==--O--........"
  for value in (0.0, 1.0):
    drawn = scorecard_table.bar(value, (value, value), 0.5, width=21, ascii_only=False)
    assert len(drawn) == 21
    assert drawn.index("●") == 20 * value


def test_no_jax_is_needed():
  code = "import sys, kard_jax.scorecard, kard_jax.report; sys.exit('jax' in sys.modules)"
  root = pathlib.Path(scorecard.__file__).parents[1]
  assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def rankings():
  """What `ranking.summarise` makes of a few lists."""
  rows = [
    {
      "question_id": f"q{i}",
      "reference": "rationale",
      "gains": [3.0, 2.0, 1.0],
      "scores": {"reranker": [2.0, 1.0, 0.0], "bm25": [0.0, 1.0, i % 2 * 2], "random": [0.0] * 3},
    }
    for i in range(8)
  ]
  return ranking.summarise(rows, {"reranker": 1.0, "bm25": 1.0, "random": 1.0}, 1.0)


def test_rankings_alone_make_a_score_card():
  questions = [Question(f"q{i}", "Which?", ("a", "b"), 0) for i in range(8)]
  card = scorecard.make(questions, {}, reranking=rankings())
  figures = card["reranking"]["rationale"]["rankings"]["reranker"]["figures"]
  assert figures["hit@1"] == {"value": 1.0, "interval": [1.0, 1.0]}
  console = Console(width=80, file=io.StringIO(), force_terminal=False)
  scorecard_table.show(card, console)
  shown = console.file.getvalue()
  assert "100.0% (100.0 - 100.0)" in shown
  assert "Reranker less BM25, hit@1: +100.0 (+100.0 to +100.0)" in shown
  assert "Random order" in shown
  assert "Accuracy" not in shown
  assert max(map(len, shown.splitlines())) <= 80
  page = report.render([report_data.Run("rankings", card, questions, {})])
  assert '"reranking":[{"reference":"rationale","lists":8' in page
  with pytest.raises(InputError, match="or ranked lists"):
    scorecard.make(questions, {})
