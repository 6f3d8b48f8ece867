"""Files that stages meet in: read with the line that is wrong, written whole or not at all.

Paths may be local or anything `etils.epath` opens (`gs://...`).
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import uuid
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from etils import epath

PathLike = str | os.PathLike[str]

_CHUNK = 1 << 20  # bytes read at a time when hashing: bounds memory, keeps the disk busy


class InputError(ValueError):
  """What the user gave cannot be used.

  The message names the file and line, or the macro, and what to change. Launchers print it as one
  line and leave with status 2; they never show a traceback for it.
  """


def read_jsonl(path: PathLike) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields `(line_number, row)` for each JSON object of a file; lines count from 1.

  Args:
    path: a UTF-8 file with one JSON object a line; gzip when the name ends in `.gz`. Blank lines
      are passed over.

  Raises:
    InputError: the file is missing or not UTF-8, or a line is not a JSON object.
  """
  file = epath.Path(path)
  if not file.exists():
    raise InputError(f"{path}: no such file")
  try:
    with file.open("rb") as raw:
      binary = gzip.GzipFile(fileobj=raw) if file.name.endswith(".gz") else raw
      for line_number, encoded in enumerate(binary, 1):
        try:
          line = encoded.decode()
          if not line.strip():
            continue
          row = json.loads(line)
        except UnicodeDecodeError as error:
          raise InputError(f"{path}:{line_number}: not UTF-8 ({error})") from None
        except (ValueError, RecursionError) as error:
          raise InputError(f"{path}:{line_number}: not JSON ({error})") from None
        if not isinstance(row, dict):
          raise InputError(f"{path}:{line_number}: a JSON object is needed, this is {line[:40]!r}")
        yield line_number, row
  except (gzip.BadGzipFile, EOFError, zlib.error) as error:
    raise InputError(f"{path}: not a whole gzip file ({error})") from None


def write_jsonl(path: PathLike, rows: Iterable[Any]) -> int:
  """Writes rows as JSON lines, whole or not at all, and returns how many there were."""
  count = 0
  with atomic(path) as temporary, temporary.open("w") as file:
    for row in rows:
      count += 1
      file.write(to_line(row))
  return count


def to_line(row: Any) -> str:
  """A row as a JSON line, with its line end."""
  return json.dumps(row, ensure_ascii=False) + "\n"


def write_json(path: PathLike, value: Any) -> None:
  """Writes one indented JSON value, whole or not at all."""
  with atomic(path) as temporary:
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def atomic(path: PathLike) -> Iterator[epath.Path]:
  """Gives a temporary path to fill as a file or a folder; it takes `path`'s place on success.

  On an exception the temporary is removed and what stood at `path` stays as it was. A kill leaves
  at most a `.tmp-*` neighbour, which no reader takes for the real thing.
  """
  final = epath.Path(path)
  final.parent.mkdir(parents=True, exist_ok=True)
  temporary = final.parent / f".tmp-{final.name}-{uuid.uuid4().hex[:8]}"
  try:
    yield temporary
    if final.is_dir():  # a folder cannot be renamed over another
      old = final.parent / f".tmp-old-{final.name}-{uuid.uuid4().hex[:8]}"
      final.rename(old)
      try:
        temporary.rename(final)
      except BaseException:
        old.rename(final)
        raise
      old.rmtree()
    else:
      temporary.replace(final)
  except BaseException:
    if temporary.is_dir():
      temporary.rmtree()
    elif temporary.exists():
      temporary.unlink()
    raise


def sha256(path: PathLike) -> str:
  """The SHA-256 of a file's bytes, or of a folder's sorted file names and their hashes, in hex.

  Raises:
    InputError: nothing is there.
  """
  place = epath.Path(path)
  digest = hashlib.sha256()
  if place.is_dir():
    for name in sorted(names_below(place)):
      digest.update(f"{name}\0{sha256(place / name)}\n".encode())
    return digest.hexdigest()
  if not place.exists():
    raise InputError(f"{path}: no such file")
  with place.open("rb") as file:
    while chunk := file.read(_CHUNK):
      digest.update(chunk)
  return digest.hexdigest()


def names_below(folder: epath.Path, prefix: str = "") -> Iterator[str]:
  """The files in a folder and its folders, by their path in it; temporary ones are passed over."""
  for item in folder.iterdir():
    if item.name.startswith(".tmp-"):
      continue
    if item.is_dir():
      yield from names_below(item, f"{prefix}{item.name}/")
    else:
      yield prefix + item.name
