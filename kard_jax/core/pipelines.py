"""Apache Beam for what outgrows one machine: a runner by name, and what its workers may rely on.

Workers are other processes, perhaps on other machines. They get functions of modules, which they
import by name, and items of plain Python. What is large stands in folders that every worker sees,
or goes through a bucket.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import re
import shlex
import socket
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from kard_jax.core import files, hosts, staging
from kard_jax.core.files import InputError

INSTALL = "pip install --no-deps -r requirements-beam.txt"
SHARED = "folders have to be where every worker sees them, or BEAM_STORAGE a bucket (docs/beam.md)"

# How a worker's InputError reaches the process that started the pipeline: as text in another error.
_TOLD = re.compile(r"files\.InputError: (.+?)(?: \[while running| \[In transform|$)", re.M)


@dataclasses.dataclass(frozen=True)
class Beam:
  """A runner and its options.

  Attributes:
    runner: a name that Beam knows: DirectRunner, DataflowRunner, FlinkRunner, SparkRunner, ...
    options: Beam's flags, such as `--direct_num_workers=2`.
    storage: a folder in a bucket, through which folders go to workers and back; None: workers see
      the file system of the starting process.
  """

  runner: str
  options: tuple[str, ...] = ()
  storage: str | None = None

  @contextlib.contextmanager
  def pipeline(self) -> Iterator[tuple[Any, Any]]:
    """Gives the module `apache_beam` and a pipeline, which runs when the body has built it.

    Raises:
      InputError: Beam is not installed, does not know the runner, or a worker could not use what it
        was given.
    """
    beam = _module()
    from apache_beam.options import pipeline_options

    try:
      flags = [f"--runner={self.runner}", "--default_sdk_harness_log_level=ERROR", *self.options]
      options = pipeline_options.PipelineOptions(flags)
      with beam.Pipeline(options=options) as pipeline:
        yield beam, pipeline
    except InputError as error:
      raise InputError(str(error).partition(" [while running")[0]) from None
    except Exception as error:
      if told := _TOLD.findall(str(error)):
        raise InputError(told[-1]) from None
      if isinstance(error, ValueError) and "runner" in str(error):
        raise InputError(f"RUNNER = {self.runner!r}: {error}") from None
      raise

  def share(self, folder: Path, name: str) -> str:
    """Where workers find a folder: itself, or its copy in the storage.

    Args:
      folder: to be read.
      name: another one where the contents are others.
    """
    if self.storage is None:
      return str(folder.absolute())
    place = f"{self.storage}/{name}"
    staging.put(folder, place)
    return place

  def outbox(self, folder: Path, name: str) -> str:
    """Where workers leave what they make: a folder itself, or one in the storage."""
    return str(folder.absolute()) if self.storage is None else f"{self.storage}/{name}"

  def collect(self, outbox: str, names: Iterable[str], folder: Path) -> None:
    """Fetches what workers have left, until something is missing."""
    if self.storage is None:
      return
    for name in names:
      if not is_done(outbox, name):
        return
      if not (folder / name).exists():
        staging.get(f"{outbox}/{name}", folder / name)

  def forget(self, outbox: str) -> None:
    """Removes what workers have left in the storage."""
    if self.storage is not None:
      staging.remove(outbox)


def chosen(
  runner: str | None = None, options: str | Sequence[str] = (), storage: str | None = None
) -> Beam | None:
  """What a configuration asks for; None where this machine does the work without Beam.

  Args:
    runner: None, or a runner's name.
    options: Beam's flags, as a list or as one text.
    storage: None, or a folder in a bucket, such as gs://mine/tmp.

  Raises:
    InputError: options without a runner, a runner without Beam, a storage that is no bucket, or
      several hosts were started.
  """
  flags = tuple(shlex.split(options) if isinstance(options, str) else options)
  if runner is None:
    if flags or storage:
      what = "BEAM_OPTIONS" if flags else "BEAM_STORAGE"
      raise InputError(f"{what} = {' '.join(flags) or storage}: give RUNNER too, as 'DirectRunner'")
    return None
  if hosts.count() > 1:
    raise InputError(f"RUNNER = {runner!r}: Beam deals out the work itself; start one host alone")
  if storage is not None and not staging.is_bucket(storage):
    raise InputError(
      f"BEAM_STORAGE = {storage!r}: a bucket is needed, such as gs://mine/tmp; None where workers"
      " see this file system"
    )
  _module()  # before anything is begun
  return Beam(runner, flags, storage.rstrip("/") if storage else None)


def here(folder: str) -> Path:
  """A folder that the starting process shares, on a worker; of a bucket, a copy on its machine.

  Raises:
    InputError: this worker does not see it.
  """
  if staging.is_bucket(folder):
    return staging.on_this_machine(folder)
  path = Path(folder)
  if not path.exists():
    raise InputError(f"{folder}: a worker on {socket.gethostname()} does not see it; {SHARED}")
  return path


def is_done(outbox: str, name: str) -> bool:
  """Whether a worker has left a folder of a name."""
  if staging.is_bucket(outbox):
    return staging.is_whole(f"{outbox}/{name}")
  return (here(outbox) / name).is_dir()


@contextlib.contextmanager
def leaving(outbox: str, name: str) -> Iterator[Path]:
  """Gives a worker a path to make a folder at, and leaves it, whole or not at all."""
  if staging.is_bucket(outbox):
    with tempfile.TemporaryDirectory() as own:
      yield Path(own) / name
      staging.put(Path(own) / name, f"{outbox}/{name}")
    return
  with files.atomic(here(outbox) / name) as temporary:
    yield Path(temporary)


def _module() -> Any:
  root = logging.getLogger()
  level = root.level
  try:
    root.setLevel(logging.ERROR)  # at its import Beam warns of clients of clouds that are not there
    import apache_beam
  except ImportError as error:
    raise InputError(f"RUNNER: Apache Beam cannot be imported ({error}); {INSTALL}") from None
  finally:
    root.setLevel(level)
  return apache_beam
