"""StrategyQA and MedQA in the forms they are published in, and the real files that are here."""

import json
import shutil

import pytest

from kard_jax.core import files
from kard_jax.core.files import InputError
from tasks import medqa, registry, strategyqa


def _asked(number, **more):
  return {"qid": f"s{number}", "question": f"Is it {number}?", "answer": number % 3 == 0} | more


def _evidence(*ids):
  return [[[[*ids[:1]]], [["no_evidence", list(ids[1:])], "operation"]], [["operation"]]]


@pytest.fixture
def release(tmp_path):
  folder = tmp_path / "strategyqa"
  folder.mkdir()
  rows = [_asked(i, facts=["f"], evidence=_evidence(f"P-{i}", "P-0", "gone-1")) for i in range(100)]
  (folder / "strategyqa_train.json").write_text(json.dumps(rows))
  test = [{"qid": f"t{i}", "question": f"Hidden {i}?"} for i in range(9)]
  (folder / "strategyqa_test.json").write_text(json.dumps(test))
  paragraphs = {
    f"P-{i}": {
      "title": f"Page {i}",
      "section": "",
      "headers": [],
      "para_index": 0,
      "content": "x y",
    }
    for i in range(100)
  }
  (folder / "strategyqa_train_paragraphs.json").write_text(json.dumps(paragraphs))
  (folder / "strategyqa_test_paragraphs.json").write_text(json.dumps({"Q-1": paragraphs["P-1"]}))
  return folder


def test_strategyqa_as_released(release):
  splits = strategyqa.questions(0, str(release))
  assert {split: len(some) for split, some in splits.items()} == {"train": 70, "test": 30}
  assert strategyqa.questions(5, str(release)) == splits  # whatever the seed
  assert {(row.split, row.reason) for row in splits.rejected} == {("test", "no label")}
  assert len(splits.rejected) == 9
  assert any("9 questions have no published label" in note for note in splits.notes)
  question = splits["train"][1]
  number = int(question.id[1:])
  assert question.label == (0 if number % 3 == 0 else 1)
  assert question.gold == (f"P-{number}", "P-0")  # gone-1 is no paragraph
  assert question.extra["facts"] == ["f"]
  found = {passage.id: passage for passage in strategyqa.passages(0, str(release))}
  assert len(found) == 101
  assert (found["P-3"].title, found["P-3"].text) == ("Page 3", "x y")


def test_strategyqa_with_dev_questions(release):
  rows = json.loads((release / "strategyqa_train.json").read_text())
  (release / "strategyqa_train.json").write_text(json.dumps(rows[:80]))
  files.write_jsonl(release / "dev.json", rows[80:])
  shutil.move(release / "strategyqa_train.json", release / "train.json")
  splits = strategyqa.questions(0, str(release))
  assert {split: len(some) for split, some in splits.items()} == {"train": 80, "test": 20}


def test_strategyqa_as_kard_splits_it(release):
  form = {"sent2": "", "ending0": "yes", "ending1": "no", "ending2": "", "ending3": ""}
  kard = [form | {"sent1": f"Is it {i}?", "label": int(i % 3 > 0)} for i in range(60)]
  files.write_jsonl(release / "kard_train.jsonl", kard)
  rows = [{"index": i, "model": "m", "completions": [f"because {i}"]} for i in range(60)]
  files.write_jsonl(release / "teacher_train.jsonl", rows)
  splits = strategyqa.questions(0, str(release))
  assert {split: len(some) for split, some in splits.items()} == {"train": 60, "test": 40}
  assert splits["train"][7].gold == ("P-7", "P-0")  # known by the text
  teacher = strategyqa.teacher(0, str(release))
  assert teacher(splits["train"][7], 5) == ["because 7"]
  assert teacher.name == "m"
  for name in ("strategyqa_train.json", "strategyqa_test.json"):
    (release / name).unlink()
  files.write_jsonl(release / "kard_test.jsonl", kard[:2])
  assert len(strategyqa.questions(0, str(release))["test"]) == 2


def test_strategyqa_without_what_it_needs(tmp_path):
  with pytest.raises(InputError, match="gin: SOURCE"):
    strategyqa.questions(0, None)
  with pytest.raises(InputError, match=r"no training questions .* strategyqa_train.json"):
    strategyqa.questions(0, str(tmp_path))
  files.write_jsonl(tmp_path / "train.jsonl", [_asked(i) for i in range(10)])
  assert len(strategyqa.questions(0, str(tmp_path))["test"]) == 3
  with pytest.raises(InputError, match="gin: KNOWLEDGE"):
    list(strategyqa.passages(0, str(tmp_path)))
  with pytest.raises(InputError, match=r"no teacher_train\.jsonl\.gz"):
    strategyqa.teacher(0, str(tmp_path))


def _case(number, options):
  texts = {letter: f"{letter} of {number}" for letter in options}
  return {
    "question": f"Case {number}?",
    "options": texts,
    "answer_idx": options[number % len(options)],
    "meta_info": "step1",
    "metamap_phrases": ["x"],
  }


def test_medqa_as_released(tmp_path):
  for country in ("US", "Mainland", "Taiwan"):
    folder = tmp_path / "data_clean/questions" / country
    four = folder / "4_options"
    four.mkdir(parents=True)
    for name, count in (("train", 8), ("dev", 3), ("test", 2)):
      numbers = range(count)
      files.write_jsonl(folder / f"{name}.jsonl", [_case(i, "ABCDE") for i in numbers])
      files.write_jsonl(
        four / f"phrases_no_exclude_{name}.jsonl", [_case(i, "ABCD") for i in numbers]
      )
  books = tmp_path / "data_clean/textbooks/en"
  books.mkdir(parents=True)
  (books / "Anatomy_Gray.txt").write_text("\ufeffone " + "word " * 120 + "\r\n\r\nsecond line\n")
  archive = shutil.make_archive(tmp_path / "data_clean", "zip", tmp_path, "data_clean")
  for source in (str(tmp_path / "data_clean"), archive):
    for name, size in (("medqa", 4), ("medqa_five_options", 5)):
      dataset = registry.load(name, module="tasks.medqa", source=source)
      splits = dataset.read_questions()
      assert {split: len(some) for split, some in splits.items()} == {
        "train": 8, "validation": 3, "test": 2,
      }  # fmt: skip
      question = splits["train"][1]
      assert len(question.options) == size
      assert question.letter == "B"
      assert question.extra == {"meta_info": "step1"}
      found = list(dataset.read_passages())
      assert [p.id for p in found] == [
        "Anatomy_Gray/1-0", "Anatomy_Gray/1-1", "Anatomy_Gray/3-0",
      ]  # fmt: skip
      assert found[0].title == "Anatomy Gray"


def test_medqa_without_what_it_needs(tmp_path):
  with pytest.raises(InputError, match="gin: SOURCE"):
    medqa.questions(0, None)
  with pytest.raises(InputError, match="no training questions"):
    medqa.questions(0, str(tmp_path))
  files.write_jsonl(tmp_path / "train.jsonl", [_case(0, "ABCD")])
  with pytest.raises(InputError, match=r"no textbooks .*gin: KNOWLEDGE"):
    list(medqa.passages(0, str(tmp_path)))


def test_another_knowledge_base(release, tmp_path):
  corpus = tmp_path / "corpus.jsonl"
  files.write_jsonl(corpus, [{"id": "w", "title": "t", "text": "all of it"}])
  dataset = registry.load("strategyqa", source=str(release), knowledge=str(corpus))
  assert [passage.id for passage in dataset.read_passages()] == ["w"]
  assert not any(q.gold for some in dataset.read_questions().values() for q in some)
  assert str(corpus) in map(str, dataset.inputs())
  assert any(
    q.gold for q in registry.load("strategyqa", source=str(release)).read_questions()["test"]
  )


def test_the_real_files(shared_data):
  source = str(shared_data / "strategyqa")
  dataset = registry.load("strategyqa", source=source)
  splits = dataset.read_questions()
  assert {split: len(some) for split, some in splits.items()} == {"train": 1603, "test": 610}
  assert not splits.rejected
  known = {passage.id for passage in dataset.read_passages()}
  assert len(known) == 17_645
  assert sum(bool(q.gold) for q in splits["train"]) == 1581
  assert all(set(q.gold) <= known for some in splits.values() for q in some)
  teacher = dataset.make_teacher()
  assert {len(teacher(question, 99)) for question in splits["train"]} == {10}
  for source in (shared_data, shared_data / "medqa"):
    cases = medqa.questions(0, str(source))
    assert {split: len(some) for split, some in cases.items()} == {"train": 100}
    assert len(medqa.teacher(0, str(source))(cases["train"][0], 99)) == 10
  assert len(list(medqa.passages(0, str(shared_data)))) == 31_821
