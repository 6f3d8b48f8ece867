"""Silver passages, candidates and retrieved passages."""

import itertools
import json

import numpy as np
import pytest

from kard_jax import silver
from kard_jax.core.files import InputError, read_jsonl
from kard_jax.prompts import Prompts
from kard_jax.questions import Question
from kard_jax.retrieval import bm25
from kard_jax.retrieval import index as index_lib
from kard_jax.retrieval import passages as passages_lib
from kard_jax.retrieval.passages import Passage, Passages

PROMPTS = Prompts()
METALS = ("tin", "iron", "gold", "zinc")
PLACES = ("Bora", "Kelu", "Mipa", "Sato", "Vena", "Zuro")


def open_both(folder, items):
  passages_lib.write(items, folder / "passages")
  passages = Passages(folder / "passages")
  return index_lib.build(passages, folder / "index"), passages


@pytest.fixture
def world(tmp_path):
  """Places and their facts; a question names the place and the metals, a rationale the fact."""
  items, questions = [], []
  for number, place in enumerate(PLACES):
    metal = number % len(METALS)
    items.append(Passage(f"{place}/metal", place, f"{place} works rich seams of {METALS[metal]}."))
    items.append(Passage(f"{place}/river", place, f"A wide river runs by {place}."))
    items.append(Passage(f"{place}/food", place, f"{place} eats bread and soup."))
    asked = f"Which metal do diggers of {place} bring up?"
    questions.append(Question(f"q{number}", asked, METALS, metal))
  index, passages = open_both(tmp_path, items)
  return index, passages, questions


def rationales(questions, samples=2):
  for question, sample in itertools.product(questions, range(samples)):
    place, metal = question.question.split()[5], question.options[question.label]
    text = f"{place} works rich seams of {metal}{'.' * sample}"
    yield {"question_id": question.id, "sample": sample, "rationale": text, "kept": True}


def test_silver_passages_hold_the_fact(world):
  index, passages, questions = world
  rows = list(silver.ground(index, passages, questions, rationales(questions), PROMPTS, silver=3))
  assert len(rows) == 12
  for (found, _), row in zip(rows, rationales(questions), strict=True):
    assert (found["question_id"], found["sample"]) == (row["question_id"], row["sample"])
    place = PLACES[int(row["question_id"][1:])]
    assert found["passages"][0]["id"] == f"{place}/metal"
    assert [set(entry) for entry in found["passages"]] == [{"id", "score"}] * 3


def test_candidates_are_of_both_sides_and_scored_by_the_rationale(world):
  index, passages, questions = world
  rows = list(rationales(questions))
  grounded = silver.ground(index, passages, questions, rows, PROMPTS, candidates=4)
  sides = set()
  for (_, found), row in zip(grounded, rows, strict=True):
    question = questions[int(row["question_id"][1:])]
    by_rationale, by_question = (
      [passages.ids[position] for position in bm25.top_k(index, [query], 4).ids_BxK[0]]
      for query in (
        PROMPTS.rationale_query(question, row["rationale"]),
        PROMPTS.question_query(question),
      )
    )
    entries = found["passages"]
    ids = [entry["id"] for entry in entries]
    assert len(set(ids)) == len(ids)
    assert set(ids) == {*by_rationale, *by_question}
    for entry in entries:
      assert entry["from"] == ("rationale" if entry["id"] in by_rationale else "question")
      sides.add(entry["from"])
    positions = np.array([[passages.position(id) for id in ids]])
    scores = bm25.rescore(index, [PROMPTS.rationale_query(question, row["rationale"])], positions)
    assert [np.float32(entry["score"]) for entry in entries] == scores[0].tolist()
    order = [
      (-entry["score"], position) for entry, position in zip(entries, positions[0], strict=True)
    ]
    assert order == sorted(order)
    assert set(by_rationale) & set(by_question)  # both find some, and each finds some alone
  assert sides == {"rationale", "question"}


def test_question_side_may_share_no_word_with_the_rationale(tmp_path):
  texts = {"a": "tin", "b": "bread and a good deal more", "c": "bread"}
  index, passages = open_both(tmp_path, [Passage(id, "", text) for id, text in texts.items()])
  question = Question("q", "bread?", ("x", "y"), 0)
  row = {"question_id": "q", "sample": 0, "rationale": "tin", "kept": True}
  [(silver_row, found)] = silver.ground(index, passages, [question], [row], PROMPTS)
  assert [entry["id"] for entry in silver_row["passages"]] == ["a"]
  [retrieved] = silver.retrieve(index, passages, [question], PROMPTS)
  assert [entry["id"] for entry in retrieved["passages"]] == ["c", "b"]
  # Under the rationale both score 0, and such ties stand in passage order.
  entries = [(entry["id"], entry["from"]) for entry in found["passages"]]
  assert entries == [("a", "rationale"), ("b", "question"), ("c", "question")]
  assert [entry["score"] for entry in found["passages"][1:]] == [0.0, 0.0]


def test_nothing_found(tmp_path):
  index, passages = open_both(tmp_path, [Passage("a", "", "tin")])
  question = Question("q", "bread?", ("x", "y"), 0)
  row = {"question_id": "q", "sample": 0, "rationale": "soup", "kept": True}
  [(silver_row, found)] = silver.ground(index, passages, [question], [row], PROMPTS)
  assert silver_row["passages"] == found["passages"] == []
  [retrieved] = silver.retrieve(index, passages, [question], PROMPTS)
  assert retrieved == {"question_id": "q", "passages": []}


def test_rationales_not_kept_are_passed_over(world):
  index, passages, questions = world
  rows = list(rationales(questions))
  for row in rows[::3]:
    row["kept"] = False
  found = [row for row, _ in silver.ground(index, passages, questions, rows, PROMPTS)]
  expected = [(row["question_id"], row["sample"]) for row in rows if row["kept"]]
  assert [(row["question_id"], row["sample"]) for row in found] == expected


@pytest.mark.parametrize("kept", [True, False])
def test_unknown_question_is_named(world, kept):
  index, passages, questions = world
  rows = list(rationales(questions))
  rows[4] = {**rows[4], "question_id": "nobody", "kept": kept}
  with pytest.raises(InputError, match=r"work/rationales\.jsonl:5: .*'nobody'"):
    list(silver.ground(index, passages, questions, rows, PROMPTS, source="work/rationales.jsonl"))


def test_batches_do_not_change_the_rows(world):
  index, passages, questions = world
  one, five, all_ = (
    list(silver.ground(index, passages, questions, rationales(questions), PROMPTS, batch=batch))
    for batch in (1, 5, 100)
  )
  assert one == five == all_
  one, all_ = (
    list(silver.retrieve(index, passages, questions, PROMPTS, batch=batch)) for batch in (1, 100)
  )
  assert one == all_


def test_rationales_are_streamed(world):
  index, passages, questions = world
  taken = []

  def endless():
    for row in itertools.cycle(rationales(questions)):
      taken.append(row)
      yield row

  grounded = silver.ground(index, passages, questions, endless(), PROMPTS, batch=8)
  assert len(list(itertools.islice(grounded, 20))) == 20
  assert len(taken) <= 24


def test_retrieved_by_the_question(world):
  index, passages, questions = world
  rows = list(silver.retrieve(index, passages, questions, PROMPTS, k=3))
  hits = bm25.top_k(index, [PROMPTS.question_query(question) for question in questions], 3)
  for row, question, ids, scores in zip(rows, questions, *hits, strict=True):
    assert row["question_id"] == question.id
    assert [entry["id"] for entry in row["passages"]] == [passages.ids[i] for i in ids]
    assert [np.float32(entry["score"]) for entry in row["passages"]] == scores.tolist()


def test_scores_survive_json_to_the_bit(world):
  index, passages, questions = world
  rows = list(silver.retrieve(index, passages, questions, PROMPTS, k=3))
  assert json.loads(json.dumps(rows)) == rows
  assert all(len(str(e["score"])) <= 11 for row in rows for e in row["passages"])


def test_index_of_other_passages(world, tmp_path):
  index, _, questions = world
  _, others = open_both(tmp_path / "other", [Passage("a", "", "tin")])
  with pytest.raises(InputError, match="other passages"):
    list(silver.ground(index, others, questions, rationales(questions), PROMPTS))
  with pytest.raises(InputError, match="other passages"):
    list(silver.retrieve(index, others, questions, PROMPTS))


@pytest.mark.parametrize("setting", ["silver", "candidates", "batch"])
def test_settings_are_checked(world, setting):
  index, passages, questions = world
  with pytest.raises(InputError, match=f"{setting}: at least 1"):
    list(silver.ground(index, passages, questions, [], PROMPTS, **{setting: 0}))


def test_openbookqa_rationales_find_more_gold_facts_than_questions(tmp_path, shared_data):
  facts = (shared_data / "openbookqa/openbook.txt").read_text().splitlines()
  facts = list(dict.fromkeys(fact.strip().strip('"') for fact in facts if fact.strip()))
  index, passages = open_both(
    tmp_path, [Passage(f"f{number}", "", fact) for number, fact in enumerate(facts)]
  )
  questions, gold = [], {}
  for _, row in itertools.islice(read_jsonl(shared_data / "openbookqa/train_complete.jsonl"), 200):
    stem, label = row["question"], "ABCD".index(row["answerKey"])
    options = tuple(choice["text"] for choice in stem["choices"])
    questions.append(Question(row["id"], stem["stem"], options, label))
    gold[row["id"]] = row["fact1"]
  rows = [
    {"question_id": question.id, "sample": 0, "rationale": row["completions"][0], "kept": True}
    for question, (_, row) in zip(
      questions, read_jsonl(shared_data / "openbookqa/teacher_train.jsonl.gz"), strict=False
    )
  ]

  def hit_at_1(found):
    return np.mean(
      [
        passages[passages.position(row["passages"][0]["id"])].text == gold[row["question_id"]]
        for row in found
      ]
    )

  by_rationale = hit_at_1(
    row for row, _ in silver.ground(index, passages, questions, rows, PROMPTS)
  )
  by_question = hit_at_1(silver.retrieve(index, passages, questions, PROMPTS))
  assert by_rationale > by_question > 0.1, (by_rationale, by_question)
