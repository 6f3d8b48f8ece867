"""Asking a server that has a limit and misbehaves: nothing lost, nothing twice, the key nowhere."""

import collections
import datetime
import io
import itertools
import json
import logging
import random
import signal
import subprocess
import sys
import time
import traceback

import pytest

from kard_jax import asking, endpoint
from kard_jax.completions import Ask, Record, pieces_of
from kard_jax.core.files import InputError
from kard_jax.endpoint import Endpoint
from tests import endpoint_server
from tests.endpoint_server import KEY

MISBEHAVES = {
  "error_share": 0.03,
  "busy_error_share": 0.01,
  "cut_share": 0.02,
  "cut_body_share": 0.02,
  "slow_share": 0.01,
  "slow": 0.6,
  "late_share": 0.005,
  "malformed_share": 0.02,
  "nonsense_share": 0.02,
  "empty_share": 0.02,
}


@pytest.fixture(autouse=True)
def key(monkeypatch):
  monkeypatch.setenv("OPENAI_API_KEY", KEY)
  for name in ("OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "HTTP_PROXY", "ALL_PROXY"):
    monkeypatch.delenv(name, raising=False)


def asks(count, samples=5):
  return [Ask(f"q{number}", f"Question {number}: which?", samples) for number in range(count)]


def asked(url, path, wanted, **settings):
  return asking.ask(Endpoint("m", url, **{"timeout": 3.0, **settings}), wanted, path)


def texts_of(path):
  rows = [json.loads(line) for line in path.read_text().splitlines()[1:]]
  assert len({(row["id"], row["sample"]) for row in rows}) == len(rows)  # none twice
  return collections.Counter(row["text"] for row in rows)


def sent_by(server):
  return collections.Counter(itertools.chain.from_iterable(server.stats()["answers"].values()))


def test_nothing_is_lost_or_asked_twice_by_a_server_that_misbehaves(tmp_path, monkeypatch):
  monkeypatch.setattr(asking, "_FIRST_WAIT", 0.05)
  path = tmp_path / "journal.jsonl"
  flags = MISBEHAVES | {"late_share": 0, "slow": 0.2, "wait": 0.1, "seed": 3}
  with endpoint_server.start(rate=60, latency=0.01, **flags) as server:
    outcome = asked(server.url, path, asks(30))
    stats = server.stats()
    assert {"limit", "cut", "malformed"} <= set(stats["seen"])
    assert texts_of(path) == sent_by(server)
    assert outcome.counts == {"asked": 150, "answered": 150, "cut": 0, "rejected": 0}
    assert all(len(texts) == 5 for texts in outcome.texts.values())
    assert all(set(outcome.texts[f"q{i}"]) == set(stats["answers"][f"Question {i}: which?"])
               for i in range(30))  # fmt: skip
    again = asked(server.url, path, asks(30))  # all is there: nothing is asked
    assert again == outcome
    assert server.stats()["seen"] == stats["seen"]
    asked(server.url, path, asks(30, samples=6))  # one more of each
    assert sent_by(server).total() == 180
    assert texts_of(path) == sent_by(server)


_RUN = """
import sys
from kard_jax import asking
from tests.asking_test import asks, asked
asked(sys.argv[1], sys.argv[2], asks(int(sys.argv[3])), timeout=2.0)
"""


@pytest.mark.slow
def test_a_thousand_questions_five_kills_and_the_servers_limit(tmp_path):
  path, count, limit, kills, open_requests = tmp_path / "journal.jsonl", 1000, 150, 5, 32
  command = [sys.executable, "-c", _RUN]
  draws = random.Random(7)
  with endpoint_server.start(rate=limit, latency=0.05, late=3, **MISBEHAVES) as server:
    for _ in range(kills):
      process = subprocess.Popen([*command, server.url, path, str(count)])
      time.sleep(draws.uniform(4, 6))
      process.send_signal(signal.SIGKILL)
      assert process.wait() == -signal.SIGKILL
      with path.open("ab") as file:  # as a kill within a write would leave it
        file.write(b'{"id": "q1", "sam')
    done = subprocess.run([*command, server.url, path, str(count)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "cut the last row short" in done.stdout
    recorded, sent = texts_of(path), sent_by(server)
    assert recorded.total() == 5 * count
    assert recorded <= sent
    # What a kill finds under way, between the server's last byte and the journal, is asked again.
    assert sent.total() - recorded.total() <= kills * open_requests
    rows = collections.Counter(row["id"] for row in map(json.loads, path.open()) if "id" in row)
    assert set(rows.values()) == {5}
    assert len(rows) == count


@pytest.mark.slow
@pytest.mark.parametrize("flags", [{}, MISBEHAVES, {"moody_share": 0.15}], ids=str)
def test_throughput_is_near_the_servers_limit(tmp_path, flags):
  limit = 150
  with endpoint_server.start(rate=limit, latency=0.05, late=3, **flags) as server:
    begun = time.monotonic()
    asked(server.url, tmp_path / "journal.jsonl", asks(1000), timeout=2.0)
    seconds = time.monotonic() - begun
    times = server.stats()["times"]
    print(f"{len(times) / seconds / limit:.1%} of the limit, {server.stats()['seen']}")
    # Without the last answers, which wait as long as the server says, whatever the rate.
    most = int(0.98 * len(times))
    share = most / (times[most] - times[0]) / limit
    assert share > 0.9


class TestWhatEndsARun:
  @pytest.mark.parametrize(
    ("flags", "message"),
    [
      ({"status": 400, "code": "invalid_request"}, "does not take requests to 'm' .*400"),
      ({"status": 404, "code": "model_not_found"}, "does not take requests to 'm' .*404"),
      ({"status": 403}, r"refuses the key \(OPENAI_API_KEY; 403"),
      ({"status": 429, "code": "insufficient_quota"}, "no credit left"),
    ],
  )
  def test_what_no_request_will_be_answered_after(self, tmp_path, flags, message):
    with endpoint_server.start(**flags) as server:
      with pytest.raises(InputError, match=message) as caught:
        asked(server.url, tmp_path / "journal.jsonl", asks(100))
      assert server.stats()["seen"]["refused for good"] <= 32
      assert KEY not in str(caught.value)

  def test_a_wrong_key_ends_it_at_once_and_is_shown_nowhere(
    self, tmp_path, monkeypatch, capfd, caplog
  ):
    wrong = "sk-wrong-" + "x" * 20
    monkeypatch.setenv("OPENAI_API_KEY", wrong)
    caplog.set_level(logging.DEBUG)
    logging.getLogger("openai").setLevel(logging.DEBUG)
    try:
      with endpoint_server.start() as server:
        with pytest.raises(InputError, match=r"refuses the key .*API_KEY; 401: In") as caught:
          asked(server.url, tmp_path / "journal.jsonl", asks(100))
        assert server.stats()["seen"]["wrong key"] <= 32
    finally:
      logging.getLogger("openai").setLevel(logging.NOTSET)
    shown = io.StringIO()
    traceback.print_exception(caught.value, file=shown)
    captured = capfd.readouterr()
    files = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert "[key]" in str(caught.value)  # the server repeats it
    assert caplog.text
    for text in (shown.getvalue(), captured.out, captured.err, caplog.text, files, repr(caught)):
      assert wrong not in text

  @pytest.mark.parametrize("fault", ["error", "cut_body", "malformed", "nonsense", "empty"])
  def test_trouble_at_each_attempt(self, tmp_path, monkeypatch, fault):
    monkeypatch.setattr(asking, "_FIRST_WAIT", 0.01)
    with endpoint_server.start(**{f"{fault}_share": 1}) as server:
      with pytest.raises(InputError, match=r"4 of 4 completions did not come, after 3 att"):
        asked(server.url, tmp_path / "journal.jsonl", asks(2, samples=2), attempts=3)
      assert server.stats()["seen"][fault] == 12

  def test_silence(self, tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "_FIRST_WAIT", 0.1)
    silent = pytest.raises(InputError, match=r"has answered nothing for \d s .the last: 429")
    with endpoint_server.start(moody_share=1, told=0) as server, silent:
      asked(server.url, tmp_path / "journal.jsonl", asks(2), patience=0.7)
    told = pytest.raises(InputError, match=r"wants 3\d s without requests")
    with endpoint_server.start(moody_share=1, told=1, wait=30) as server, told:
      asked(server.url, tmp_path / "journal.jsonl", asks(2), patience=20)

  def test_nobody_listens(self, tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "_FIRST_WAIT", 0.01)
    with endpoint_server.start() as server:
      url = server.url
    with pytest.raises(InputError, match=r"did not come.*the connection failed"):
      asked(url, tmp_path / "journal.jsonl", asks(1), attempts=2)


def test_a_server_is_asked_no_sooner_than_it_says(tmp_path):
  with endpoint_server.start(rate=4, burst=0.25, told=1, wait=1, latency=0) as server:
    begun = time.monotonic()
    outcome = asked(server.url, tmp_path / "journal.jsonl", asks(1, samples=2))
    assert time.monotonic() - begun >= 1
    assert outcome.counts["answered"] == 2
    assert server.stats()["seen"]["limit"] == 1


class TestCaps:
  @pytest.mark.parametrize("cap", [{"max_tokens": 505}, {"max_cost": 505e-6}])
  def test_nothing_more_is_asked_beyond_a_cap(self, tmp_path, cap):
    wanted, path = asks(30), tmp_path / "journal.jsonl"
    prices = (1.0, 1.0)  # a dollar a million tokens; an answer takes 14
    with endpoint_server.start(latency=0.02) as server:
      outcome = asked(server.url, path, wanted, prices=prices, options={"max_tokens": 10}, **cap)
      used = outcome.prompt_tokens + outcome.completion_tokens
      assert 505 - 2 * 14 < used <= 505
      assert "is reached" in outcome.capped
      assert outcome.counts["answered"] == sent_by(server).total() == used // 14
      more = asked(server.url, path, wanted, prices=prices, options={"max_tokens": 10})
      assert more.counts["answered"] == 150
      assert more.capped is None
      assert sent_by(server).total() == 150

  def test_a_cost_cap_needs_prices(self):
    with pytest.raises(InputError, match="MAX_COST needs PRICES"):
      Endpoint("m", max_cost=1.0)


class TestAtOnce:
  def test_one_request_brings_all(self, tmp_path):
    with endpoint_server.start() as server:
      outcome = asked(server.url, tmp_path / "j.jsonl", asks(10), at_once=True)
      assert server.stats()["within_limit"] == 10
    assert outcome.counts["answered"] == 50
    assert outcome.completion_tokens == 500

  def test_what_a_server_leaves_out_is_asked_again(self, tmp_path):
    with endpoint_server.start(most_choices=2) as server:
      outcome = asked(server.url, tmp_path / "j.jsonl", asks(4), at_once=True)
      assert server.stats()["within_limit"] == 12
      assert sent_by(server).total() == outcome.counts["answered"] == 20

  def test_pieces_are_of_samples_that_follow_one_another(self):
    (ask,) = asks(1)
    there = {("q0", 1), ("q0", 2)}
    assert [p.samples for p in pieces_of([ask], there, at_once=True)] == [(0,), (3, 4)]
    assert [p.samples for p in pieces_of([ask], there, at_once=False)] == [(0,), (3,), (4,)]


class TestTheJournal:
  def test_belongs_to_a_model_its_options_and_its_prompts(self, tmp_path):
    path = tmp_path / "j.jsonl"
    with endpoint_server.start() as server:
      asked(server.url, path, asks(2))
      before = path.read_bytes()
      with pytest.raises(InputError, match=r"begun with model = m, now other"):
        asking.ask(Endpoint("other", server.url), asks(2), path)
      with pytest.raises(InputError, match=r"begun with request = {}, now {'temperature': 1}"):
        asked(server.url, path, asks(2), options={"temperature": 1})
      with pytest.raises(InputError, match="question 'q0' was asked with another prompt"):
        asked(server.url, path, [Ask("q0", "Other?", 5)])
      assert path.read_bytes() == before

  @pytest.mark.parametrize("row", [{}, {"id": "q0", "sample": 0, "prompt": "x", "tokens": [1]}])
  def test_a_row_that_is_none_is_named(self, tmp_path, row):
    path = tmp_path / "j.jsonl"
    Record(path, {"model": "m"}, []).__exit__()
    path.write_text(path.read_text() + json.dumps(row) + "\n")
    with pytest.raises(InputError, match=r"j\.jsonl:2: not a row of completions"):
      Record(path, {"model": "m"}, [])


def test_a_prompt_that_the_server_rejects_is_not_asked_again(tmp_path):
  path = tmp_path / "j.jsonl"
  with endpoint_server.start(status=400, code="content_filter") as server:
    outcome = asked(server.url, path, asks(2, samples=2))
    assert outcome.counts == {"asked": 4, "answered": 0, "cut": 0, "rejected": 4}
    asked(server.url, path, asks(2, samples=2))
    assert server.stats()["seen"]["refused for good"] == 4


def test_an_endpoint_writes_texts_for_prompts(tmp_path):
  with endpoint_server.start() as server:
    write = asking.generate(Endpoint("m", server.url), tmp_path / "j.jsonl")
    found = write(["one", "two", "one"], 3)
    assert [len(texts) for texts in found] == [3, 3, 3]
    assert found[0] == found[2] != found[1]
    assert write(["two"], 3) == [found[1]]
    assert server.stats()["within_limit"] == 6


class TestSettings:
  def test_a_key_given_for_its_variable_is_not_shown(self):
    with pytest.raises(InputError, match="KEY_VARIABLE: the NAME") as caught:
      Endpoint("m", key_variable="sk-secret")
    assert "secret" not in str(caught.value)

  @pytest.mark.parametrize(("held", "message"), [("", "is not set"), ("a b", "is no key"),
                                                 ("sk-\u00e9", "is no key")])  # fmt: skip
  def test_what_cannot_be_a_key(self, monkeypatch, held, message):
    monkeypatch.setenv("OPENAI_API_KEY", held)
    with pytest.raises(InputError, match=message) as caught:
      Endpoint("m").key()
    assert not held or held not in str(caught.value)

  @pytest.mark.parametrize(
    ("settings", "message"),
    [
      ({"base_url": "https://user:secret@host/v1"}, "BASE_URL: an address"),
      ({"concurrency": 0}, "CONCURRENCY = 0"),
      ({"timeout": 0}, "timeout = 0"),
      ({"options": {"n": 3}}, "REQUEST: 'n'"),
    ],
  )
  def test_bad_ones_are_named(self, settings, message):
    with pytest.raises(InputError, match=message) as caught:
      Endpoint("m", **settings)
    assert "secret" not in str(caught.value)

  def test_an_estimate_counts_requests_tokens_and_cost(self):
    cheap = Endpoint("m", prices=(1.0, 2.0), options={"max_tokens": 100})
    found = asking.estimate(cheap, pieces_of([Ask("q", "x" * 400, 5)], at_once=True))
    assert found == (1, 100, 500, pytest.approx(1100e-6))
    assert asking.estimate(cheap, pieces_of([Ask("q", "x" * 400, 5)], at_once=False))[:3] == (
      5, 500, 500)  # fmt: skip


@pytest.mark.parametrize(
  ("headers", "seconds"),
  [
    ({"retry-after": "2"}, 2),
    ({"retry-after": "1.5"}, 1.5),
    ({"retry-after": "-3"}, 0),
    ({"retry-after": "soon"}, None),
    ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
    ({}, None),
  ],
)
def test_retry_after(headers, seconds):
  assert endpoint.retry_after(headers) == seconds


def test_retry_after_as_a_date():
  then = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=30)
  date = then.strftime("%a, %d %b %Y %H:%M:%S GMT")
  assert 28 < endpoint.retry_after({"retry-after": date}) <= 30
  assert endpoint.retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
