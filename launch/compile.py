"""Compiles a stage's steps for a machine that is not here: what they take of its chips, and whether
they fit.

Of a stage that trains, the train step (student or reranker); of one that answers, reading prompts
and writing texts; with --passages, the search of a knowledge base. Answering and searching are one
host's work, as hosts do them apart. Nothing is computed, no weights are read, and no accelerator is
needed: for TPUs, libtpu is (`pip install 'kard_jax[compile]'`), for GPUs JAX's CUDA plugin
(`pip install 'kard_jax[compile-gpu]'`).

Examples:
  python launch/compile.py --gin_file=gin_configs/recipes/quickstart/6_student_kard.gin \\
    --gin_file=gin_configs/hardware/cpu_8_devices.gin --topology=cpu:8
  python launch/compile.py --gin_file=gin_configs/models/t5_1_1_xl.gin \\
    --gin_file=gin_configs/runs/student.gin --gin_file=gin_configs/hardware/v5e_16.gin \\
    --gin.BATCH_SIZE=32 --gin.SCAN_LAYERS=True --topology=v5e-16
  python launch/compile.py --topology=v5e:16x16 --passages=40_000_000
  python launch/compile.py --gin_file=gin_configs/models/t5_1_1_xl.gin \\
    --gin_file=gin_configs/runs/student.gin --gin_file=gin_configs/hardware/gpu_1.gin \\
    --gin.BATCH_SIZE=32 --gin.SCAN_LAYERS=True --topology=h100:1
"""

from __future__ import annotations

if __name__ == "__main__":  # run the module gin can import, with the project's root on the path
  import pathlib
  import sys

  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])
  from launch import compile as compile_lib

  sys.exit(compile_lib.main())

import argparse
import contextlib
import dataclasses
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from kard_jax.core import config, gin_text
from kard_jax.core.files import InputError

if TYPE_CHECKING:
  from kard_jax.core.ahead import Program, Report
  from kard_jax.core.machines import Machine
  from kard_jax.core.partitioning import Partitioner

# Settings that no shape depends on: they need not be given.
_ANY = {"STEPS": "1000", "RERANKER_STEPS": "1000", "LEARNING_RATE": "1e-3", "STUDENT": "'student'"}
_POSTINGS = 60  # a passage: distinct terms in 100 words of Wikipedia, about
_FOUND = 100  # passages a query

Compile = Callable[["Program"], Any]  # gives None for what does not fit


def main(argv: Sequence[str] | None = None) -> int:
  """Parses the command line, compiles, prints a table; returns the exit status."""
  flags = config.parser(__doc__ or "")
  add = flags.add_argument
  add("--topology", required=True, metavar="NAME", help="v5e:4x4, v5e-16, h100:8, cpu:8")
  add("--passages", type=int, metavar="N", help="compile the search of N passages too")
  add("--postings", type=int, metavar="N", help=f"of them, in all (default {_POSTINGS} a passage)")
  add("--json", type=pathlib.Path, metavar="FILE", help="write the table's figures here too")
  add(
    "--effort",
    type=float,
    default=0.0,
    metavar="E",
    help="of the compiler, -1 to 1; below 0 it is done sooner, with slower programs",
  )
  arguments, overrides = config.parse_arguments(flags, sys.argv[1:] if argv is None else argv)
  return config.exit_status(lambda: _run(arguments, overrides))


def _run(arguments: argparse.Namespace, overrides: Sequence[str]) -> None:
  if not arguments.gin_file and arguments.passages is None:
    raise InputError("give --gin_file, or --passages: there is nothing to compile")
  if not -1 <= arguments.effort <= 1:
    raise InputError(f"--effort={arguments.effort}: has to be from -1 to 1")
  if arguments.passages is not None and arguments.passages < 1:
    raise InputError(f"--passages={arguments.passages}: has to be at least 1")
  os.environ["JAX_PLATFORMS"] = "cpu"  # what is compiled for others is traced here
  import jax

  from kard_jax.core import ahead, machines

  machine = machines.parse(arguments.topology)
  if machine.chip.name == "cpu":
    with contextlib.suppress(RuntimeError):  # the backend runs already; `devices` counts
      jax.config.update("jax_num_cpu_devices", machine.chips)
  reports: list[Report] = []

  def compiling(machine: Machine, mesh: Any) -> Compile:
    def run(program: Program) -> Any:
      print(f"compiling {program.name} for {machine.name} ...", file=sys.stderr, flush=True)
      kind = mesh.devices.flat[0].device_kind
      report, compiled = ahead.compile_program(program, machine, mesh.shape, kind, arguments.effort)
      reports.append(report)
      return compiled

    return run

  if arguments.gin_file:
    _compile_stage(arguments.gin_file, overrides, machine, compiling)
  if arguments.passages:
    _compile_search(arguments.passages, arguments.postings, machine, compiling)
  print(ahead.table(reports), flush=True)
  if arguments.json:
    arguments.json.write_text(ahead.to_json(reports))


def _compile_stage(
  gin_files: Sequence[str],
  overrides: Sequence[str],
  machine: Machine,
  compiling: Callable[[Machine, Any], Compile],
) -> None:
  """The steps of a stage: of its gin file, or of one of models/ and one of runs/."""
  settings = gin_text.resolve(gin_files, overrides, complete=False)
  required = {key for key, binding in settings.bindings.items() if "%gin.REQUIRED" in binding.value}
  given = [*overrides, *(f"{key}={value}" for key, value in _ANY.items() if key in required)]
  config.activate(gin_text.resolve(gin_files, given, complete=False), complete=False)
  stages = {"train.train.objective": _train, "answer.Student.network": _answer}
  found = [compile_it for key, compile_it in stages.items() if key in settings.bindings]
  if not found:
    raise InputError(
      f"{gin_files[0]}: neither trains nor answers; give the gin file of a stage that does, or "
      "gin_configs/runs/student.gin, reranker.gin or answer.gin behind one of models/"
    )
  for compile_it in found:
    compile_it(machine, compiling)


def _train(machine: Machine, compiling: Callable[[Machine, Any], Compile]) -> None:
  from kard_jax.core import lora, machines, programs
  from tasks import features

  objective, trainer = _value("train.train.objective"), _value("train.train.trainer")
  lengths, batch_size = _value("train.train.lengths"), _value("train.train.batch_size")
  trainer = dataclasses.replace(
    trainer, partitioner=trainer.partitioner.on(machines.devices(machine))
  )
  if draw := _value("train.train.draw", None):
    batch = features.rerank_shapes(lengths, batch_size, sum(draw))
  else:
    decoder_only = features.is_decoder_only(objective.network)
    pack = _value("train.train.pack", False)
    batch = features.student_shapes(lengths, batch_size, decoder_only=decoder_only, pack=pack)
  if adapters := _value("train.train.lora", None):
    objective = lora.Adapted(objective, adapters)
    trained = [*lora.NAMES, *(trainer.trained or ())]
    trainer = dataclasses.replace(trainer, trained=trained)
  program = programs.train(objective, trainer, batch)
  compiling(machine, trainer.partitioner.mesh)(program)


def _answer(machine: Machine, compiling: Callable[[Machine, Any], Compile]) -> None:
  from kard_jax.core import machines, programs
  from tasks import features

  network = _value("answer.Student.network")
  partitioner: Partitioner = _value("answer.Student.partitioner").on(machines.devices(machine))
  if (host := machines.of_host(machine)) != machine:
    partitioner = partitioner.of_host(machines.devices(host))
  writing = programs.Writing(
    network,
    1 if features.is_decoder_only(network) else 2,
    partitioner,
    sampler=_value("answer.Student.sampler"),
    batch_size=_value("answer.Student.batch_size"),
    input_length=_value("answer.Student.input_length"),
    target_length=_value("answer.Student.target_length"),
    samples=_value("answer.answer.samples"),
  )
  run = compiling(host, partitioner.mesh)
  read = run(writing.read())
  if read is not None:
    run(writing.write(read))


def _compile_search(
  passages: int,
  postings: int | None,
  machine: Machine,
  compiling: Callable[[Machine, Any], Compile],
) -> None:
  import numpy as np
  from jax.sharding import Mesh

  from kard_jax.core import machines
  from kard_jax.core.ahead import Program
  from kard_jax.retrieval import search_xla

  host = machines.of_host(machine)
  mesh = Mesh(np.array(machines.devices(host)), ("passages",))
  run = compiling(host, mesh)
  for name, lowered in search_xla.lower(mesh, passages, postings or passages * _POSTINGS, _FOUND):
    run(Program(f"search: {name}", lowered, 0, 0.0))


def _value(parameter: str, *default: Any) -> Any:
  """What gin would pass as a parameter of a launcher: references are called, macros followed."""
  import gin

  try:
    value = gin.query_parameter(f"launch.{parameter}")
  except ValueError:
    if default:
      return default[0]
    raise InputError(f"launch.{parameter} is not bound") from None
  return _made(value, parameter)


def _made(value: Any, parameter: str) -> Any:
  import gin

  if isinstance(value, gin.config.ConfigurableReference):
    try:
      value = value.scoped_configurable_fn() if value.evaluate else value.configurable.wrapper
    except RuntimeError as error:  # gin's own, of what is required
      raise InputError(" ".join(str(error).split())) from None
  if value is gin.REQUIRED:
    name = parameter.rpartition(".")[2]
    raise InputError(f"launch.{parameter} is not set: give --gin.{name.upper()}=...")
  if isinstance(value, dict):
    return {key: _made(item, f"{parameter}.{key}") for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return type(value)(_made(item, parameter) for item in value)
  return value
