"""Queries of a file, one after another: plain lines, tab-separated, or JSON lines, each with an id.

Reading streams, so a file may hold more queries than memory; what is wrong is named with its line.
"""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from etils import epath

from kard_jax.core import files

STDIN = "-"
FIELDS = ("text", "question", "query")  # of a JSON row: where its query may stand


class Query(NamedTuple):
  """One query.

  Attributes:
    id: unique in the file.
    text: never blank.
  """

  id: str
  text: str


class QueryFile:
  """The queries of a file or of standard input; iterate once.

  A `.jsonl` file has an object a line, with `id` or `_id` (a string or a whole number) and the
  query as `text`, `question` or `query`; a `.tsv` file id, tab, query; any other a query a line,
  unless its first line begins with `{`. Where there is no id, it is the number of the line. A name
  that ends in `.gz` is read through gzip. Blank lines are passed over.

  Args:
    source: a path, or `-` for standard input.
    field: of a JSON row, where the query stands.

  Attributes:
    size: bytes of the file; None for standard input.

  Raises:
    InputError: the file is missing, has no query or is not of its format; a query is blank, an id
      stands twice. The message names the line.
  """

  def __init__(self, source: str, *, field: str | None = None):
    self._source, self._field = source, field
    self._name = "standard input" if source == STDIN else source
    self._raw: IO[bytes] | None = None
    self.size: int | None = None
    if source != STDIN:
      path = epath.Path(source)
      if not path.exists():
        raise files.InputError(f"{source}: no such file")
      if path.is_dir():
        raise files.InputError(f"{source}: a folder; name a file of queries")
      self.size = path.stat().length

  def position(self) -> int:
    """How many bytes of the file have been read; all of them at its end."""
    if self._raw is None or self.size is None:
      return 0
    return self.size if self._raw.closed else self._raw.tell()

  def __iter__(self) -> Iterator[Query]:
    seen: dict[str, int] = {}
    kind = _kind(self._source)
    for number, line in self._lines():
      if not line.strip():
        continue
      where = f"{self._name}:{number}"
      kind = kind or ("json" if line.lstrip().startswith("{") else "text")
      query = self._parsed(kind, line, number, where)
      if not query.text.strip():
        raise files.InputError(f"{where}: the query is empty")
      try:
        "".join(query).encode()
      except UnicodeEncodeError as error:
        raise files.InputError(f"{where}: not valid Unicode ({error.reason})") from None
      if (before := seen.setdefault(query.id, number)) != number:
        raise files.InputError(f"{where}: the id {query.id!r} stands in line {before} already")
      yield query
    if not seen:
      raise files.InputError(f"{self._name}: no queries")

  def _lines(self) -> Iterator[tuple[int, str]]:
    """Numbered lines, from 1, without their ends."""
    try:
      with (
        sys.stdin.buffer if self._source == STDIN else epath.Path(self._source).open("rb") as raw
      ):
        self._raw = raw
        lines = gzip.GzipFile(fileobj=raw) if self._source.endswith(".gz") else raw
        for number, encoded in enumerate(lines, 1):
          try:
            line = encoded.decode("utf-8-sig" if number == 1 else "utf-8")
          except UnicodeDecodeError as error:
            raise files.InputError(f"{self._name}:{number}: not UTF-8 ({error})") from None
          yield number, line.rstrip("\r\n")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
      raise files.InputError(f"{self._name}: not a whole gzip file ({error})") from None
    except OSError as error:
      raise files.InputError(f"{self._name}: cannot be read ({error.strerror})") from None

  def _parsed(self, kind: str, line: str, number: int, where: str) -> Query:
    if kind == "text":
      return Query(str(number), line)
    if kind == "tsv":
      id, tab, text = line.partition("\t")
      if not tab:
        raise files.InputError(f"{where}: id, tab and query are needed, this is {line[:40]!r}")
      return Query(id, text)
    try:
      row = json.loads(line)
    except (ValueError, RecursionError) as error:
      raise files.InputError(f"{where}: not JSON ({error})") from None
    if not isinstance(row, dict):
      raise files.InputError(f"{where}: a JSON object is needed, this is {line[:40]!r}")
    name = row.get("id", row.get("_id", number))
    if not isinstance(name, str | int) or isinstance(name, bool) or name == "":
      raise files.InputError(f"{where}: the id has to be a string or a whole number, not {name!r}")
    return Query(str(name), self._text(row, where))

  def _text(self, row: dict[str, Any], where: str) -> str:
    found = [name for name in ([self._field] if self._field else FIELDS) if name in row]
    if not found:
      wanted = repr(self._field) if self._field else ", ".join(map(repr, FIELDS))
      there = ", ".join(map(repr, row)) or "none"
      raise files.InputError(
        f"{where}: the query is looked for in {wanted}; the fields are {there}: name one by --field"
      )
    if len(found) > 1:
      raise files.InputError(f"{where}: {' and '.join(map(repr, found))}: name one by --field")
    if not isinstance(row[found[0]], str):
      raise files.InputError(f"{where}: {found[0]!r} has to be a string, not {row[found[0]]!r}")
    return row[found[0]]


def _kind(source: str) -> str | None:
  """What a file's name says of its format; None: its first line tells."""
  name = source.removesuffix(".gz")
  endings = {".jsonl": "json", ".json": "json", ".tsv": "tsv", ".txt": "text"}
  return next((kind for ending, kind in endings.items() if name.endswith(ending)), None)
