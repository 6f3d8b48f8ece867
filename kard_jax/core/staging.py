"""Folders that go between processes through a bucket, where they share no file system.

A folder in a bucket is whole when it holds the file `WHOLE`, which is written last. Places are
anything fsspec opens: `gs://`, `s3://`, `file://`, ...
"""

from __future__ import annotations

import fcntl
import hashlib
import tempfile
from pathlib import Path

import fsspec
from etils import epath

from kard_jax.core import files
from kard_jax.core.files import InputError

WHOLE = ".whole"


def is_bucket(place: str) -> bool:
  """Whether it is a place here, and no path of a file system."""
  return "://" in place


def is_whole(place: str) -> bool:
  """Whether a folder is there, and all of it."""
  system, root = _open(place)
  return bool(system.exists(f"{root}/{WHOLE}"))


def put(folder: Path, place: str) -> None:
  """Copies a folder into a bucket, unless it is there."""
  if is_whole(place):
    return
  system, root = _open(place)
  names = sorted(files.names_below(epath.Path(folder)))
  for name in names:
    system.makedirs(f"{root}/{name}".rpartition("/")[0], exist_ok=True)
    system.put_file(str(folder / name), f"{root}/{name}")
  system.pipe_file(f"{root}/{WHOLE}", "\n".join(names).encode())


def get(place: str, folder: Path) -> None:
  """Copies a folder out of a bucket, whole or not at all; nothing is there yet.

  Raises:
    InputError: it is not in the bucket, or not whole.
  """
  if not is_whole(place):
    raise InputError(f"{place}: not there, or not whole")
  system, root = _open(place)
  with files.atomic(folder) as temporary:
    temporary.mkdir()
    for name in system.cat_file(f"{root}/{WHOLE}").decode().splitlines():
      (temporary / name).parent.mkdir(parents=True, exist_ok=True)
      system.get_file(f"{root}/{name}", str(temporary / name))


def on_this_machine(place: str) -> Path:
  """A copy of a folder in a bucket, made once on a machine however many processes ask for it."""
  kept = Path(tempfile.gettempdir()) / "kard_jax-staging"
  kept.mkdir(exist_ok=True)
  folder = kept / hashlib.sha256(place.encode()).hexdigest()[:24]
  with (kept / f"{folder.name}.lock").open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)  # let go when it is closed
    if not folder.exists():
      get(place, folder)
  return folder


def remove(place: str) -> None:
  """Removes a folder from a bucket, if it is there."""
  system, root = _open(place)
  if system.exists(root):
    system.rm(root, recursive=True)


def _open(place: str) -> tuple[fsspec.AbstractFileSystem, str]:
  try:
    system, root = fsspec.core.url_to_fs(place)
  except (ImportError, ValueError) as error:
    raise InputError(f"STORAGE: {place}: {error}") from None
  system.invalidate_cache()  # others write there
  return system, root
