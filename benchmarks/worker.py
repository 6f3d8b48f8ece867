"""An engine in a process of its own: `Worker` is its outside, `serve` its inside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class Failed(Exception):
  """What an engine could not do, in a line."""


class Worker:
  """An engine in a process of its own; a context manager that ends it.

  Args:
    script: the file beside this one that has the engine.
    name: the engine's, of the script's `ENGINES`.
    python: the interpreter that can import it.
    log: a file that gets what the engine prints.
    options: of its method `begin`.

  Attributes:
    begun: what it says of itself.

  Raises:
    Failed: there is no such interpreter, or it cannot import the engine.
  """

  def __init__(self, script: str, name: str, python: str, log: Path, **options: Any):
    self.name = name
    with log.open("ab") as out:
      try:
        self._process = subprocess.Popen(
          [python, str(Path(__file__).resolve().parent / script), name],
          stdin=subprocess.PIPE,
          stdout=subprocess.PIPE,
          stderr=out,
          text=True,
          env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
      except OSError as error:
        raise Failed(f"{python}: {error.strerror}") from None
    try:
      self.begun = self("begin", **options)
    except Failed:
      self.end()
      raise

  def __enter__(self) -> Worker:
    return self

  def __exit__(self, *error: object) -> None:
    self.end()

  def __call__(self, action: str, **options: Any) -> dict[str, Any]:
    """Has it do something and waits for the answer.

    Raises:
      Failed: it could not.
    """
    assert self._process.stdin is not None
    assert self._process.stdout is not None
    try:
      self._process.stdin.write(json.dumps({"do": action, **options}) + "\n")
      self._process.stdin.flush()
      line = self._process.stdout.readline()
    except BrokenPipeError:
      line = ""
    answer = json.loads(line) if line else {"error": f"ended with {self._process.wait()}"}
    if "error" in answer:
      raise Failed(f"{self.name}: {action}: {answer['error']}")
    return answer

  def end(self) -> None:
    """Ends the process, whatever it does."""
    self._process.kill()
    self._process.communicate()


def serve(
  engines: Mapping[str, Callable[[], Any]],
  complete: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> None:
  """Is the engine that the command line names, until standard input ends.

  A line there is a JSON object such as `{"do": "run", "steps": 2}`; the answer, a line on standard
  output, is what the method of that name returns, or `{"error": ...}`, and the engine goes on.

  Args:
    engines: makes each, by its name.
    complete: gives an answer as it is sent.
  """
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # what libraries print goes to the log
  engine = engines[sys.argv[1]]()
  for line in sys.stdin:
    options = json.loads(line)
    try:
      answer = complete(getattr(engine, options.pop("do"))(**options))
    except Exception as error:
      answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer), file=answers, flush=True)
