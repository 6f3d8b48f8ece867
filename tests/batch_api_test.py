"""The Batch API in steps: each can be repeated or killed, and brings everything once."""

import json

import pytest

from kard_jax import asking, batch_api
from kard_jax.batch_api import Batches
from kard_jax.completions import Ask
from kard_jax.core.files import InputError
from kard_jax.core.journal import Journal
from kard_jax.endpoint import Endpoint
from tests import endpoint_server

WANTED = [
  Ask("q0", "Why?", 3),
  Ask("Frage \u00e4", "expired", 3),
  Ask("q2", "broken", 3),
]


@pytest.fixture(autouse=True)
def key(monkeypatch):
  monkeypatch.setenv("OPENAI_API_KEY", endpoint_server.KEY)


@pytest.fixture
def server():
  with endpoint_server.start() as running:
    yield running


def batches(server, tmp_path, wanted=WANTED, **settings):
  endpoint = Endpoint("m", server.url, **settings)
  return Batches(tmp_path / "batch", endpoint, wanted, tmp_path / "journal.jsonl")


def texts(server, tmp_path, wanted=WANTED):
  found = asking.recorded(Endpoint("m", server.url), wanted, tmp_path / "journal.jsonl")
  return found.texts


@pytest.mark.parametrize("at_once", [False, True])
def test_what_is_written_submitted_and_collected_comes_once(server, tmp_path, at_once):
  one = batches(server, tmp_path, at_once=at_once)
  (path,) = one.write()
  assert one.write() == [path]
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  assert len(rows) == (3 if at_once else 9)
  assert rows[0]["body"]["messages"] == [{"role": "user", "content": "Why?"}]
  assert len({row["custom_id"] for row in rows}) == len(rows)
  assert one.submit() == 1
  assert one.submit() == 0
  with pytest.raises(InputError, match=r"requests-00001\.jsonl: is submitted and not collected"):
    one.write()
  report = one.collect()
  assert report == (0, {"in_progress": 1}, {})
  report = one.collect()
  each = 1 if at_once else 3
  assert report == (
    3, {}, {"400: no such thing": each, "batch_expired: too late": each})  # fmt: skip
  found = texts(server, tmp_path)
  assert [len(some) for some in found.values()] == [3, 0, 0]
  assert len(set(found["q0"])) == 3
  assert all(text.endswith("of Why?") for text in found["q0"])
  assert one.collect() == (0, {}, {})
  # What came with an error is written again, and nothing else.
  (second,) = one.write()
  assert second.name == "requests-00002.jsonl"
  assert len(second.read_text().splitlines()) == len(rows) * 2 // 3
  one.submit()
  one.collect()
  assert one.collect().collected == 3
  assert [len(some) for some in texts(server, tmp_path).values()] == [3, 3, 0]
  assert server.stats()["batches"] == 2


def test_a_kill_between_a_batch_and_its_note_makes_no_second_one(server, tmp_path, monkeypatch):
  one = batches(server, tmp_path)
  one.write()
  append = Journal.append

  def killed(self, *rows):
    if "batch" in rows[0]:
      raise KeyboardInterrupt
    append(self, *rows)

  monkeypatch.setattr(Journal, "append", killed)
  with pytest.raises(KeyboardInterrupt):
    one.submit()
  assert server.stats()["batches"] == 1
  monkeypatch.undo()
  monkeypatch.setenv("OPENAI_API_KEY", endpoint_server.KEY)
  assert batches(server, tmp_path).submit() == 1
  assert server.stats()["batches"] == 1
  one.collect()
  assert one.collect().collected == 3


def test_results_that_were_fetched_by_hand_are_taken(server, tmp_path):
  one = batches(server, tmp_path, WANTED[:1])
  (path,) = one.write()
  row = json.loads(path.read_text().splitlines()[1])
  body = {"choices": [{"message": {"content": "By hand."}}]}
  result = {"custom_id": row["custom_id"], "response": {"status_code": 200, "body": body}}
  results = tmp_path / "batch" / "results.jsonl"
  results.write_text(json.dumps(result) + "\n\nnot json\n")
  report = one.collect()
  assert report.collected == 1
  assert [reason.split(" (")[0] for reason in report.errors] == ["a row that makes no sense"]
  assert texts(server, tmp_path, WANTED[:1]) == {"q0": ["By hand."]}
  assert one.collect() == (0, {}, report.errors)
  with pytest.raises(InputError, match=r"requests-00001\.jsonl:2: was answered since"):
    one.submit()
  results.write_text(json.dumps(result | {"custom_id": "other-0-1"}) + "\n")
  with pytest.raises(InputError, match=r"results\.jsonl:1: of a question that is not asked about"):
    one.collect()


def test_large_runs_make_several_files(server, tmp_path, monkeypatch):
  monkeypatch.setattr(batch_api, "MOST_REQUESTS", 2)
  paths = batches(server, tmp_path, WANTED[:1]).write()
  assert [len(path.read_text().splitlines()) for path in paths] == [2, 1]
  assert batches(server, tmp_path, WANTED[:1]).submit() == 2


def test_nothing_to_collect(server, tmp_path):
  with pytest.raises(InputError, match="nothing to collect; BATCH = 'submit' first"):
    batches(server, tmp_path).collect()


def test_a_refusal_is_one_line_without_the_key(server, tmp_path):
  one = batches(server, tmp_path)
  one.write()
  server.process.kill()
  server.process.wait()
  with pytest.raises(InputError, match=r"the Batch API refuses \(Connection error"):
    one.submit()
