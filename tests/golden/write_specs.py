"""Writes specs_*.json: how the parameters of large students are split over fsdp 2 x tensor 4.

A golden value of this project's own: it changes when a parameter, its axes or the rules of
gin_configs/hardware/mesh.gin do, and is then to be read before it is written anew.

  XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.golden.write_specs
"""

import json
import pathlib

from tests.student import specs_test

if __name__ == "__main__":
  for name in specs_test.CASES:
    path = pathlib.Path(__file__).parent / f"specs_{name}.json"
    path.write_text(json.dumps(specs_test.specs(name), indent=0) + "\n")
