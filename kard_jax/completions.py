"""What a model was asked for and what came, in a journal that outlives kills.

A completion that stands here was paid for and is never asked for again. The journal belongs to one
model, its request options and its prompts: with others it is left alone, with one clear error.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from kard_jax.core.files import InputError, PathLike
from kard_jax.core.journal import Journal
from kard_jax.endpoint import Answer

FORMAT = 1


class Ask(NamedTuple):
  """A prompt, and how many completions of it are wanted.

  Attributes:
    id: what the prompt is known by, such as the question's id.
    prompt: the text.
    samples: completions wanted.
  """

  id: str
  prompt: str
  samples: int


class Piece(NamedTuple):
  """What one request asks for: some of an ask's samples."""

  ask: Ask
  samples: tuple[int, ...]


def pieces_of(
  asks: Iterable[Ask], there: Container[tuple[str, int]] = (), *, at_once: bool
) -> list[Piece]:
  """Asks as requests.

  Args:
    asks: what is wanted.
    there: (id, sample) of what is not needed any more.
    at_once: whether a request is for all samples that follow one another, or for one.
  """
  pieces: list[Piece] = []
  for ask in asks:
    samples = [i for i in range(ask.samples) if (ask.id, i) not in there]
    for i, sample in enumerate(samples):
      if at_once and i and sample == samples[i - 1] + 1:
        pieces[-1] = Piece(ask, (*pieces[-1].samples, sample))
      else:
        pieces.append(Piece(ask, (sample,)))
  return pieces


def digest(text: str) -> str:
  """A short name of a text."""
  return hashlib.sha256(text.encode()).hexdigest()[:16]


class Record:
  """The journal of completions; open it as a context.

  Args:
    path: a local file, begun if it is not there.
    identity: what decides the texts besides the prompts (`Endpoint.identity`).
    asks: all that is wanted now.

  Attributes:
    prompt_tokens, completion_tokens: spent so far, on all rows.
    completions: how many there are, of all asks ever made.

  Raises:
    InputError: another model, other options or other prompts made the journal; two asks share an
      id; or as `Journal`.
  """

  def __init__(self, path: PathLike, identity: Mapping[str, Any], asks: Sequence[Ask]):
    self._asks = {ask.id: ask for ask in asks}
    if len(self._asks) != len(asks):
      raise InputError("two questions with the same id; every question needs its own")
    self._journal = Journal(path)
    self.prompt_tokens = self.completion_tokens = self.completions = 0
    self._rows: dict[tuple[str, int], Mapping[str, Any]] = {}
    try:
      self._bind({"format": FORMAT, **identity})
      for number, row in enumerate(self._journal.rows[1:], 2):
        self._take(row, f"{self._journal.path}:{number}")
    except BaseException:
      self._journal.close()
      raise

  def __enter__(self) -> Record:
    return self

  def __exit__(self, *_: object) -> None:
    self._journal.close()

  @property
  def path(self) -> str:
    """Where it is."""
    return self._journal.path

  @property
  def ids(self) -> list[str]:
    """Of all that is asked now."""
    return list(self._asks)

  @property
  def torn(self) -> int:
    """Bytes of a row that a kill cut short, and which is asked for again."""
    return self._journal.torn

  def missing(self, *, at_once: bool) -> list[Piece]:
    """What is wanted and not there, one sample a request, or those that follow one another."""
    return pieces_of(self._asks.values(), self._rows, at_once=at_once)

  def add(self, piece: Piece, answer: Answer) -> Piece | None:
    """Records what a request brought; returns what it should have brought besides."""
    rows = []
    used = [answer.prompt_tokens, answer.completion_tokens]
    for sample, completion in zip(piece.samples, answer.completions, strict=False):
      rows.append(
        _key(piece.ask, sample)
        | {"text": completion.text, "finish": completion.finish, "tokens": used}
      )
      used = [0, 0]  # the request's first row has its tokens
    self._append(rows)
    left = piece.samples[len(rows) :]
    return Piece(piece.ask, left) if left else None

  def reject(self, piece: Piece, reason: str) -> None:
    """Records that the server will not answer; it is not asked again."""
    rows = [_key(piece.ask, i) | {"rejected": reason, "tokens": [0, 0]} for i in piece.samples]
    self._append(rows)

  def sync(self) -> None:
    """Forces all to the disk."""
    self._journal.sync()

  def texts(self) -> dict[str, list[str]]:
    """The completions that are there, by ask, in the order of their samples."""
    return {
      ask.id: [str(row["text"]) for row in self._of(ask) if "text" in row]
      for ask in self._asks.values()
    }

  def counts(self) -> dict[str, int]:
    """How many completions were wanted, came, were cut at the length limit, were rejected."""
    rows = [row for ask in self._asks.values() for row in self._of(ask)]
    return {
      "asked": sum(ask.samples for ask in self._asks.values()),
      "answered": sum("text" in row for row in rows),
      "cut": sum(row.get("finish") == "length" for row in rows),
      "rejected": sum("rejected" in row for row in rows),
    }

  def _of(self, ask: Ask) -> Iterable[Mapping[str, Any]]:
    keys = ((ask.id, i) for i in range(ask.samples))
    return [self._rows[key] for key in keys if key in self._rows]

  def _append(self, rows: Sequence[Mapping[str, Any]]) -> None:
    self._journal.append(*rows)
    for row in rows:
      self._take(row, self.path)

  def _bind(self, identity: Mapping[str, Any]) -> None:
    identity = json.loads(json.dumps(identity))  # as it is read back
    if not self._journal.rows:
      self._journal.append({"made_by": identity})
      return
    before = self._journal.rows[0].get("made_by")
    if before == identity:
      return
    if not isinstance(before, dict) or before.get("format") != FORMAT:
      raise InputError(f"{self.path}:1: not a journal of completions; move it away")
    changed = [k for k in {*before, *identity} if before.get(k) != identity.get(k)]
    shown = "; ".join(f"{k} = {before.get(k)}, now {identity.get(k)}" for k in sorted(changed))
    raise InputError(
      f"{self.path} was begun with {shown}. Put it back, or keep both with another "
      "--gin.WORKDIR=\"'...'\""
    )

  def _take(self, row: Mapping[str, Any], where: str) -> None:
    try:
      id, sample, prompt = str(row["id"]), int(row["sample"]), row["prompt"]
      read, written = map(int, row["tokens"])
      if "rejected" not in row:
        self.completions += isinstance(row["text"], str)
    except (KeyError, TypeError, ValueError) as error:
      raise InputError(
        f"{where}: not a row of completions ({type(error).__name__}: {error})"
      ) from None
    self.prompt_tokens += read
    self.completion_tokens += written
    ask = self._asks.get(id)
    if ask is not None and prompt != digest(ask.prompt):
      raise InputError(
        f"{where}: question {id!r} was asked with another prompt. Put its text, the exemplars, "
        "the templates and TEACHER_GOLD back, or keep both with another --gin.WORKDIR=\"'...'\""
      )
    self._rows.setdefault((id, sample), row)


def _key(ask: Ask, sample: int) -> dict[str, Any]:
  return {"id": ask.id, "sample": sample, "prompt": digest(ask.prompt)}
