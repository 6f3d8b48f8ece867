"""Recorded search spaces in their format: splits by question, rationales that belong to them."""

import gzip
import json

import pytest

from kard_jax.core import files
from kard_jax.core.files import InputError
from kard_jax.core.provenance import Stage
from kard_jax.retrieval import index as index_lib
from kard_jax.retrieval import passages as passages_lib
from launch import ground
from tasks import kard_search_spaces as module
from tasks import registry
from tasks.workdir import Workdir


def write_gz(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  with gzip.open(path, "wt") as file:
    file.writelines(json.dumps(row) + "\n" for row in rows)


def space(index, number, **changes):
  return {
    "question_index": index,
    "question": f"Is it {index}?",
    "rationale_index": number,
    "r": [["a_1", 9.0 + number], ["b_2", 5.0]],
    "q": [["c_3", 7.0], ["b_2", 5.0]],
  } | changes


@pytest.fixture
def source(tmp_path):
  folder = tmp_path / "data"
  (folder / "strategyqa").mkdir(parents=True)
  files.write_jsonl(
    folder / "strategyqa" / "kard_train.jsonl",
    [
      {"id": f"q{i}", "sent1": f"Is it {i}?", "ending0": "yes", "ending1": "no", "label": i % 2}
      for i in range(10)
    ],
  )
  write_gz(
    folder / "strategyqa" / "teacher_train.jsonl.gz",
    [{"index": i, "completions": [f"because {i} {n}" for n in range(5)]} for i in range(10)],
  )
  write_gz(
    folder / "kard_search_spaces" / "passages.jsonl.gz",
    [
      {"docid": "a_1", "text": "Ants . Ants eat. They . do."},
      {"docid": "b_2", "text": "Bees . Bees fly."},
      {"docid": "c_3", "text": "no title"},
    ],
  )
  rows = [space(i, n) for i in range(1, 10) for n in (4, 2)]
  write_gz(folder / "kard_search_spaces" / "spaces.jsonl.gz", rows)
  return folder


def test_questions_are_split_by_question_and_seed(source):
  splits = module.questions(0, str(source))
  assert {name: len(some) for name, some in splits.items()} == {
    "test": 3, "validation": 1, "train": 5,
  }  # fmt: skip
  ids = [q.id for some in splits.values() for q in some]
  assert sorted(ids) == [f"q{i}" for i in range(1, 10)]  # q0 has no space
  assert module.questions(0, str(source)) == splits
  assert any(module.questions(seed, str(source)) != splits for seed in (1, 2))


def test_passages_have_the_title_apart(source):
  found = list(module.passages(0, str(source)))
  assert [(p.title, p.text) for p in found] == [
    ("Ants", "Ants eat. They . do."), ("Bees", "Bees fly."), ("", "no title"),
  ]  # fmt: skip


def test_samples_count_the_rationales_that_have_a_space(source):
  found = [s for s in module.spaces(str(source)) if s.question == "q3"]
  assert [(s.sample, s.rationale_index) for s in found] == [(0, 2), (1, 4)]
  teacher = module.teacher(0, str(source))
  (question,) = [
    q for some in module.questions(0, str(source)).values() for q in some if q.id == "q3"
  ]
  texts = teacher(question, 10)
  assert [text.split("\n")[0] for text in texts] == ["because 3 2", "because 3 4"]
  assert all(text.endswith("Answer: B") for text in texts)  # the pipeline had kept it


def test_recorded_lists_become_candidates(source, tmp_path):
  work = tmp_path / "work"
  dataset = registry.load("kard_search_spaces", source=str(source)).locate(work)
  for split, some in dataset.read_questions().items():
    files.write_jsonl(work / f"questions/{split}.jsonl", [q.to_json() for q in some])
  rows = [
    {"question_id": s.question, "sample": s.sample, "rationale": "x", "teacher": "t", "kept": True,
     "reason": "r"}
    for s in module.spaces(str(source))
  ]  # fmt: skip
  files.write_jsonl(work / "rationales.jsonl", rows)
  passages_lib.write(dataset.read_passages(), work / "knowledge/passages")
  stored = passages_lib.Passages(work / "knowledge/passages")
  index_lib.build(stored, work / "knowledge/bm25")
  with Stage("ground", work, {}).running() as stage:
    ground.ground(stage, dataset=dataset, silver=1, recorded=module.spaces)
  candidates = Workdir(work).candidates()["q3", 1]
  assert [stored.ids[at] for at in candidates.positions] == ["a_1", "c_3", "b_2"]
  assert candidates.scores.tolist() == [13.0, 7.0, 5.0]
  assert candidates.from_rationale.tolist() == [True, False, True]
  assert Workdir(work).silver()["q3", 1] == (0,)


@pytest.mark.parametrize(
  ("row", "complaint"),
  [
    (space(3, 1, question="Another?"), "is not of question 3"),
    (space(3, 1, r=[["a_1"]]), "lists of \\[passage, score\\]"),
    (space(3, 4), "a second space of rationale 4"),
    ({"question": "x"}, 'the field "question_index" is missing'),
  ],
)
def test_broken_spaces_are_told_by_line(source, row, complaint):
  rows = [space(3, 4), row]
  write_gz(source / "kard_search_spaces" / "spaces.jsonl.gz", rows)
  with pytest.raises(InputError, match=rf"spaces.jsonl.gz:2: .*{complaint}"):
    module.spaces(str(source))


def test_a_rationale_that_is_not_there_is_told(source):
  write_gz(source / "kard_search_spaces" / "spaces.jsonl.gz", [space(3, 9)])
  with pytest.raises(InputError, match="no rationale 9 of q3"):
    module.teacher(0, str(source))


def test_the_folder_is_needed():
  with pytest.raises(InputError, match="gin: SOURCE"):
    module.spaces(None)
