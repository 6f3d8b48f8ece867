"""A file of lines that several hosts write: process 0 puts their parts behind one another."""

from __future__ import annotations

import contextlib
import gzip
import shutil
import uuid
from collections.abc import Callable, Iterator

from etils import epath

from kard_jax.core import files, hosts
from kard_jax.core.files import InputError, PathLike


@contextlib.contextmanager
def writer(path: PathLike) -> Iterator[Callable[[str], object]]:
  """Yields what writes text; `path` is there at the end, whole, or as it was before.

  Each of several hosts writes its part, `hosts.share`, and all must call this. The file has the
  bytes that one host would have written, also where it is compressed, as names in `.gz` say.

  Args:
    path: in a folder that all hosts see.

  Raises:
    InputError: process 0 does not see another's part.
  """
  place = epath.Path(path)
  token = hosts.agree(f"the name of {place.name}'s parts", lambda: uuid.uuid4().hex[:8])
  names = [f".tmp-{place.name}-{token}-{index}" for index in range(hosts.count())]
  parts = [place.parent / name for name in names]
  if not hosts.is_lead():
    with _removed_on_failure(parts[hosts.index()]) as mine:
      with mine.open("wb") as file:
        yield lambda text: file.write(text.encode())
      hosts.meet(f"the parts of {place.name}")
      hosts.meet(f"{place.name}, by process 0")
    return
  with files.atomic(place) as temporary, contextlib.ExitStack() as stack:
    file = stack.enter_context(temporary.open("wb"))
    if place.name.endswith(".gz"):
      zipped = gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0)
      file = stack.enter_context(zipped)
    yield lambda text: file.write(text.encode())
    hosts.meet(f"the parts of {place.name}")
    for index, part in enumerate(parts[1:], 1):
      if not part.exists():
        raise InputError(f"{part}: not here, but host {index} wrote it; do all see one folder?")
      with part.open("rb") as theirs:
        shutil.copyfileobj(theirs, file)
      part.unlink()
  hosts.meet(f"{place.name}, by process 0")


@contextlib.contextmanager
def _removed_on_failure(part: epath.Path) -> Iterator[epath.Path]:
  part.parent.mkdir(parents=True, exist_ok=True)
  try:
    yield part
  except BaseException:
    part.unlink(missing_ok=True)
    raise
