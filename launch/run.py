"""Runs the numbered stages of a recipe in order, and skips those that are done and unchanged.

Examples:
  python launch/run.py --recipe=quickstart
  python launch/run.py --recipe=quickstart --gin.SEED=1 --gin.WORKDIR="'runs/quickstart_1'"
  python launch/run.py --recipe=openbookqa_tiny --methods=rd,kard_bm25
  python launch/run.py --recipe=openbookqa_tiny --sweep=passages
  python launch/run.py --recipe=my/recipe_folder --redo=ground
"""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from etils import epath

from kard_jax.core import config, distributed, gin_text, recipes
from kard_jax.core.files import InputError

# The first word of a stage's name says which launcher runs it.
LAUNCHERS = {
  "prepare": "prepare",
  "index": "index",
  "teach": "teach",
  "ground": "ground",
  "student": "train",
  "reranker": "train",
  "rerank": "rerank",
  "answer": "answer",
  "score": "score",
  "memorise": "memorise",
}


class Failed(Exception):
  """A stage ended with this exit status; it has told why."""

  def __init__(self, status: int):
    self.status = status


def run(
  folder: pathlib.Path,
  overrides: Sequence[str],
  redo: str | None = None,
  methods: Sequence[str] | None = None,
  donors: Sequence[str] = (),
) -> None:
  """Runs a recipe.

  Args:
    folder: holds `1_<stage>.gin` and so on, or a recipe.gin that says where they are (STAGES).
    overrides: `NAME=value`, each given to the stages whose files bind that name.
    redo: a stage to make again, with all after it.
    methods: those to run; what only others need is left out. None runs all.
    donors: work directories from which a stage that was made of the same things may be taken.

  Raises:
    InputError: the recipe, a macro, or an earlier stage's record does not fit.
    Failed: a stage failed.
  """
  plan = recipes.plan(folder, overrides)
  if methods is not None:
    plan = recipes.for_methods(plan, methods)
  names = [planned.name for planned in plan]
  if redo is not None and redo not in names:
    raise InputError(f"--redo={redo}: the stages of {folder.name} are {', '.join(names)}")
  again = changed = False
  started = time.time()
  for number, planned in enumerate(plan, 1):
    again = again or planned.name == redo
    anew = again or (changed and planned.name == "score")  # it may have scored what was there then
    stage = planned.stage()
    if not anew and stage.is_finished():
      continue
    changed = True
    donor = None if anew else next(filter(stage.adopt, donors), None)
    source = f": as in {donor}" if donor else ""
    print(f"\n[{number}/{len(plan)}] {planned.name}{source}", flush=True)
    if donor is None:
      _launch(planned, anew)
  print(f"\n{folder.name}: all {len(plan)} stages done, {time.time() - started:.0f} s", flush=True)
  _show(plan)


def sweep(
  folder: pathlib.Path,
  gin_file: pathlib.Path,
  overrides: Sequence[str],
  redo: str | None = None,
  methods: Sequence[str] | None = None,
  donors: Sequence[str] = (),
) -> None:
  """Runs a recipe once for each value of a sweep; what a value does not change is made once.

  In the end `sweeps/<sweep>/report.html` of the recipe's work directory has all runs side by side.

  Args:
    folder: of the recipe.
    gin_file: of the sweep, see `recipes.sweep`.
    overrides: as for `run`, and SWEEP_VALUES.
    redo: as for `run`, in each run of the sweep.
    methods: as for `run`; None runs those that the sweep's file names.
    donors: as for `run`, besides the recipe's own work directory and those of other values.

  Raises:
    InputError: as `run`, or the sweep's file does not fit.
    Failed: a stage failed.
  """
  if methods:
    overrides = [*overrides, f"METHODS={list(methods)!r}"]
  points = recipes.sweep(folder, gin_file, overrides)
  places = [
    *donors,
    gin_text.workdir(gin_text.resolve_unchecked(gin_text.stages(folder)[0], overrides)),
  ]
  for point in points:
    print(f"\n{gin_file.stem}: {point.value}", flush=True)
    run(folder, point.overrides, redo, methods or point.methods, places)
    places.append(point.workdir)
  if len(points) > 1:
    from launch import compare

    workdirs = [point.workdir for point in points]
    compare.compare(workdirs, epath.Path(workdirs[0]).parent)


def _launch(planned: recipes.Planned, redo: bool) -> None:
  launcher = LAUNCHERS.get(planned.name.split("_")[0])
  if launcher is None:
    shown = ", ".join(LAUNCHERS)
    raise InputError(f"{planned.gin_files[0]}: the name must begin with one of {shown}")
  command = [sys.executable, str(ROOT / "launch" / f"{launcher}.py")]
  command += [f"--gin_file={path}" for path in planned.gin_files]
  command += [f"--gin.{override}" for override in planned.overrides] + ["--redo"] * redo
  # Huge pages for what malloc maps: XLA's CPU buffers are mapped anew at each step, and training
  # the quickstart's student takes a tenth less time. Only Linux's glibc looks at it.
  environment = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"} | os.environ
  with subprocess.Popen(command, env=environment) as stage:
    # Whoever stops a machine tells the recipe: the stage is to save, and its status tells the rest.
    before = signal.signal(signal.SIGTERM, lambda *_: stage.terminate())
    try:
      status = stage.wait()
    finally:
      signal.signal(signal.SIGTERM, before)
  if status:
    raise Failed(status if status > 0 else 128 - status)


def _show(plan: Sequence[recipes.Planned]) -> None:
  """Prints the score card of the work directory, where there is one."""
  from kard_jax import scorecard_table

  path = plan[-1].stage().workdir / "scorecard"
  if (path / "scorecard.json").exists():
    scorecard_table.show(json.loads((path / "scorecard.json").read_text()))
    print(f"Report: {path / 'report.html'}", flush=True)


def find_recipe(name: str) -> pathlib.Path:
  """A folder as given, or one of `gin_configs/recipes/`.

  Raises:
    InputError: neither is there; the recipes are listed.
  """
  shipped = ROOT / "gin_configs" / "recipes"
  for folder in (pathlib.Path(name), shipped / name):
    if folder.is_dir():
      return folder
  names = ", ".join(sorted(path.name for path in shipped.iterdir() if path.is_dir()))
  raise InputError(f"--recipe={name}: no such folder, and the shipped recipes are {names}")


def find_sweep(name: str) -> pathlib.Path:
  """A gin file as given, or one of `gin_configs/sweeps/`.

  Raises:
    InputError: neither is there; the sweeps are listed.
  """
  shipped = ROOT / "gin_configs" / "sweeps"
  for path in (pathlib.Path(name), shipped / f"{name}.gin"):
    if path.is_file():
      return path
  names = ", ".join(sorted(path.stem for path in shipped.glob("*.gin")))
  raise InputError(f"--sweep={name}: no such file, and the shipped sweeps are {names}")


def main(argv: Sequence[str] | None = None) -> int:
  """The command line; returns the exit status."""
  flags = config.parser(__doc__ or "")
  flags.add_argument(
    "--recipe", required=True, help="a name below gin_configs/recipes, or a folder"
  )
  flags.add_argument(
    "--methods",
    metavar="NAMES",
    help="run these alone, as in rd,kard_bm25, and what they need",
  )
  flags.add_argument(
    "--sweep",
    metavar="NAME",
    help="one run a value: a name below gin_configs/sweeps, or a gin file",
  )
  flags.add_argument(
    "--reuse",
    action="append",
    default=[],
    metavar="WORKDIR",
    help="take stages from there that were made of the same things, such as another model's index",
  )
  flags.add_argument("--redo", metavar="STAGE", help="make this stage and all after it again")
  arguments, overrides = config.parse_arguments(flags, sys.argv[1:] if argv is None else argv)
  methods = arguments.methods.split(",") if arguments.methods else None

  def work() -> None:
    distributed.export(arguments)
    folder = find_recipe(arguments.recipe)
    if arguments.sweep:
      gin_file = find_sweep(arguments.sweep)
      sweep(folder, gin_file, overrides, arguments.redo, methods, arguments.reuse)
    else:
      run(folder, overrides, arguments.redo, methods, arguments.reuse)

  try:
    return config.exit_status(work)
  except Failed as failed:
    return failed.status


if __name__ == "__main__":
  sys.exit(main())
