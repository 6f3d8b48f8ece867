"""Registering: what a call adds, what is refused, and a dataset that nobody here has seen."""

import importlib
import os
import sys

import pytest
import seqio

from kard_jax import judge
from kard_jax import questions as questions_lib
from kard_jax import teacher as teacher_lib
from kard_jax.core import files
from kard_jax.core.files import InputError
from kard_jax.prompts import Prompts
from kard_jax.questions import Question
from kard_jax.retrieval.passages import Passage
from tasks import registry, vocabularies
from tasks.batches import Batches
from tasks.dataset import STUDENT_KINDS

_SEEN = [
  Question("a", "Which metal?", ("tin", "iron"), 0),
  Question("b", "Which other metal?", ("tin", "iron"), 1),
]


def test_all_tasks_are_registered_at_once(register, tiny_files):
  dataset = register(tiny_files)
  for kind in registry.KINDS:
    task = seqio.get_mixture_or_task(dataset.task(kind))
    assert task.name == f"{dataset.name}_{kind}"
    assert registry.datasets_of(task.name) == [dataset]
    assert bool(task.metric_fns) == (kind in STUDENT_KINDS)
  assert registry.get(dataset.name) is dataset
  assert dataset.name in registry.names()
  (example, *_) = seqio.get_mixture_or_task(dataset.task("ft")).get_dataset(
    {"inputs": 9, "targets": 9}, shuffle=False
  )
  assert example["inputs"].shape == (9,)


def test_a_name_is_free_again_after_unregister(register, tiny_files):
  dataset = register(tiny_files)
  registry.unregister(dataset.name)
  assert dataset.task("rd") not in seqio.TaskRegistry.names()
  assert dataset.name not in registry.names()
  register(tiny_files, name=dataset.name, questions="elsewhere")


def test_names_that_are_refused(register):
  dataset = register()
  for name in ("Tiny", "1a", "a-b", "", "a/b"):
    with pytest.raises(InputError, match="cannot name a dataset"):
      register(name=name)
  with pytest.raises(InputError, match="at least 1"):
    register(k=0)
  with pytest.raises(InputError, match="another dataset has this name"):
    register(name=dataset.name, questions="elsewhere")
  seqio.MixtureRegistry.add("taken_rerank", [(dataset.task("rd"), 1)])
  try:
    with pytest.raises(InputError, match="'taken_rerank' already"):
      register(name="taken")
    assert "taken_ft" not in seqio.TaskRegistry.names()  # nothing is half registered
    assert "taken" not in registry.names()
  finally:
    seqio.MixtureRegistry.remove("taken_rerank")
  with pytest.raises(InputError, match=f"did you mean {dataset.name}"):
    registry.get(dataset.name + "x")
  with pytest.raises(InputError, match="is its module imported"):
    registry.get("unlike_any")
  with pytest.raises(InputError, match="'ktd' is not a task; they are ft, kaft"):
    dataset.task("ktd")


def test_a_module_that_is_imported_twice(tmp_path, monkeypatch, tiny_files):
  (tmp_path / "twice_dataset.py").write_text(
    "from tasks import registry\n"
    "def questions(seed, source): return {}\n"
    "registry.register('twice', questions=questions, passages='p.jsonl')\n"
  )
  monkeypatch.syspath_prepend(tmp_path)
  module = importlib.import_module("twice_dataset")
  try:
    registry.locate("twice", tiny_files.path)
    before = registry.get("twice")
    importlib.reload(module)
    after = registry.get("twice")
    assert after is not before
    assert after.questions is module.questions
    assert after.workdir == before.workdir  # where the files are is not forgotten
    assert Batches("twice_rd", "train", lengths={"inputs": 9, "targets": 9}, batch_size=2)(0)
  finally:
    registry.unregister("twice")
    del sys.modules["twice_dataset"]


def test_files_are_found_when_a_stage_says_where(register, tiny_files, own_files):
  dataset = register()
  for ask in (lambda: dataset.workdir, lambda: dataset.vocabulary.vocab_size):
    with pytest.raises(InputError, match=f"tasks.registry.locate\\('{dataset.name}', workdir"):
      ask()
  registry.locate(dataset.name, tiny_files.path)
  assert str(dataset.vocabulary_file) == f"{tiny_files.path}/vocabulary/sentencepiece.model"
  vocabulary = tiny_files.path / "vocabulary/sentencepiece.model"
  loaded = registry.load(dataset.name, vocabulary=os.path.relpath(vocabulary))
  loaded.locate(own_files.path)
  assert str(dataset.workdir) == str(own_files.path)
  assert str(dataset.vocabulary_file) == str(vocabulary)  # relative to where the user stands
  registry.load(dataset.name)
  assert str(dataset.vocabulary_file).startswith(str(own_files.path))
  with pytest.raises(InputError, match="0 passages in a prompt"):
    registry.load(dataset.name, k=0)


def test_a_vocabulary_that_was_trained_again_is_read_again(register, own_files):
  dataset = register(own_files)
  before = dataset.vocabulary.vocab_size
  vocabularies.train_sentencepiece(["a few words"] * 3, dataset.vocabulary_file, 30)
  registry.locate(dataset.name, own_files.path)
  assert (
    seqio.get_mixture_or_task(dataset.task("rd")).output_features["inputs"].vocabulary.vocab_size
    < before
  )


def test_more_passages_in_a_prompt(register, tiny_files):
  dataset = register(tiny_files, k=2)
  counts = []
  for k in (None, 1, 3):
    registry.load(dataset.name, k=k)
    source = seqio.get_mixture_or_task(dataset.task("kard")).source
    counts.append({len(record.passages) for record in source.records("train")})
  assert counts == [{2}, {1}, {3}]


def test_what_a_task_reads(register, tiny_files):
  dataset = register(tiny_files)
  questions = [f"questions/{split}.jsonl" for split in ("train", "validation", "test")]
  vocabulary = "vocabulary/sentencepiece.model"
  assert dataset.task_inputs("ft") == [*questions, vocabulary]
  assert dataset.task_inputs("rerank") == [
    *questions, "rationales.jsonl", "candidates.jsonl", "knowledge/passages", vocabulary,
  ]  # fmt: skip
  for kind in registry.KINDS:
    assert all((tiny_files.path / name).exists() for name in dataset.task_inputs(kind))
  dataset.use("/elsewhere/t5.model")
  assert dataset.task_inputs("rd")[-1] == "/elsewhere/t5.model"


def test_functions_are_called_with_seed_and_source(register):
  calls = []

  def questions(seed, source):
    calls.append((seed, source))
    return {"test": _SEEN[1:], "train": _SEEN[:1]}

  dataset = register(
    questions=questions,
    passages=lambda seed, source: [Passage("p", "", f"{seed} {source}")],
    teacher=lambda seed, source: teacher_lib.RecordedTeacher({}, name=f"{seed} {source}"),
  )
  loaded = registry.load(dataset.name, seed=3, source="/raw")
  assert list(loaded.read_questions()) == ["train", "test"]
  assert calls == [(3, "/raw")]
  assert next(loaded.read_passages()).text == "3 /raw"
  assert loaded.make_teacher().name == "3 /raw"
  assert [str(path) for path in loaded.inputs()] == ["/raw"]
  assert dataset.inputs() == []


@pytest.mark.parametrize(
  ("splits", "message"),
  [
    ({"train": _SEEN, "test": _SEEN[1:]}, "'b' stands in split 'train' and again in 'test'"),
    ({"train": [_SEEN[0], _SEEN[0]]}, "'a' stands in split 'train' and again in 'train'"),
    ({"test": _SEEN}, "no training questions"),
    ({"train": _SEEN, "dev": _SEEN}, "'dev' is not a split"),
    ({"train": _SEEN, "test": []}, "'test' has no question"),
  ],
)
def test_questions_that_are_refused(splits, message, register):
  dataset = register(questions=lambda seed, source: splits)
  with pytest.raises(InputError, match=message):
    dataset.read_questions()


def test_a_file_of_rationales_stands_in_for_a_teacher(register, tmp_path):
  questions_lib.write(tmp_path / "train.jsonl", _SEEN)
  path = tmp_path / "rationales.jsonl"
  rows = [
    {"question_id": "b", "sample": 1, "rationale": "Second.", "kept": True, "teacher": "me"},
    {"question_id": "b", "sample": 0, "rationale": "First.", "kept": False, "teacher": "me"},
  ]
  files.write_jsonl(path, rows)
  dataset = register(questions=tmp_path, teacher=path)
  teacher = dataset.make_teacher()
  assert (teacher(_SEEN[1], 5), teacher(_SEEN[1], 1), teacher(_SEEN[0], 5)) == (
    ["First.", "Second.\nAnswer: B"], ["First."], [],
  )  # fmt: skip
  found = list(teacher_lib.teach(_SEEN, teacher, Prompts(), 5, judge.StatedAnswer()))
  assert [(row["rationale"], row["kept"], row["teacher"]) for row in found] == [
    ("First.", False, "me"),
    ("Second.", True, "me"),
  ]
  files.write_jsonl(path, [*rows, rows[0] | {"question_id": "stranger"}])
  with pytest.raises(InputError, match=r"rationales.jsonl:3: .*'stranger'"):
    dataset.make_teacher()
  with pytest.raises(InputError, match="without a teacher"):
    register().make_teacher()


_MODULE = '''
"""A dataset of one's own."""
import pathlib
from tasks import registry, vocabularies

HERE = pathlib.Path(__file__).parent
registry.register(
  "mine", questions=HERE, passages=HERE / "passages.jsonl", teacher=HERE / "rationales.jsonl"
)
'''


def test_a_dataset_nobody_here_has_seen(tmp_path, tiny_files, own_files):
  folder = tmp_path / "mine"
  for split in ("train", "test"):
    questions_lib.write(folder / f"{split}.jsonl", tiny_files.questions[split])
  files.write_jsonl(folder / "passages.jsonl", [vars(passage) for passage in tiny_files.passages])
  known = {question.id for split in ("train", "test") for question in tiny_files.questions[split]}
  rows = [row for row in tiny_files.rationales if row["question_id"] in known]
  files.write_jsonl(folder / "rationales.jsonl", rows)
  (folder / "mine.py").write_text(_MODULE)
  try:
    for _ in range(2):  # each launcher loads it
      dataset = registry.load("mine", module=str(folder / "mine.py"))
    assert dataset.read_questions() == {
      split: tiny_files.questions[split] for split in ("train", "test")
    }
    assert list(dataset.read_passages()) == tiny_files.passages
    teacher = dataset.make_teacher()
    assert len(teacher(tiny_files.questions["train"][0], 9)) == 3
    assert [path.name for path in dataset.inputs()] == [
      "mine.py",
    "train.jsonl", "test.jsonl", "passages.jsonl", "rationales.jsonl",
    ]  # fmt: skip
    own_files.rewrite("rationales.jsonl", rows)  # as the stages would leave it
    (own_files.path / "questions" / "validation.jsonl").unlink()
    dataset.locate(own_files.path)
    for kind in (*STUDENT_KINDS, "rerank"):
      lengths = {"query": 9, "passages": 9} if kind == "rerank" else {"inputs": 9, "targets": 9}
      found = Batches(dataset.task(kind), "train", lengths=lengths, batch_size=4)
      assert found.examples == (12 if kind in ("ft", "kaft") else 24)
      assert len(found.names(0)) == 4
  finally:
    registry.unregister("mine")


def test_modules_that_do_not_register(tmp_path):
  with pytest.raises(InputError, match=r"gone.py: no such file"):
    registry.load("mine", module=str(tmp_path / "gone.py"))
  with pytest.raises(InputError, match="no_such_module: cannot be imported"):
    registry.load("mine", module="no_such_module")
  (tmp_path / "empty.py").write_text("")
  with pytest.raises(InputError, match=r"empty.py does not register 'mine'"):
    registry.load("mine", module=str(tmp_path / "empty.py"))
  with pytest.raises(InputError, match="no dataset is registered as 'no_such_dataset'"):
    registry.load("no_such_dataset")


def test_mixtures(register, tiny_files):
  first, second = register(tiny_files), register(tiny_files)
  name = f"mixed_{first.name}"
  registry.register_mixture(name, [first.name, second.name])
  try:
    assert registry.datasets_of(f"{name}_kard") == [first, second]
    mixture = seqio.get_mixture_or_task(f"{name}_rd")
    assert [mixture.get_rate(task) for task in mixture.tasks] == [24.0, 24.0]
    dataset = mixture.get_dataset({"inputs": 9, "targets": 9}, "train", seed=1)
    assert {len(example["inputs"]) for example in dataset.take(9).as_numpy_iterator()} == {9}
    with pytest.raises(InputError, match="already"):
      registry.register_mixture(name, [first.name])
  finally:
    for kind in registry.KINDS:
      seqio.MixtureRegistry.remove(f"{name}_{kind}")
  for datasets, rates, message in [
    ([], None, "one or more"),
    ([first.name] * 2, None, "each once"),
    ([first.name, "stranger"], None, "no dataset is registered as 'stranger'"),
    ([first.name], [0.0], "positive rate"),
    ([first.name], [1.0, 2.0], "positive rate"),
  ]:
    with pytest.raises(InputError, match=message):
      registry.register_mixture("other", datasets, rates)
  with pytest.raises(InputError, match="cannot name"):
    registry.register_mixture("Other", [first.name])
