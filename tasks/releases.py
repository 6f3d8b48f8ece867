"""The files of a dataset's release, as they were downloaded: a folder, an archive, or one file.

Rows are read from JSON lines, JSON, CSV and TSV, through gzip, with or without a byte order mark
and with any line ends. Archives (.zip, .tar.gz and kin) are read as they are; nothing is unpacked.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from kard_jax.core import files
from kard_jax.core.files import InputError, PathLike

_ZIP = (".zip",)
_TAR = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
ROWS = r"\.(jsonl|json|csv|tsv)(\.gz)?"  # how the name of a file of rows ends


class Release:
  """Files by their path in a release, such as `Data/Main/train.jsonl`.

  The members of an archive stand as if it were a folder of its name.

  Args:
    source: a folder, an archive, or a file.

  Raises:
    InputError: there is no such thing, or an archive is damaged.
  """

  def __init__(self, source: PathLike):
    self.place = epath.Path(source)
    self._read: dict[str, Callable[[], bytes]] = {}
    if not self.place.exists():
      raise InputError(f"{source}: no such file or folder (SOURCE)")
    if self.place.is_dir():
      for name in sorted(files.names_below(self.place)):
        self._add(name, self.place / name)
    else:
      self._add("", self.place)

  @property
  def names(self) -> list[str]:
    """All files, sorted."""
    return sorted(self._read)

  def where(self, name: str) -> str:
    """A file as messages name it."""
    return str(self.place / name) if name else str(self.place)

  def find(self, pattern: str, within: str = "") -> str | None:
    """The file whose name (without folders) matches a regular expression, in any case.

    Args:
      pattern: of the whole name.
      within: what the path must match besides, anywhere.

    Returns:
      the one that lies least deep; None where there is none.

    Raises:
      InputError: several lie there.
    """
    found = self.every(pattern, within)
    if not found:
      return None
    depth = min(name.count("/") for name in found)
    found = sorted(name for name in found if name.count("/") == depth)
    if len(found) > 1:
      # the same file may be there with gzip and without
      if len({name.removesuffix(".gz") for name in found}) == 1:
        return found[0]
      raise InputError(
        f"{self.place}: {' and '.join(found)} could both be meant; leave one of them there, or "
        "name its folder as SOURCE"
      )
    return found[0]

  def every(self, pattern: str, within: str = "") -> list[str]:
    """All files whose name matches; arguments as for `find`."""
    return [
      name
      for name in self.names
      if re.fullmatch(pattern, self._last(name), re.IGNORECASE)
      and re.search(within, name, re.IGNORECASE)
    ]

  def text(self, name: str) -> str:
    """A file's text, without a byte order mark.

    Raises:
      InputError: it is not UTF-8, or no whole gzip.
    """
    data = self._read[name]()
    try:
      if self._last(name).endswith(".gz"):
        data = gzip.decompress(data)
      return data.decode("utf-8-sig")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
      raise InputError(f"{self.where(name)}: not a whole gzip file ({error})") from None
    except UnicodeDecodeError as error:
      raise InputError(f"{self.where(name)}: not UTF-8 ({error})") from None

  def rows(self, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """`(where, row)` for each row of a file.

    Raises:
      InputError: with file and line: not of the format, or a row that is no object.
    """
    text, where = self.text(name), self.where(name)
    kind = self._last(name).removesuffix(".gz").rpartition(".")[2].lower()
    if kind in ("csv", "tsv"):
      yield from _table(text, where, "\t" if kind == "tsv" else ",")
    elif kind == "json" and (whole := _whole(text)) is not None:
      yield from _members(whole, where)
    else:
      yield from _lines(text, where)

  def _last(self, name: str) -> str:
    return name.rpartition("/")[2] or self.place.name

  def _add(self, name: str, path: epath.Path) -> None:
    lower = path.name.lower()
    if lower.endswith(_ZIP):
      self._add_members(name, path, _zip_members)
    elif lower.endswith(_TAR):
      self._add_members(name, path, _tar_members)
    else:
      self._read[name] = path.read_bytes

  def _add_members(
    self,
    name: str,
    path: epath.Path,
    members_of: Callable[[epath.Path], dict[str, Callable[[], bytes]]],
  ) -> None:
    try:
      members = members_of(path)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, OSError) as error:
      raise InputError(f"{path}: not a whole archive ({error})") from None
    for member, read in members.items():
      parts = member.split("/")
      if not any(part.startswith(".") or part == "__MACOSX" for part in parts):
        self._read[f"{name}/{member}" if name else member] = read


def named(split: str, prefix: str = r"(?!teacher)(?:[a-z0-9]+[_-])?") -> str:
  """The pattern of a split's usual names, such as train.jsonl, usmle_dev.csv, val.json.gz."""
  names = {"train": "train", "validation": "(?:dev|valid|validation|val)", "test": "test"}
  return prefix + names[split] + ROWS


def split_files(
  release: Release, forms: Sequence[Mapping[str, str]], within: str = ""
) -> dict[str, str]:
  """The file of each split, in the first form that has training questions, or else any file.

  Args:
    release: where to look.
    forms: split -> pattern of the file's name, the preferred form first.
    within: what the path must match.

  Returns:
    split -> file; empty where no form is there.
  """
  some: dict[str, str] = {}
  for form in forms:
    found = {split: release.find(pattern, within) for split, pattern in form.items()}
    there = {split: name for split, name in found.items() if name is not None}
    if "train" in there:
      return there
    some = some or there
  return some


def _zip_members(path: epath.Path) -> dict[str, Callable[[], bytes]]:
  with path.open("rb") as file, zipfile.ZipFile(file) as archive:  # type: ignore[arg-type]
    names = [info.filename for info in archive.infolist() if not info.is_dir()]

  def read(name: str) -> bytes:
    try:
      with path.open("rb") as file, zipfile.ZipFile(file) as archive:  # type: ignore[arg-type]
        return archive.read(name)
    except (zipfile.BadZipFile, EOFError, zlib.error, RuntimeError) as error:
      raise InputError(f"{path}: {name} cannot be read ({error})") from None

  return {name: lambda name=name: read(name) for name in names}  # type: ignore[misc]


def _tar_members(path: epath.Path) -> dict[str, Callable[[], bytes]]:
  with path.open("rb") as file, tarfile.open(fileobj=file) as archive:  # type: ignore[call-overload]
    names = [member.name for member in archive.getmembers() if member.isfile()]

  def read(name: str) -> bytes:
    with path.open("rb") as file, tarfile.open(fileobj=file) as archive:  # type: ignore[call-overload]
      member = archive.extractfile(name)
      return b"" if member is None else member.read()

  return {
    name.removeprefix("./"): lambda name=name: read(name)  # type: ignore[misc]
    for name in names
  }


def _table(text: str, where: str, delimiter: str) -> Iterator[tuple[str, dict[str, Any]]]:
  reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
  try:
    for row in reader:
      line = f"{where}:{reader.line_num}"
      if None in row or None in row.values():
        columns = len(reader.fieldnames or ())
        raise InputError(f"{line}: not the {columns} columns of the first line")
      yield line, {str(key).strip(): value for key, value in row.items()}
  except csv.Error as error:
    raise InputError(f"{where}:{reader.line_num}: not a table ({error})") from None


def _whole(text: str) -> Any | None:
  """A text that is one JSON value; None where it is JSON lines (or nothing)."""
  try:
    return json.loads(text)
  except (ValueError, RecursionError):
    return None


def _members(value: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
  """The rows of a JSON list, or of an object: a single row, `{"data": [..]}`, or rows by id."""
  if isinstance(value, dict) and isinstance(value.get("data"), list):
    value = value["data"]
  if isinstance(value, dict) and value and all(isinstance(row, dict) for row in value.values()):
    yield from ((f"{where}: {id}", {"id": id, **row}) for id, row in value.items())
    return
  for number, row in enumerate([value] if isinstance(value, dict) else value, 1):
    if not isinstance(row, dict):
      raise InputError(f"{where}: row {number} is no JSON object but {str(row)[:40]!r}")
    yield f"{where}: row {number}", row


def _lines(text: str, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
  for number, line in enumerate(text.split("\n"), 1):  # splitlines() also splits inside texts
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except (ValueError, RecursionError) as error:
      raise InputError(f"{where}:{number}: not JSON ({error})") from None
    if not isinstance(row, dict):
      raise InputError(f"{where}:{number}: a JSON object is needed, this is {line[:40]!r}")
    yield f"{where}:{number}", row
