"""A journal: JSON lines that are appended as they come and outlive a kill at any byte.

For what cost money or hours and must not be made twice. Unlike the outputs of a stage it grows in
place: a line counts once its line end is there, and what a kill tore off is dropped at the next
start.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

from kard_jax.core import files
from kard_jax.core.files import InputError, PathLike

_SYNC_EVERY = 0.5  # seconds: a process's death loses nothing, a machine's at most this much


class Journal:
  """Rows on a local disk, for one writer at a time.

  Attributes:
    path: where it is.
    rows: what stood there when it was opened, and what was appended since.
    torn: bytes of a last line that a kill cut short, dropped when it was opened.
  """

  def __init__(self, path: PathLike):
    """Opens or begins a journal.

    Args:
      path: a local file; its folder is made.

    Raises:
      InputError: the path is not local, another process writes there, or a line that is not the
        last is no JSON object.
    """
    self.path = os.fspath(path)
    if "://" in self.path:
      raise InputError(
        f"{self.path}: a journal needs a disk of this machine; give a local WORKDIR, and copy it "
        "when the stage is done"
      )
    os.makedirs(os.path.dirname(os.path.abspath(self.path)), exist_ok=True)
    self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
      self._lock()
      self.torn = 0
      self.rows: list[dict[str, Any]] = list(self._read())
      _sync_folder(self.path)
    except BaseException:
      os.close(self._file)
      raise
    self._synced = time.monotonic()
    self._dirty = False

  def __enter__(self) -> Journal:
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def append(self, *rows: Mapping[str, Any]) -> None:
    """Adds rows. From here on no death of this process loses them.

    They are handed to the system at once and forced to the disk twice a second and at the end.

    Raises:
      InputError: the disk takes no more.
    """
    lines = "".join(map(files.to_line, rows)).encode()
    try:
      written = os.write(self._file, lines)
      while written < len(lines):  # a signal may cut a write short
        written += os.write(self._file, lines[written:])
    except OSError as error:
      raise InputError(f"{self.path}: cannot be written ({error.strerror})") from None
    self.rows += map(dict, rows)
    self._dirty = True
    if time.monotonic() - self._synced > _SYNC_EVERY:
      self.sync()

  def sync(self) -> None:
    """Forces what was appended to the disk."""
    if self._dirty:
      os.fsync(self._file)
    self._dirty = False
    self._synced = time.monotonic()

  def close(self) -> None:
    """Forces all to the disk and lets others write."""
    try:
      self.sync()
    finally:
      os.close(self._file)

  def _lock(self) -> None:
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a killed process lets go by itself
    except BlockingIOError:
      raise InputError(f"{self.path}: another process writes there; wait until it ends") from None

  def _read(self) -> Iterator[dict[str, Any]]:
    with open(self.path, "rb") as file:
      *lines, tail = file.read().split(b"\n")
    if tail:  # no line end: a kill came in between
      try:
        whole = isinstance(json.loads(tail), dict)
      except ValueError:
        whole = False
      if whole:
        os.write(self._file, b"\n")
        lines.append(tail)
      else:
        self.torn = len(tail)
        os.ftruncate(self._file, sum(map(len, lines)) + len(lines))
    for number, line in enumerate(lines, 1):
      try:
        row = json.loads(line)
        if not isinstance(row, dict):
          raise ValueError("not an object")
      except ValueError as error:
        raise InputError(
          f"{self.path}:{number}: not a row of a journal ({error}); remove that line, and what it "
          "held is made anew"
        ) from None
      yield row


def _sync_folder(path: str) -> None:
  """A new file's name is only on the disk once its folder is."""
  folder = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY)
  try:
    os.fsync(folder)
  finally:
    os.close(folder)
