"""Sealed folders: data that says what it is and notices when it changed (for section 3.2).

Passages and index are folders of plain files plus `header.json`, which names the kind and format
version, the settings they were made with, and the size and SHA-256 of every file. Arrays are `.npy`
without pickling, memory-mapped when opened, so a folder may be larger than memory.
"""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import os
import tokenize
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kard_jax.core import files

HEADER = "header.json"


def local(path: files.PathLike) -> Path:
  """The path as one of this machine: memory maps and ArrayRecord need a local disk.

  Raises:
    InputError: the path is in a bucket.
  """
  text = os.fspath(path)
  if "://" in text:
    raise files.InputError(
      f"{text}: passages and index are memory-mapped, so they must lie on a local disk; copy the"
      " folder there first"
    )
  return Path(text)


def seal(
  folder: files.PathLike,
  kind: str,
  version: int,
  fields: dict[str, Any],
  *,
  names: Sequence[str] | None = None,
) -> None:
  """Writes `header.json` over every file that `folder` holds now.

  Args:
    folder: the folder, complete but for its header.
    kind: what the folder is, such as "kard_jax bm25 index".
    version: of the format; readers refuse any other.
    fields: settings and counts, JSON values.
    names: the files to seal, by their paths in the folder, instead of all files in it.
  """
  folder = local(folder)
  if names is None:
    names = sorted(item.name for item in folder.iterdir() if item.name != HEADER)
  table = {
    name: {"bytes": (folder / name).stat().st_size, "sha256": files.sha256(folder / name)}
    for name in names
  }
  header = {"kind": kind, "version": version, **fields, "files": table}
  header["sha256"] = _digest(header)
  files.write_json(folder / HEADER, header)  # `check` knows these very bytes


def check(
  folder: files.PathLike, kind: str, version: int, *, remedy: str, verify: bool = False
) -> dict[str, Any]:
  """Reads a header and compares it with the folder.

  Args:
    folder: a sealed folder.
    kind: what it has to be.
    version: the one version this code reads.
    remedy: what to do about a broken folder, the end of each message.
    verify: also compare the SHA-256 of every file; without it, only names and sizes.

  Returns:
    The header.

  Raises:
    InputError: the folder or a file is missing, cut short or changed, or is of another kind or
      version. The message names the file.
  """
  folder = local(folder)
  path = folder / HEADER
  if not path.is_file():
    raise files.InputError(f"{path}: no such file, so this is no {kind}; {remedy}")
  try:
    data = path.read_bytes()
    header = json.loads(data)
    written = (json.dumps(header, indent=2, ensure_ascii=False) + "\n").encode()
    table, seen = header["files"], header.pop("sha256")
    found = header["kind"], header["version"]
    sizes = {name: (entry["bytes"], entry["sha256"]) for name, entry in table.items()}
  except (ValueError, KeyError, TypeError, AttributeError):
    raise files.InputError(f"{path}: not the header of a {kind}; {remedy}") from None
  if found[0] != kind:
    raise files.InputError(f"{path}: this is a {found[0]!r}, not a {kind}; {remedy}")
  if found[1] != version:
    raise files.InputError(
      f"{path}: format version {found[1]}, this code reads version {version}; {remedy}"
    )
  if seen != _digest(header) or data != written:  # white space may have changed alone
    raise files.InputError(f"{path}: the header changed after it was written; {remedy}")
  for name, (size, digest) in sizes.items():
    _check_file(folder / name, size, digest if verify else None, remedy)
  return header


def array(folder: files.PathLike, name: str, dtype: Any, *, remedy: str) -> np.ndarray:
  """Memory-maps the one-dimensional array `<name>.npy`, read-only.

  Raises:
    InputError: the file is no such array.
  """
  path = local(folder) / f"{name}.npy"
  try:
    value = np.load(path, mmap_mode="r", allow_pickle=False)
  except (OSError, ValueError, TypeError, EOFError, SyntaxError, tokenize.TokenError) as error:
    raise files.InputError(f"{path}: not a readable array ({error}); {remedy}") from None
  if value.dtype != np.dtype(dtype) or value.ndim != 1:
    raise files.InputError(
      f"{path}: an array of {np.dtype(dtype)} is needed, this is {value.dtype}"
      f" of shape {value.shape}; {remedy}"
    )
  return value.view(np.ndarray)  # slices of a memmap object cost microseconds each


def let_go(array: np.ndarray) -> None:
  """Drops what was read of a memory-mapped array from memory; it is read again if need be."""
  base: Any = array
  while isinstance(base, (np.ndarray, memoryview)):
    base = base.base if isinstance(base, np.ndarray) else base.obj
  if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
    base.madvise(mmap.MADV_DONTNEED)


class ArrayWriter:
  """Writes a one-dimensional `.npy` piece by piece, its length known at the end; a context manager.

  Args:
    path: of the file.
    dtype: of the elements.
  """

  def __init__(self, path: Path, dtype: Any):
    self._path, self._dtype, self._count = path, np.dtype(dtype), 0

  def __enter__(self) -> ArrayWriter:
    self._file = self._path.open("wb")
    self._file.write(self._header(1 << 62))  # as long as any: the true one is padded to its length
    self._begin = self._file.tell()
    return self

  def append(self, values: np.ndarray) -> None:
    """Writes the next values."""
    self._count += len(values)
    self._file.write(np.ascontiguousarray(values, self._dtype).view(np.uint8).data)

  def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
    with self._file as file:
      if kind is None:
        file.seek(0)
        header = self._header(self._count)
        file.write(header[:-1] + b" " * (self._begin - len(header)) + b"\n")
        # The header's own length stands in it, and has to cover the padding.
        file.seek(8)
        file.write((self._begin - 10).to_bytes(2, "little"))

  def _header(self, count: int) -> bytes:
    buffer = io.BytesIO()
    described = np.lib.format.dtype_to_descr(self._dtype)
    fields = {"descr": described, "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(buffer, fields)
    return buffer.getvalue()


def _check_file(path: Path, size: int, digest: str | None, remedy: str) -> None:
  if not path.is_file():
    raise files.InputError(f"{path}: no such file; {remedy}")
  actual = path.stat().st_size
  if actual != size:
    raise files.InputError(f"{path}: {actual} bytes where {size} were written; {remedy}")
  if digest is not None and files.sha256(path) != digest:
    raise files.InputError(f"{path}: its bytes changed after it was written; {remedy}")


def _digest(header: dict[str, Any]) -> str:
  return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()
