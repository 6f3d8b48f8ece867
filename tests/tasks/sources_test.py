"""Sources: which files make which example, in which order, and what is said of unfit files."""

import dataclasses

import numpy as np
import pytest
import seqio

from kard_jax import questions as questions_lib
from kard_jax.core.files import InputError
from kard_jax.prompts import Prompts
from tasks.dataset import STUDENT_KINDS
from tasks.sources import RerankSource, StudentSource

_PROMPTS = Prompts()


def _student(files, kind, k=1, prompts=_PROMPTS):
  rationale, knowledge = STUDENT_KINDS[kind]
  return StudentSource(
    lambda: files.path, prompts, rationale=rationale, knowledge=knowledge, k=lambda: k
  )


def _rerank(files):
  return RerankSource(lambda: files.path, _PROMPTS)


def _examples(source, split="train", **arguments):
  arguments = {"shuffle": False} | arguments
  return list(source.get_dataset(split, **arguments).as_numpy_iterator())


def _expected(files, kind, k):
  """Id, input and target of each example, straight from the files."""
  rationale, knowledge = STUDENT_KINDS[kind]
  questions = {question.id: question for question in files.questions["train"]}
  texts = {(row["question_id"], row["sample"]): row["rationale"] for row in files.rationales}
  keys = files.kept("train") if rationale else [(id, None) for id in questions]
  passages = {passage.id: passage for passage in files.passages}
  rows = files.rows(f"{knowledge}.jsonl") if knowledge else []
  found = {
    (row["question_id"], row.get("sample")): [passages[p["id"]] for p in row["passages"]][:k]
    for row in rows
  }
  for id, sample in keys:
    yield (
      id if sample is None else f"{id}/{sample}",
      _PROMPTS.student_input(questions[id], found.get((id, sample), ())),
      _PROMPTS.student_target(questions[id], texts.get((id, sample))),
    )


@pytest.mark.parametrize(
  ("kind", "k"), [("ft", 1), ("kaft", 2), ("rd", 1), ("kard", 1), ("kard", 3)]
)
def test_examples_of_a_student(tiny_files, kind, k):
  examples = _examples(_student(tiny_files, kind, k))
  expected = list(_expected(tiny_files, kind, k))
  assert [
    tuple(example[name].decode() for name in ("id", "inputs", "targets")) for example in examples
  ] == expected
  assert ("Knowledge" in expected[0][1]) == (kind in ("kaft", "kard"))
  by_id = {question.id: question for question in tiny_files.questions["train"]}
  for example in examples:
    question = (
      by_id[example["id"].decode().rpartition("/")[0]]
      if kind in ("rd", "kard")
      else by_id[example["id"].decode()]
    )
    assert example["label"] == question.label
    options = [option.decode() for option in example["options"]]
    assert tuple(option for option in options if option) == question.options


def test_rationales_that_were_not_kept_are_no_examples(tiny_files):
  ids = [record.id for record in _student(tiny_files, "rd").records("train")]
  assert ids == [f"{id}/{sample}" for id, sample in tiny_files.kept("train")]
  assert len(ids) == 24 < len(tiny_files.rationales)
  assert not any(id.endswith("/1") for id in ids)


def test_a_block_more_and_less_than_the_rows(tiny_files, monkeypatch):
  from tasks import sources

  whole = _examples(_student(tiny_files, "kard"))
  monkeypatch.setattr(sources, "_BLOCK", 7)
  np.testing.assert_equal(_examples(_student(tiny_files, "kard")), whole)


def test_examples_of_a_reranker(tiny_files):
  examples = _examples(_rerank(tiny_files), "validation")
  rows = {
    f"{row['question_id']}/{row['sample']}": row["passages"]
    for row in tiny_files.rows("candidates.jsonl")
  }
  texts = {passage.id: _PROMPTS.passage_text(passage) for passage in tiny_files.passages}
  questions = {question.id: question for question in tiny_files.questions["validation"]}
  ids = [example["id"].decode() for example in examples]
  assert ids == [f"{id}/{sample}" for id, sample in tiny_files.kept("validation")]
  for id, example in zip(ids, examples, strict=True):
    listed = rows[id]
    assert [text.decode() for text in example["passages"]] == [texts[p["id"]] for p in listed]
    np.testing.assert_array_equal(example["scores"], np.float32([p["score"] for p in listed]))
    assert example["from_rationale"].tolist() == [p["from"] == "rationale" for p in listed]
    assert example["query"].decode() == _PROMPTS.reranker_query(questions[id.rpartition("/")[0]])


def test_candidates_from_elsewhere_are_sorted(own_files):
  rows = own_files.rows("candidates.jsonl")
  sorted_ones = _rerank(own_files).records("train")
  own_files.rewrite("candidates.jsonl", [row | {"passages": row["passages"][::-1]} for row in rows])
  for record, same in zip(_rerank(own_files).records("train"), sorted_ones, strict=True):
    by_position = [
      dict(zip(one.candidates.positions.tolist(), one.candidates.scores, strict=True))
      for one in (record, same)
    ]
    assert by_position[0] == by_position[1]  # each passage keeps its score
    assert (np.diff(record.candidates.scores) <= 0).all()
    assert record.candidates.from_rationale[0]


def test_shards_are_a_partition(tiny_files):
  source = _student(tiny_files, "rd")
  whole = [example["id"] for example in _examples(source)]
  shards = [
    [example["id"] for example in _examples(source, shard_info=seqio.ShardInfo(index, 3))]
    for index in range(3)
  ]
  assert sorted(id for shard in shards for id in shard) == sorted(whole)
  assert shards[1] == whole[1::3]


def test_a_seed_shuffles_all_examples(tiny_files):
  source = _student(tiny_files, "ft")
  orders = [
    [example["id"] for example in _examples(source, shuffle=True, seed=seed)] for seed in (3, 3, 4)
  ]
  assert orders[0] == orders[1] != orders[2]
  assert sorted(orders[0]) == sorted(example["id"] for example in _examples(source))


def test_number_of_examples_follows_the_files(own_files):
  source = _student(own_files, "rd")
  assert source.num_input_examples("train") == 24
  assert source.num_input_examples("validation") == 8
  size = (own_files.path / "rationales.jsonl").stat().st_size
  none = [
    row | {"kept": False, "teacher": "tes"} if row["kept"] else row for row in own_files.rationales
  ]
  own_files.rewrite("rationales.jsonl", none)
  assert (own_files.path / "rationales.jsonl").stat().st_size == size
  assert source.num_input_examples("train") == 0
  own_files.rewrite("rationales.jsonl", own_files.rationales[:1])
  assert source.num_input_examples("train") == 1
  assert len(_examples(source)) == 1
  assert _examples(source, "validation") == []


def test_splits_are_those_with_a_file(own_files):
  source = _student(own_files, "ft")
  assert source.splits == ("train", "validation", "test")
  (own_files.path / "questions" / "validation.jsonl").unlink()
  assert source.splits == ("train", "test")
  with pytest.raises(InputError, match=r"validation.jsonl: no such split; there are: train, test"):
    source.get_dataset("validation")


def _spoilt(files, name, change):
  rows = files.rows(name)
  change(rows)
  files.rewrite(name, rows)


def _drop(rows):
  rows.pop(2)


def _unknown(rows):
  rows[2]["passages"][0]["id"] = "nobody"


def _twice(rows):
  rows.append(rows[0])


def _malformed(rows):
  del rows[2]["passages"]


def _no_side(rows):
  rows[2]["passages"][0]["from"] = "heaven"


def _score(value):
  def change(rows):
    rows[2]["passages"][1]["score"] = value

  return change


def _same_passage(rows):
  rows[2]["passages"].append(rows[2]["passages"][0])


@pytest.mark.parametrize(
  ("kind", "name", "change", "message"),
  [
    ("kard", "silver.jsonl", _drop, r"silver.jsonl: no row for question 'train/q 1', sample 0"),
    ("kard", "silver.jsonl", _unknown, r"silver.jsonl:3: .*no passage has the id 'nobody'"),
    ("kard", "silver.jsonl", _twice, r"silver.jsonl:\d+: .* twice"),
    ("kard", "silver.jsonl", _malformed, r"silver.jsonl:3: not a row of silver.jsonl"),
    ("kaft", "retrieved.jsonl", _drop, r"retrieved.jsonl: no row for question 'train/q 2'"),
    ("rerank", "candidates.jsonl", _drop, r"candidates.jsonl: no row for question"),
    ("rerank", "candidates.jsonl", _no_side, r"candidates.jsonl:3: .*heaven"),
    ("rerank", "candidates.jsonl", _same_passage, r"candidates.jsonl:3: a passage .* twice"),
    ("rerank", "candidates.jsonl", _score(float("nan")), r"jsonl:3: the score of .* is nan"),
    ("rerank", "candidates.jsonl", _score(1e39), r"jsonl:3: the score of .* is 1e\+39"),
    ("rerank", "candidates.jsonl", _score("7.5"), r"jsonl:3: the score of .* is '7.5'"),
    ("rerank", "candidates.jsonl", _score(None), r"jsonl:3: the score of .* is None"),
    (
      "rd",
      "rationales.jsonl",
      lambda rows: rows[3].update(question_id="x"),
      r"rationales.jsonl:4: .*'x'",
    ),
  ],
)
def test_files_that_do_not_fit(own_files, kind, name, change, message):
  source = _rerank(own_files) if kind == "rerank" else _student(own_files, kind)
  source.get_dataset("train")  # fits
  _spoilt(own_files, name, change)
  with pytest.raises(InputError, match=message):
    source.get_dataset("train")


def test_more_passages_than_were_stored(own_files):
  with pytest.raises(InputError, match="at most 4 passages a row, but 5 are wanted"):
    _student(own_files, "kard", k=5).get_dataset("train")
  rows = own_files.rows("silver.jsonl")
  rows[1]["passages"] = rows[1]["passages"][:1]  # one short list is as BM25 found it
  own_files.rewrite("silver.jsonl", rows)
  records = _student(own_files, "kard", k=2).records("train")
  assert [len(record.passages) for record in records[:3]] == [2, 1, 2]


def test_files_that_are_missing(own_files):
  (own_files.path / "silver.jsonl").unlink()
  with pytest.raises(InputError, match=r"silver.jsonl: no such file"):
    _student(own_files, "kard").get_dataset("train")
  assert len(_examples(_student(own_files, "rd"))) == 24  # needs none


def test_unequal_numbers_of_options(own_files):
  long = dataclasses.replace(own_files.questions["train"][0], id="long", options=tuple("abcdefg"))
  questions_lib.write(
    own_files.path / "questions/train.jsonl", [long, *own_files.questions["train"]]
  )
  examples = _examples(_student(own_files, "ft"))
  assert [option.decode() for option in examples[0]["options"]] == list("abcdefg")
  assert [len(example["options"]) for example in examples] == [7] * 13
