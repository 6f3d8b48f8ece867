"""Shows several work directories side by side: one page, with curves where they are of a sweep.

Examples:
  python launch/compare.py runs/medqa_flan_t5_base runs/medqa_flan_t5_large --out=runs/sizes
  python launch/compare.py runs/seed_0 runs/seed_1 runs/seed_2 --names=0,1,2 --out=runs/seeds

Each has a score card already (launch/score.py, which is launch/run.py's last stage). A sweep's page
is made by launch/run.py itself.
"""

from __future__ import annotations

import pathlib
import sys

if __name__ == "__main__":  # with the project's root on the path
  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])
  from launch import compare as module

  sys.exit(module.main())

import argparse
from collections.abc import Sequence

from etils import epath

from kard_jax import comparison, report
from kard_jax.core import config, files
from kard_jax.core.files import InputError


def compare(
  workdirs: Sequence[str], out: files.PathLike, names: Sequence[str] | None = None
) -> None:
  """Writes `report.html` and `comparison.json`: accuracies and differences to the first run.

  Args:
    workdirs: two or more, each with a score card.
    out: the folder to write to.
    names: what the runs are called; None: the values of their sweep, or the folders' names.

  Raises:
    InputError: a run cannot be read, is given twice, or the names do not fit.
  """
  if len(workdirs) < 2 or len({str(epath.Path(place)) for place in workdirs}) < len(workdirs):
    raise InputError("give two work directories or more, each once")
  if names is not None and len(names) != len(workdirs):
    raise InputError(f"{len(names)} names for {len(workdirs)} work directories")
  runs = [comparison.read(place, names[i] if names else None) for i, place in enumerate(workdirs)]
  if len({run.name for run in runs}) < len(runs):  # folders of the same name
    runs = [run._replace(name=str(place)) for run, place in zip(runs, workdirs, strict=True)]
  together = comparison.across(runs)
  folder = epath.Path(out)
  folder.mkdir(parents=True, exist_ok=True)
  rows = [
    {
      "name": run.name,
      "workdir": str(place),
      "sweep": run.card["sweep"],
      "methods": {
        method: {key: row[key] for key in ("accuracy", "interval", "n", "unparsed")}
        for method, row in run.card["methods"].items()
      },
    }
    for run, place in zip(runs, workdirs, strict=True)
  ]
  differences = together["differences"] if together else None
  files.write_json(folder / "comparison.json", {"runs": rows, "differences": differences})
  report.write_runs(folder / "report.html", runs, together)
  print(f"{len(runs)} runs side by side: {folder / 'report.html'}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
  """The command line; returns the exit status."""
  flags = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  flags.add_argument("workdirs", nargs="+", metavar="WORKDIR", help="with a score card")
  flags.add_argument("--out", required=True, metavar="FOLDER", help="where report.html is written")
  flags.add_argument("--names", metavar="NAMES", help="what the runs are called, as in 0,1,2")
  arguments = flags.parse_args(argv)
  names = arguments.names.split(",") if arguments.names else None
  return config.exit_status(lambda: compare(arguments.workdirs, arguments.out, names))
