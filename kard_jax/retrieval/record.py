"""One passage, the bytes it is stored as, and the hash over many (section 3.2)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any

from kard_jax.core import files

_ESCAPED = bytes(range(0x20)) + b'"\\'  # what JSON text writes in another way


@dataclasses.dataclass(frozen=True)
class Passage:
  """One passage of the knowledge base.

  Attributes:
    id: unique in the corpus.
    title: of the article or chapter; may be empty.
    text: never empty.
  """

  id: str
  title: str
  text: str

  def record(self) -> bytes:
    """The bytes that are stored, and hashed: JSON with keys in a fixed order."""
    return b'{"id": "%b", "title": "%b", "text": "%b"}' % (
      _escape(self.id),
      _escape(self.title),
      _escape(self.text),
    )

  @classmethod
  def of_record(cls, record: bytes) -> Passage:
    """The passage of its bytes.

    Raises:
      ValueError, TypeError: they are not those of a passage.
    """
    row = record.decode()
    if row.startswith('{"id": "'):
      # The layout is known, so the three strings are scanned where they stand: half the time.
      id, end = scanstring(row, 8)
      if row.startswith(', "title": "', end):
        title, end = scanstring(row, end + 12)
        if row.startswith(', "text": "', end):
          text, end = scanstring(row, end + 11)
          if row[end:] == "}":
            return cls(id, title, text)
    return cls(**json.loads(row))


def contents(passage: Passage) -> str:
  """The text of a passage that is indexed: title and text."""
  return f"{passage.title}\n{passage.text}" if passage.title else passage.text


class CorpusHash:
  """SHA-256 over passages in order: what an index keeps, to know its passages again."""

  def __init__(self) -> None:
    self._digest = hashlib.sha256()

  def add(self, passage: Passage) -> None:
    """Takes the next passage."""
    self._digest.update(passage.record() + b"\n")

  def add_records(self, records: Sequence[bytes]) -> None:
    """Takes the next passages as their records (`Passages.records`)."""
    self._digest.update(b"\n".join([*records, b""]))

  def hexdigest(self) -> str:
    """The hash of the passages so far."""
    return self._digest.hexdigest()


def validate(id: Any, title: Any, text: Any, where: str) -> None:
  """Checks the fields of a passage.

  Args:
    id, title, text: the fields, of any type.
    where: file and line, the beginning of a message.

  Raises:
    InputError: one is no string, not valid Unicode, or (but for the title) empty.
  """
  for field, value in (("id", id), ("title", title), ("text", text)):
    if not isinstance(value, str):
      raise files.InputError(f"{where}: {field!r} has to be a string, not {value!r}")
    if field != "title" and (not value or value.isspace()):
      raise files.InputError(f"{where}: {field!r} is empty")
    if not value.isascii():
      try:
        value.encode()
      except UnicodeEncodeError as error:
        message = f"{where}: {field!r} is not valid Unicode ({error.reason})"
        raise files.InputError(message) from None


def _escape(value: str) -> bytes:
  """A string as JSON writes it between its quotes, without \\u escapes of what UTF-8 can say."""
  encoded = value.encode()
  if len(encoded.translate(None, _ESCAPED)) == len(encoded):
    return encoded
  return json.encoder.encode_basestring(value)[1:-1].encode()
