"""Apache Beam for what outgrows one machine: a runner by name, and what its workers may rely on.

Workers are other processes, perhaps on other machines. They get functions of modules, which they
import by name, and items of plain Python. What is large stands in folders that every worker sees.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import re
import shlex
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kard_jax.core import hosts
from kard_jax.core.files import InputError

INSTALL = "pip install --no-deps -r requirements-beam.txt"
SHARED = "folders have to be on storage that every worker sees under the same path (docs/beam.md)"

# How a worker's InputError reaches the process that started the pipeline: as text in another error.
_TOLD = re.compile(r"files\.InputError: (.+?)(?: \[while running| \[In transform|$)", re.M)


@dataclasses.dataclass(frozen=True)
class Beam:
  """A runner and its options.

  Attributes:
    runner: a name that Beam knows: DirectRunner, DataflowRunner, FlinkRunner, SparkRunner, ...
    options: Beam's flags, such as `--direct_num_workers=2`.
  """

  runner: str
  options: tuple[str, ...] = ()

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


def chosen(runner: str | None = None, options: str | Sequence[str] = ()) -> Beam | None:
  """What a configuration asks for; None where this machine does the work without Beam.

  Args:
    runner: None, or a runner's name.
    options: Beam's flags, as a list or as one text.

  Raises:
    InputError: options without a runner, a runner without Beam, or several hosts were started.
  """
  flags = tuple(shlex.split(options) if isinstance(options, str) else options)
  if runner is None:
    if flags:
      raise InputError(f"BEAM_OPTIONS = {' '.join(flags)!r}: give RUNNER too, such as DirectRunner")
    return None
  if hosts.count() > 1:
    raise InputError(f"RUNNER = {runner!r}: Beam deals out the work itself; start one host alone")
  _module()  # before anything is begun
  return Beam(runner, flags)


def here(folder: str) -> Path:
  """A folder that the starting process named, on a worker.

  Raises:
    InputError: this worker does not see it.
  """
  path = Path(folder)
  if not path.exists():
    raise InputError(f"{folder}: a worker on {socket.gethostname()} does not see it; {SHARED}")
  return path


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
