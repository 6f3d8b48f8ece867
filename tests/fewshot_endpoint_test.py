"""The recipe fewshot_endpoint, as a user runs it, against a local server that misbehaves."""

import json

from tests import endpoint_server, own_dataset_test, planets
from tests.own_dataset_test import _forget_planets  # noqa: F401 (a fixture, of each test)

METHODS = ["fewshot", "fewshot_passages", "fewshot_cot", "fewshot_cot_passages"]
EXEMPLARS = """

from kard_jax.exemplars import Exemplar
from kard_jax.questions import Question

EXEMPLARS = [
  Exemplar(
    Question(f"e{i}", f"Which metal is dug up on Vega {i}?", ("tin", "zinc"), i % 2),
    f"Vega {i} is known for it.",
    passage=f"On Vega {i} they dig.",
  )
  for i in range(5)
]
"""


def test_few_shot_accuracy_of_a_model_behind_an_endpoint(tmp_path, monkeypatch):
  module = planets.write(tmp_path / "planets")
  text = module.read_text().replace(
    "from tasks import registry\n", "from tasks import registry\n" + EXEMPLARS
  )
  module.write_text(text.replace("  teacher=", "  exemplars=EXEMPLARS,\n  teacher="))
  monkeypatch.setenv("OPENAI_API_KEY", endpoint_server.KEY)
  work = tmp_path / "work"
  faults = {"error_share": 0.1, "cut_share": 0.1, "malformed_share": 0.1, "seed": 1}
  with endpoint_server.start(**faults) as server:
    argv = [
      "--recipe=fewshot_endpoint", "--gin.DATASET='planets'", f"--gin.MODULE='{module}'",
      f"--gin.WORKDIR='{work}'", "--gin.SPLIT='test'", f"--gin.BASE_URL='{server.url}'",
      "--gin.MODEL='m'", "--gin.SAMPLES=2",
    ]  # fmt: skip
    stages = own_dataset_test.in_this_process(monkeypatch, argv)
    assert stages == ["prepare", "index", *["answer"] * 4, "score"]
    sent = server.stats()["answers"]
    assert {"error", "cut", "malformed"} & set(server.stats()["seen"])
    assert own_dataset_test.in_this_process(monkeypatch, argv) == []  # nothing is asked again
    assert server.stats()["answers"] == sent
  assert sum(map(len, sent.values())) == 4 * 20 * 2
  card = json.loads((work / "scorecard/scorecard.json").read_text())
  assert list(card["methods"]) == METHODS
  assert {row["n"] for row in card["methods"].values()} == {20}
  assert all(row["votes"]["samples"] == 2 for row in card["methods"].values())
  # Each of the 20 questions was asked in four ways: with and without rationales and passages.
  ways = [("is known for it." in prompt, "Knowledge: On Vega" in prompt) for prompt in sent]
  assert {way: ways.count(way) for way in set(ways)} == {
    (cot, read): 20 for cot in (False, True) for read in (False, True)
  }
  assert all(prompt.count("Which metal is dug up on Vega") == 5 for prompt in sent)
  for name in METHODS:
    rows = [json.loads(line) for line in (work / f"predictions/{name}.jsonl").open()]
    assert all(bool(row["passages"]) == name.endswith("passages") for row in rows)
    for row in rows:
      texts = [text for prompt in sent for text in sent[prompt]]
      assert all(any(s["rationale"] in text for text in texts) for s in row["samples"])
  for path in work.rglob("*"):
    assert path.is_dir() or endpoint_server.KEY.encode() not in path.read_bytes(), path
