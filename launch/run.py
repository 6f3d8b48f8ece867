"""Runs the numbered stages of a recipe in order, and skips those that are done and unchanged.

Examples:
  python launch/run.py --recipe=quickstart
  python launch/run.py --recipe=quickstart --gin.SEED=1 --gin.WORKDIR="'runs/quickstart_1'"
  python launch/run.py --recipe=my/recipe_folder --redo=ground
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from kard_jax.core import config, provenance
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
}


class Failed(Exception):
  """A stage ended with this exit status; it has told why."""

  def __init__(self, status: int):
    self.status = status


def run(folder: pathlib.Path, overrides: Sequence[str], redo: str | None) -> None:
  """Runs a recipe.

  Args:
    folder: holds `1_<stage>.gin` and so on.
    overrides: `NAME=value`, each given to the stages whose files bind that name.
    redo: a stage to make again, with all after it.

  Raises:
    InputError: the recipe, a macro, or an earlier stage's record does not fit.
    Failed: a stage failed.
  """
  paths = config.stage_files(folder)
  if not paths:
    raise InputError(f"{folder}: no numbered gin files such as 1_prepare.gin")
  plan = [(path, *_settings(path, overrides)) for path in paths]
  _check_overrides(plan, overrides)
  names = [config.stage_name(settings) for _, _, settings in plan]
  if redo is not None and redo not in names:
    raise InputError(f"--redo={redo}: the stages of {folder.name} are {', '.join(names)}")
  again = False
  started = time.time()
  for number, (path, mine, settings) in enumerate(plan, 1):
    name = config.stage_name(settings)
    again = again or name == redo
    stage = provenance.Stage(name, config.workdir(settings), settings.fingerprint())
    if not again and stage.is_finished():
      continue
    print(f"\n[{number}/{len(plan)}] {name}", flush=True)
    _launch(name, path, mine, again)
  print(f"\n{folder.name}: all {len(plan)} stages done, {time.time() - started:.0f} s", flush=True)
  _show(plan)


def _settings(path: pathlib.Path, overrides: Sequence[str]) -> tuple[list[str], config.Settings]:
  """The overrides that concern a stage, and its settings under them."""
  plain = config.resolve_unchecked([str(path)])
  known = {key for key in plain.bindings if "." in key or key in {*plain.mentioned, config.WORKDIR}}
  mine = [override for override in overrides if override.partition("=")[0] in known]
  return mine, config.resolve([str(path)], mine)


def _check_overrides(plan: Sequence[tuple], overrides: Sequence[str]) -> None:
  for override in overrides:
    if not any(override in mine for _, mine, _ in plan):
      names = {key for _, _, settings in plan for key in settings.bindings}
      name = override.partition("=")[0]
      raise InputError(f"--gin.{override}: no stage uses {name}{config.near(name, names)}")


def _launch(name: str, path: pathlib.Path, overrides: Sequence[str], redo: bool) -> None:
  launcher = LAUNCHERS.get(name.split("_")[0])
  if launcher is None:
    raise InputError(f"{path}: the name must begin with one of {', '.join(LAUNCHERS)}")
  command = [sys.executable, str(ROOT / "launch" / f"{launcher}.py"), f"--gin_file={path}"]
  command += [f"--gin.{override}" for override in overrides] + ["--redo"] * redo
  # Huge pages for what malloc maps: XLA's CPU buffers are mapped anew at each step, and training
  # the quickstart's student takes a tenth less time. Only Linux's glibc looks at it.
  environment = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"} | os.environ
  status = subprocess.run(command, check=False, env=environment).returncode
  if status:
    raise Failed(status if status > 0 else 128 - status)


def _show(plan: Sequence[tuple]) -> None:
  """Prints the score card of the work directory, where there is one."""
  from kard_jax import scorecard_table

  path = provenance.Stage("score", config.workdir(plan[-1][2]), {}).workdir / "scorecard"
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


def main(argv: Sequence[str] | None = None) -> int:
  """The command line; returns the exit status."""
  flags = config.parser(__doc__ or "")
  flags.add_argument(
    "--recipe", required=True, help="a name below gin_configs/recipes, or a folder"
  )
  flags.add_argument("--redo", metavar="STAGE", help="make this stage and all after it again")
  arguments, overrides = config.parse_arguments(flags, sys.argv[1:] if argv is None else argv)
  try:
    return config.exit_status(lambda: run(find_recipe(arguments.recipe), overrides, arguments.redo))
  except Failed as failed:
    return failed.status


if __name__ == "__main__":
  sys.exit(main())
