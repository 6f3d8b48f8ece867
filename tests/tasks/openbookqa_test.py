"""OpenBookQA: its files as they are, with the quirks that real ones have."""

import csv
import json
import logging
import shutil

import pytest
import tensorflow_datasets as tfds

from kard_jax.core import files
from kard_jax.core.files import InputError
from tasks import openbookqa, registry


def _row(id, fact, answer="B", labels="ABCD"):
  choices = [{"text": f"choice {label}", "label": label} for label in labels]
  return {
    "id": id,
    "question": {"stem": f"stem {id}", "choices": choices},
    "fact1": fact,
    "answerKey": answer,
  }


@pytest.fixture
def source(tmp_path):
  train = [_row("7-1", "A bee is a pollinator"), _row("7-2", "the sun's rays , are warm .", "D")]
  train += [train[0] | {"id": "7-3"}]  # the same text again
  files.write_jsonl(tmp_path / "train_complete.jsonl", train)
  files.write_jsonl(tmp_path / "dev_complete.jsonl", [_row("8-1", "nobody wrote this")])
  (tmp_path / "openbook.txt").write_text(
    '"a bee  is a pollinator"\n\n"The sun\u2019s rays, are warm"\n'
  )
  (tmp_path / "crowdsourced-facts.txt").write_text(
    "\n  \nA bee is a pollinator.\n-2+2=0\n\u201cstars\u201d shine\n"
  )
  completions = [{"index": i, "completions": [f"{i}a", f"{i}b"]} for i in range(3)]
  files.write_jsonl(tmp_path / "teacher_train.jsonl", completions)
  import gzip

  plain = tmp_path / "teacher_train.jsonl"
  (tmp_path / "teacher_train.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
  plain.unlink()
  return tmp_path


def test_passages_are_facts_once_by_line(source):
  found = [
    (passage.id, passage.title, passage.text) for passage in openbookqa.passages(0, str(source))
  ]
  assert found == [
    ("openbook/1", "", "a bee  is a pollinator"),
    ("openbook/3", "", "The sun's rays, are warm"),
    ("crowdsourced/4", "", "-2+2=0"),
    ("crowdsourced/5", "", '"stars" shine'),
  ]


def test_questions_know_their_gold_passage(source, caplog):
  caplog.set_level(logging.INFO)
  found = openbookqa.questions(0, str(source))
  assert [(q.id, q.label, q.gold) for q in found["train"]] == [
    ("7-1", 1, ("openbook/1",)),
    ("7-2", 3, ("openbook/3",)),
    ("7-3", 1, ("openbook/1",)),
  ]
  assert found["train"][0].question == found["train"][2].question
  assert found["train"][0].options == ("choice A", "choice B", "choice C", "choice D")
  assert found["validation"][0].gold == ()
  assert openbookqa.match(found["train"]) == (3, 3, ())
  assert openbookqa.match(found["validation"]) == (0, 1, ("nobody wrote this",))
  assert "3 of 3 facts found" in caplog.text
  assert "'nobody wrote this'" in caplog.text


def test_the_teachers_rows_are_the_training_questions(source):
  teacher = openbookqa.teacher(0, str(source))
  train = openbookqa.questions(0, str(source))["train"]
  assert [teacher(question, 1) for question in train] == [["0a"], ["1a"], ["2a"]]
  assert teacher(train[2], 9) == ["2a", "2b"]


def _gzipped(path, rows):
  import gzip

  path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


def test_files_that_do_not_fit(source):
  _gzipped(source / "teacher_train.jsonl.gz", [{"index": 0, "completions": []}])
  with pytest.raises(InputError, match="1 rows for 3 training questions"):
    openbookqa.teacher(0, str(source))
  _gzipped(source / "teacher_train.jsonl.gz", [{"index": 1, "completions": []}])
  with pytest.raises(InputError, match=r"gz:1: .* row 0 of 3 is wanted, not 1"):
    openbookqa.teacher(0, str(source))
  for change, message in [
    ({"answerKey": "E"}, "the answer 'E' is none of"),
    ({"question": {"stem": "x"}}, "no options under"),
    ({"question": "x"}, "no options under"),
  ]:
    files.write_jsonl(source / "dev_complete.jsonl", [_row("8-1", "x") | change])
    with pytest.raises(InputError, match=rf"dev_complete.jsonl:1: .*{message}"):
      openbookqa.questions(0, str(source))
  (source / "crowdsourced-facts.txt").write_text("a bee is a pollinator\n\n")
  with pytest.raises(InputError, match=r"crowdsourced-facts.txt: there is no fact"):
    list(openbookqa.passages(0, str(source)))
  (source / "openbook.txt").unlink()
  (source / "crowdsourced-facts.txt").unlink()
  with pytest.raises(InputError, match=r"openbook.txt: no such file.*gin: KNOWLEDGE"):
    list(openbookqa.passages(0, str(source)))
  with pytest.raises(InputError, match="gin: SOURCE"):
    openbookqa.questions(0, None)


@pytest.mark.parametrize(
  ("one", "other"),
  [
    ("The sun\u2019s rays", "the sun's  rays."),
    ('"a fact"', "A fact ."),
    ("as distance increases , size decreases", "As distance increases, size decreases"),
  ],
)
def test_copies_of_a_fact_are_one(one, other):
  assert openbookqa.normalised(one) == openbookqa.normalised(other)


def test_different_facts_stay_apart():
  facts = ["-2+2=0", "2+2=0", "e.g. tin", "tin", "a b", "ab"]
  assert len({openbookqa.normalised(fact) for fact in facts}) == len(facts)


def test_the_real_files(shared_data):
  dataset = registry.load("openbookqa", source=str(shared_data / "openbookqa"))
  splits = dataset.read_questions()
  passages = {passage.id: passage.text for passage in dataset.read_passages()}
  assert {split: len(some) for split, some in splits.items()} == {"train": 4957, "validation": 500}
  kinds = [id.partition("/")[0] for id in passages]
  assert (kinds.count("openbook"), kinds.count("crowdsourced")) == (1326, 5147)
  for some in splits.values():
    assert openbookqa.match(some) == (len(some), len(some), ())
    assert all(passages[question.gold[0]] == question.extra["fact1"] for question in some)
  texts = {(question.question, question.options) for question in splits["train"]}
  assert len(texts) == 4952  # five repeat another's text under their own id
  teacher = dataset.make_teacher()
  assert {len(teacher(question, 99)) for question in splits["train"]} == {20}
  assert teacher(splits["train"][0], 2)[1].startswith(
    "We refer to basic knowledge about the effects of sun"
  )


def _archive(folder, source):
  """The release as it is published: both versions, in one archive."""
  inside = folder / "OpenBookQA-V1-Sep2018" / "Data"
  (inside / "Main").mkdir(parents=True)
  (inside / "Additional").mkdir()
  for name in ("train", "dev", "test"):
    more = {"humanScore": "1.00", "clarity": "2.00", "turkIdAnonymized": "t"}
    rows = [_row(f"{name}-{i}", "A bee is a pollinator") | more for i in range(3)]
    files.write_jsonl(inside / "Additional" / f"{name}_complete.jsonl", rows)
    main = [{key: value for key, value in row.items() if key != "fact1"} for row in rows]
    files.write_jsonl(inside / "Main" / f"{name}.jsonl", main)
  shutil.copy(source / "openbook.txt", inside / "Main")
  shutil.copy(source / "crowdsourced-facts.txt", inside / "Additional")
  return shutil.make_archive(folder / "OpenBookQA-V1-Sep2018", "zip", folder)


def test_the_archive_and_its_main_version(source, tmp_path):
  folder = tmp_path / "release"
  folder.mkdir()
  archive = _archive(folder, source)
  for place in (archive, str(folder / "OpenBookQA-V1-Sep2018")):
    splits = openbookqa.questions(0, place)
    assert {split: len(some) for split, some in splits.items()} == {
      "train": 3, "validation": 3, "test": 3,
    }  # fmt: skip
    assert splits["test"][0].gold == ("openbook/1",)
    assert len(list(openbookqa.passages(0, place))) == 4
  main = openbookqa.questions(0, str(folder / "OpenBookQA-V1-Sep2018/Data/Main"))
  assert main["train"][0].gold == ()
  assert [q.question for q in main["test"]] == [q.question for q in splits["test"]]
  assert openbookqa.match(main["train"]) == (0, 0, ())


def test_the_form_of_kards_code(tmp_path):
  rows = [
    {"sent1": "Bees are", "ending0": "birds", "ending1": "insects", "ending2": "", "ending3": "",
     "label": label}
    for label in ("1", "", "7")
  ]  # fmt: skip
  with (tmp_path / "train.csv").open("w", newline="", encoding="utf-8-sig") as file:
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    writer.writerows(rows)
  (tmp_path / "test.json").write_text(json.dumps([rows[0] | {"label": 0, "id": "mine"}]))
  splits = openbookqa.questions(0, str(tmp_path))
  (question,) = splits["train"]
  assert (question.id, question.options, question.label) == ("train-00000", ("birds", "insects"), 1)
  assert splits["test"][0].id == "mine"
  assert [(row.split, row.reason) for row in splits.rejected] == [
    ("train", "no label"), ("train", "the label names no option"),
  ]  # fmt: skip
  assert splits.rejected[1].where.endswith("train.csv:4")


def test_tfds_by_name(source, tmp_path, monkeypatch):
  """TFDS's own builder prepares a small release, as `tfds build` does the published one."""
  folder = tmp_path / "download"
  folder.mkdir()
  _archive(folder, source)
  monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", lambda *_: str(folder))
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
  monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "tfds"))
  with pytest.raises(InputError, match=r"tfds:openbookqa: not prepared .*`tfds build openbookqa`"):
    openbookqa.questions(0, "tfds:openbookqa")
  tfds.builder("openbookqa", data_dir=tmp_path / "tfds").download_and_prepare()
  dataset = registry.load("openbookqa", source="tfds:openbookqa")
  splits = dataset.read_questions()
  assert {split: len(some) for split, some in splits.items()} == {
    "train": 3, "validation": 3, "test": 3,
  }  # fmt: skip
  question = splits["test"][0]
  assert (question.label, question.options[1]) == (1, "choice B")
  (fact,) = dataset.read_passages()
  assert question.gold == (fact.id,)
  assert fact.text == "A bee is a pollinator"
  assert [path.name for path in dataset.inputs()] == ["dataset_info.json"]
  with pytest.raises(InputError, match="TFDS has no rationales"):
    dataset.make_teacher()
