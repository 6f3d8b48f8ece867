"""The answering launcher: few-shot prompts as its students read them, and what it begins from."""

import flax.linen as nn
import pytest

from kard_jax import answer as answer_lib
from kard_jax import questions as questions_lib
from kard_jax.core import decode
from kard_jax.core.files import InputError
from kard_jax.core.partitioning import Partitioner
from kard_jax.core.provenance import Stage
from kard_jax.endpoint import Endpoint
from kard_jax.exemplars import Exemplar
from kard_jax.questions import Question
from kard_jax.student.t5 import T5
from launch import answer
from tests import endpoint_server
from tests.convert import folders
from tests.tasks import tiny

EXEMPLARS = [
  Exemplar(Question(f"e{i}", f"What is {i} and {i}?", ("much", "none"), 0), f"Twice {i}.", "Sums.")
  for i in range(1, 4)
]


@pytest.fixture
def dataset(tmp_path):
  from tasks import registry

  files = tiny.write(tmp_path)
  yield registry.register(
    "counting", questions=files.path / "questions", passages=files.path / "p.jsonl",
    exemplars=EXEMPLARS, workdir=files.path,
  )  # fmt: skip
  registry.unregister("counting")


def student(**changes):
  network = changes.pop("network", T5(vocab_size=128))
  partitioner = Partitioner({"data": 1, "tensor": 1}, (), devices=1)
  return answer.Student(network, "student/rd", partitioner, decode.Sampler(), **changes)


def test_few_shot_prompts_fit_what_the_student_reads(dataset):
  asked = Question("q", "Which metal is dug up near the place q?", ("tin", "iron"), 1)
  for count, length in ((3, 4_000), (2, 4_000), (2, 140)):
    reader = student(input_length=length).reader(dataset)
    compose = answer.FewShot(rationales=True, exemplars=count)(dataset, reader)
    (prompt,) = compose([asked], [[]])
    (size,) = reader.sizes([prompt.text])
    assert prompt.tokens == size <= length
    assert prompt.text.count("Twice") == prompt.exemplars
    assert prompt.exemplars == count if length == 4_000 else prompt.exemplars < count
    assert prompt.text.endswith(dataset.prompts.question_text(asked))
  (bare,) = answer.FewShot(rationales=False, exemplars=3)(dataset, None)([asked], [[]])
  assert "Twice" not in bare.text
  assert bare.text.count("Answer: A") == 3


@pytest.mark.parametrize("count", [0, 4])
def test_more_exemplars_than_there_are(dataset, count):
  with pytest.raises(InputError, match=f"EXEMPLARS = {count}: the dataset 'counting' has 3"):
    answer.FewShot(rationales=True, exemplars=count)(dataset, None)


def test_a_dataset_without_exemplars(tmp_path):
  from tasks import registry

  files = tiny.write(tmp_path)
  dataset = registry.register("bare", questions=files.path / "q", passages=files.path / "p.jsonl")
  registry.unregister("bare")
  with pytest.raises(InputError, match=r"'bare' has no solved examples .* register\(.*exemplars"):
    answer.FewShot(rationales=True)(dataset, None)


def test_an_endpoint_answers_few_shot_prompts(dataset, monkeypatch):
  """Without a vocabulary; what was answered once is not asked again."""
  monkeypatch.setenv("OPENAI_API_KEY", endpoint_server.KEY)
  questions = questions_lib.read(dataset.workdir / "questions/validation.jsonl")
  with endpoint_server.start() as server:
    asked = answer.Asked(Endpoint("m", server.url))
    settings = {"dataset": dataset, "split": "validation", "student": asked, "samples": 2}
    settings["prompt"] = answer.FewShot(rationales=True, exemplars=2)

    def run():
      with Stage("answer_fewshot_cot", dataset.workdir, {}).running() as stage:
        answer.answer(stage, **settings)
      return answer_lib.read(dataset.workdir / "predictions/fewshot_cot.jsonl", questions)

    rows, sent = run(), server.stats()["answers"]
    assert sum(map(len, sent.values())) == 2 * len(questions)
    assert all(prompt.count("Twice") == 2 for prompt in sent)
    for row in rows:
      assert row["exemplars"] == 2
      assert not {"prompt_tokens", "cut_tokens"} & set(row)
      assert row["samples"][0]["rationale"].startswith("It follows from fact")
    unchanged = [row | {"seconds": 0} for row in rows]
    assert [row | {"seconds": 0} for row in run()] == unchanged
    assert server.stats()["answers"] == sent


class Embedding(nn.Module):
  """A network whose parameters are quickly made."""


def test_a_student_is_below_the_work_directory_or_a_model(tmp_path, monkeypatch):
  found = []
  monkeypatch.setattr(answer.initial, "load", lambda place, *_: found.append(place.folder) or {})
  partitioner = Partitioner({"data": 1, "tensor": 1}, (), devices=1)
  stage = Stage("answer_rd", tmp_path / "work", {})
  model = folders.t5(tmp_path / "model")
  answer._restore(stage, str(model), Embedding(), partitioner, "best")
  (tmp_path / "work/student/rd").mkdir(parents=True)
  (tmp_path / "work/student/rd/config.json").write_text("{}")
  answer._restore(stage, "student/rd", Embedding(), partitioner, "best")
  assert [path.name for path in found] == ["model", "rd"]
  assert list(stage.input_hashes()) == ["student/rd"]
  assert f"{model}/config.json" in stage.origin_hashes()
  with pytest.raises(InputError, match=r"work/student/kard: no such folder; run the stages before"):
    answer._restore(stage, "./student/kard", Embedding(), partitioner, "best")
