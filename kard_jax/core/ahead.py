"""Compiles programs for machines that are not there, and says what they would take of them.

Nothing is computed and no parameter exists: programs are lowered from shapes, so that the largest
networks are compiled on a laptop. What XLA's compiler says it will need of a chip's memory, it will
need there: a program that does not fit fails here, with the same words.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from kard_jax.core import flops, hlo
from kard_jax.core.machines import GIB, Machine

UTILISATION = (
  0.4  # of the chips' peak, for estimates of time: what a good run of such sizes reaches
)

# The compiler says it in two ways.
_MEMORY = re.compile(
  r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm"
  r"|required for HLO temporaries \(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)"
)
# On a GPU, XLA tries its own kernels of a product beside cuBLAS's. Where it can try none, it takes
# its own, and has no tiles for some shapes.
_UNTILED = "Couldn't find output tile sizes"
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": GIB, "T": 1 << 40}


class Program(NamedTuple):
  """What is compiled.

  Attributes:
    name: such as "train" or "write".
    lowered: made ready.
    parameters: how many the network has; 0 where there is none.
    flops: of the products of one run (for "write": of one token of all texts), over all chips.
  """

  name: str
  lowered: jax.stages.Lowered
  parameters: int
  flops: float


class Report(NamedTuple):
  """What the compiler said; bytes are of one chip.

  Attributes:
    program: its name.
    machine: its topology.
    chips: how many.
    mesh: size of each axis.
    parameters: of the network, in all.
    arguments: bytes of what a run is given: parameters, optimiser state, batch, caches.
    temporaries: bytes of what is made on the way.
    peak: bytes of all that is held at once, the program and its results included.
    hbm: bytes of memory of the chip, as published; 0: not known.
    fits: whether the compiler found room.
    reason: why it did not.
    flops: see `Program`.
    seconds: an estimate of a run at 40 % of the chips' peak; 0: not known.
    collectives: kind -> how many, and bytes of their results, in one run.
    compiling: seconds that the compiler took.
  """

  program: str
  machine: str
  chips: int
  mesh: dict[str, int]
  parameters: int
  arguments: int
  temporaries: int
  peak: int
  hbm: int
  fits: bool
  reason: str
  flops: float
  seconds: float
  collectives: dict[str, hlo.Collective]
  compiling: float


def compile_program(
  program: Program, machine: Machine, mesh: Mapping[str, int], kind: str, effort: float = 0.0
) -> tuple[Report, jax.stages.Compiled | None]:
  """Compiles a program; gives None for it where it does not fit into the chips' memory.

  Args:
    program: for the machine's devices.
    machine: for the report.
    mesh: likewise.
    kind: of the devices, as `jax.Device.device_kind` has it.
    effort: of the compiler, -1 to 1; below 0 it is sooner done and its programs are slower.

  Raises:
    jax.errors.JaxRuntimeError: the compiler failed otherwise.
  """
  peak = flops.peak(kind)
  seconds = program.flops / (peak * machine.chips * UTILISATION) if peak else 0.0
  options: dict[str, Any] = {"exec_time_optimization_effort": effort} if effort else {}
  report = Report(
    program=program.name,
    machine=machine.name,
    chips=machine.chips,
    mesh=dict(mesh),
    parameters=program.parameters,
    arguments=0,
    temporaries=0,
    peak=0,
    hbm=machine.chip.hbm,
    fits=False,
    reason="",
    flops=program.flops,
    seconds=seconds,
    collectives={},
    compiling=0.0,
  )
  began = time.monotonic()
  try:
    compiled = _compiled(program, options)
  except jax.errors.JaxRuntimeError as error:
    found = _MEMORY.search(str(error))
    if not found:
      raise
    used, there = _bytes(*filter(None, found.groups()))
    return (
      report._replace(
        peak=used,
        reason=_reason(used, there),
        compiling=time.monotonic() - began,
      ),
      None,
    )
  spent = time.monotonic() - began
  memory: Any = compiled.memory_analysis()
  peak_bytes = (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes
    + memory.generated_code_size_in_bytes
  )
  usable = machine.chip.usable
  fits = not usable or peak_bytes <= usable  # for TPUs the compiler has looked already
  return report._replace(
    arguments=memory.argument_size_in_bytes,
    temporaries=memory.temp_size_in_bytes,
    peak=peak_bytes,
    fits=fits,
    reason="" if fits else _reason(peak_bytes, usable),
    collectives=hlo.collectives(compiled.as_text() or ""),
    compiling=spent,
  ), compiled if fits else None


def _compiled(program: Program, options: dict[str, Any]) -> jax.stages.Compiled:
  try:
    return program.lowered.compile(compiler_options=options)
  except jax.errors.JaxRuntimeError as error:
    if _UNTILED not in str(error):
      raise
  options = options | {"xla_gpu_enable_triton_gemm": False}
  return program.lowered.compile(compiler_options=options)


def _reason(used: int, usable: int) -> str:
  return f"needs {_size(used)} of the {_size(usable)} that a program may use"


def _bytes(*sizes: str) -> tuple[int, ...]:
  """(22.81, "G", ...) -> bytes of each."""
  return tuple(
    round(float(size) * _UNITS[unit]) for size, unit in zip(sizes[::2], sizes[1::2], strict=True)
  )


def table(reports: Sequence[Report]) -> str:
  """Reports as a table in Markdown."""
  found = [cells(report) for report in reports]
  if not found:
    return ""
  rows = [tuple(found[0]), ("---",) * len(found[0]), *(tuple(row.values()) for row in found)]
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  lines = []
  for row in rows:
    padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
    lines.append(f"| {' | '.join(padded)} |")
  return "\n".join(lines)


def cells(report: Report) -> dict[str, str]:
  """A row of the table: column -> what a reader sees."""
  mesh = " x ".join(f"{name} {size}" for name, size in report.mesh.items() if size > 1)
  moved = ", ".join(
    f"{kind} {each.times:,} ({_size(each.bytes)})" for kind, each in report.collectives.items()
  )
  of = f" of {_size(report.hbm)}" if report.hbm else ""
  known = report.fits or report.arguments  # a TPU's compiler stops where memory ends
  return {
    "program": report.program,
    "machine": report.machine,
    "mesh": mesh or "one chip",
    "parameters": f"{report.parameters / 1e6:,.0f} M" if report.parameters else "",
    "arguments": _size(report.arguments) if known else "",
    "temporaries": _size(report.temporaries) if known else "",
    "peak of HBM": f"{_size(report.peak)}{of}",
    "fits": "yes" if report.fits else f"no: {report.reason}",
    "FLOPs": f"{report.flops:.2e}" if report.flops else "",
    "at 40 %": f"{report.seconds * 1e3:,.1f} ms" if report.seconds else "",
    "collectives": (moved or "none") if known else "",
    "compiled in": f"{report.compiling:,.0f} s",
  }


def _size(count: int) -> str:
  for unit, size in (("GiB", GIB), ("MiB", 1 << 20), ("KiB", 1 << 10)):
    if count >= size:
      return f"{count / size:,.{0 if count >= 100 * size else 1}f} {unit}"
  return f"{count:,.0f} B"


def to_json(reports: Iterable[Report]) -> str:
  """Reports as JSON, one object each."""
  rows = [
    report._asdict() | {"collectives": {k: c._asdict() for k, c in report.collectives.items()}}
    for report in reports
  ]
  return json.dumps(rows, indent=1) + "\n"


def from_json(text: str) -> list[Report]:
  """The inverse of `to_json`."""
  rows = json.loads(text)
  for row in rows:
    row["collectives"] = {k: hlo.Collective(**c) for k, c in row["collectives"].items()}
  return [Report(**row) for row in rows]
