"""Stages one after another in one process of several: `python tests/hosts_stages_worker.py FILE`.

FILE holds a JSON list of [launcher, its command line]. The processes are joined once for all.
"""

import argparse
import json
import pathlib
import sys

sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from kard_jax.core import config, distributed, hosts


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("file")
  distributed.add_flags(parser)
  arguments = parser.parse_args()

  def work():
    distributed.start(distributed.find(arguments), hosts.Times())
    for module, argv in json.loads(pathlib.Path(arguments.file).read_text()):
      config.launch(module, "", argv)

  exit_status, config.exit_status = config.exit_status, lambda stage: stage()  # the end is ours
  return exit_status(work)


if __name__ == "__main__":
  sys.exit(main())
