import os
import signal
import subprocess
import sys

import pytest

from kard_jax.core.files import InputError
from kard_jax.core.journal import Journal


def test_rows_are_there_again(tmp_path):
  path = tmp_path / "deep" / "j.jsonl"
  with Journal(path) as journal:
    journal.append({"a": 1})
    journal.append({"b": "\u00e4\u2028\r\n"}, {"c": None})
    assert path.read_text().count("\n") == 3  # handed over at once
  with Journal(path) as journal:
    assert journal.rows == [{"a": 1}, {"b": "\u00e4\u2028\r\n"}, {"c": None}]
    assert journal.torn == 0


WHOLE = '{"a": 1}\n{"b": "\u00e4"}\n'


@pytest.mark.parametrize("cut", range(1, len(WHOLE.encode()) - 1))
def test_a_kill_at_any_byte_costs_at_most_the_last_row(tmp_path, cut):
  path = tmp_path / "j.jsonl"
  content = WHOLE.encode()[:cut]
  path.write_bytes(content)
  rows = [{"a": 1}, {"b": "\u00e4"}]
  with Journal(path) as journal:
    # A row that lacks nothing but its line end was written.
    whole = content.count(b"\n") + (content.rpartition(b"\n")[2][-1:] == b"}")
    assert journal.rows == rows[:whole]
    torn = 0 if content.endswith((b"\n", b"}")) else len(content.rpartition(b"\n")[2])
    assert journal.torn == torn
    journal.append({"c": 3})
  with Journal(path) as journal:
    assert journal.rows == [*rows[:whole], {"c": 3}]


@pytest.mark.parametrize("line", ["[]", "{", "x"])
def test_another_line_that_is_none_is_named(tmp_path, line):
  path = tmp_path / "j.jsonl"
  path.write_text(f'{{"a": 1}}\n{line}\n{{"b": 2}}\n')
  with pytest.raises(InputError, match=r"j\.jsonl:2: not a row of a journal"):
    Journal(path)
  assert path.read_text() == f'{{"a": 1}}\n{line}\n{{"b": 2}}\n'


def test_one_writer_at_a_time(tmp_path):
  with (
    Journal(tmp_path / "j.jsonl"),
    pytest.raises(InputError, match="another process writes there"),
  ):
    Journal(tmp_path / "j.jsonl")
  Journal(tmp_path / "j.jsonl").close()


def test_a_remote_path_is_refused():
  with pytest.raises(InputError, match="gs://b/j: a journal needs a disk of this machine"):
    Journal("gs://b/j")


def test_a_full_disk_is_told(tmp_path, monkeypatch):
  def full(file, content):
    raise OSError(28, "No space left on device")

  with Journal(tmp_path / "j.jsonl") as journal:
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(InputError, match=r"j\.jsonl: cannot be written \(No space left"):
      journal.append({"a": 1})
    assert journal.rows == []


_WRITER = """
import sys
from kard_jax.core.journal import Journal
with Journal(sys.argv[1]) as journal:
  for number in range(10**6):
    journal.append({"number": number})
    print(number, flush=True)
"""


def test_what_was_appended_outlives_a_kill(tmp_path):
  path = tmp_path / "j.jsonl"
  process = subprocess.Popen(
    [sys.executable, "-c", _WRITER, path], stdout=subprocess.PIPE, text=True
  )
  told = [int(process.stdout.readline()) for _ in range(50)]
  process.send_signal(signal.SIGKILL)
  process.stdout.close()
  process.wait()
  with Journal(path) as journal:  # the lock died with it
    numbers = [row["number"] for row in journal.rows]
  assert numbers == list(range(len(numbers)))
  assert len(numbers) > told[-1]
