"""Gin files and command lines into a stage that runs under a checked configuration.

`gin_text` has looked at it as text; here gin itself reads it, and imports what the gin files name
(`from __gin__ import dynamic_registration`).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence

import gin

from kard_jax.core import distributed, exits, gin_text, hosts, provenance
from kard_jax.core.files import InputError

_ON_ALL_HOSTS = {"train", "answer", "ground", "rerank"}  # stages that several hosts share


def activate(settings: gin_text.Settings, *, complete: bool = True) -> None:
  """Hands the configuration to gin, which imports the modules that the files name.

  Args:
    settings: what `resolve` gave.
    complete: False leaves `%gin.REQUIRED` until something needs the value.

  Raises:
    InputError: gin does not know a name or a parameter; the message is gin's, with file and line.
  """
  logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax repeats its own options as warnings
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow reads it when it is imported
  gin.clear_config()
  gin.add_config_file_search_path(str(gin_text.ROOT))
  try:
    with _quiet():
      if any(map(gin_text.is_t5x, settings.bindings.items())):
        _prepare_t5x()
      gin.parse_config_files_and_bindings(
        gin_text.layers(settings.files), list(settings.overrides), finalize_config=complete
      )
  except (ValueError, ImportError, AttributeError, NameError, OSError, TypeError) as error:
    raise InputError(" ".join(str(error).split())) from error


def _prepare_t5x() -> None:
  """T5X's gin files import `__main__`, which is to be its own `train.py`: it has that `train`."""
  gin.add_config_file_search_path(str(gin_text.beside_t5x()))
  try:
    t5x_train = importlib.import_module("t5x.train")
  except ImportError as error:
    raise InputError(f"T5X cannot be imported ({error}). {gin_text.INSTALL_T5X}") from error
  sys.modules["__main__"].train = t5x_train.train  # type: ignore[attr-defined]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Holds back what TensorFlow's C++ prints while it is imported; shows it if the import fails."""
  sys.stderr.flush()
  kept = os.dup(2)
  with tempfile.TemporaryFile() as held:
    os.dup2(held.fileno(), 2)
    try:
      yield
    except BaseException:
      os.dup2(kept, 2)
      held.seek(0)
      sys.stderr.write(held.read().decode(errors="replace"))
      raise
    finally:
      os.dup2(kept, 2)
      os.close(kept)


def parser(description: str) -> argparse.ArgumentParser:
  """The flags that every launcher takes."""
  result = argparse.ArgumentParser(
    description=description, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  result.add_argument(
    "--gin_file", action="append", default=[], metavar="FILE", help="a gin file; later ones win"
  )
  result.add_argument(
    "--gin.NAME",
    dest="_",
    metavar="VALUE",
    help="set a macro or a binding, as in --gin.STEPS=100 or --gin.WORKDIR=\"'runs/mine'\"",
  )
  distributed.add_flags(result)
  return result


def parse_arguments(
  flags: argparse.ArgumentParser, argv: Sequence[str]
) -> tuple[argparse.Namespace, list[str]]:
  """Parses a command line into its flags and its `NAME=value` overrides."""
  overrides, rest = [], []
  items = iter(argv)
  for item in items:
    if not item.startswith("--gin."):
      rest.append(item)
    elif "=" in item:
      overrides.append(item.removeprefix("--gin."))
    else:  # --gin.STEPS 100
      overrides.append(f"{item.removeprefix('--gin.')}={next(items, '')}")
  return flags.parse_args(rest), overrides


def launch(module: str, description: str, argv: Sequence[str] | None = None) -> int:
  """Runs `launch.<module>.<module>(stage)` under a configuration and returns the exit status.

  The function is looked up by its import path, never as `__main__`, so that gin can configure it.
  The statuses are those of `exits`; 0 also where it was done before with the same settings and
  inputs.
  """
  flags = parser(description)
  flags.add_argument(
    "--redo", action="store_true", help="make the stage again although its outputs exist"
  )
  arguments, overrides = parse_arguments(flags, sys.argv[1:] if argv is None else argv)
  if not arguments.gin_file:
    flags.error("--gin_file is needed")
  return exit_status(lambda: _run(module, arguments, overrides))


def _run(module: str, arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
  settings = gin_text.resolve(arguments.gin_file, overrides)
  for name in gin_text.idle_overrides(settings):
    print(f"note: --gin.{name} changes nothing here; other stages use it", flush=True)
  distributed.start(distributed.find(arguments), times(settings))
  stage = provenance.Stage(
    gin_text.stage_name(settings), gin_text.workdir(settings), settings.fingerprint()
  )
  redo = arguments.redo
  if hosts.agree("whether it is done", lambda: not redo and stage.is_finished()):
    print(f"{stage.name}: done before, in {stage.workdir}; --redo makes it again", flush=True)
    return
  shared = module in _ON_ALL_HOSTS
  with stage.running(redo=redo, shared=shared):
    if not (shared or hosts.is_lead()):
      return  # from the body alone: at its end it waits for process 0
    activate(settings)
    function: Callable[[provenance.Stage], None] = gin.get_configurable(f"launch.{module}.{module}")
    function(stage)
    stage.operative_config = gin.operative_config_str()


def times(settings: gin_text.Settings) -> hosts.Times:
  """How long hosts wait for each other: START_TIMEOUT, STEP_TIMEOUT and BARRIER_TIMEOUT.

  Raises:
    InputError: one is not a positive number.
  """
  given = {}
  for macro, name in gin_text.TIMES.items():
    value = settings.value(macro)
    if value is None:
      continue
    if not isinstance(value, (int, float)) or isinstance(value, bool) or value <= 0:
      raise InputError(f"{settings.bindings[macro].where}: {macro} = {value!r}: seconds are needed")
    given[name] = float(value)
  return hosts.Times(**given)


def exit_status(work: Callable[[], None]) -> int:
  """Runs `work` and gives the status to leave with, see `exits`; also ends a run on other hosts.

  An `InputError` becomes one line on standard error.
  """
  status, told = exits.DONE, ""
  try:
    work()
    hosts.leave(exits.DONE, together=True)
  except InputError as error:
    status, told = exits.BAD_INPUT, f"error: {_one_line(error)}"
  except exits.Lost as error:
    status, told = exits.LOST, f"error: {error}"
  except exits.Stopped as stopped:
    print(stopped, file=sys.stderr, flush=True)
    hosts.leave(exits.STOPPED, together=True)
    return exits.STOPPED
  except exits.Terminated as terminated:
    status, told = exits.STOPPED, str(terminated)
  except KeyboardInterrupt:
    status, told = exits.INTERRUPTED, "stopped; what was finished is kept"
  except Exception as error:
    if hosts.count() == 1:
      raise
    status, told = hosts.blame(error)
  if status != exits.DONE:
    print(told, file=sys.stderr, flush=True)
    hosts.leave(status, told)
  return status


def _one_line(error: Exception) -> str:
  message = str(error).partition("\n  In call to configurable")[0]  # gin's, to every exception
  return " ".join(message.split())
