"""Writes statistics.json: intervals and p values of statsmodels for random counts.

python tests/golden/write_statistics.py   # with statsmodels 0.15.0 and NumPy 2.4.6
"""

import json
import pathlib

import numpy as np
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint


def main():
  rng = np.random.default_rng(0)
  n = [1, 2, 7, *rng.integers(1, 5000, 37).tolist()]
  right = [int(rng.integers(0, size + 1)) for size in n]
  right[:4] = [0, 2, 7, 0]
  pairs = [[0, 0], [0, 1], [0, 6], [5, 5], *rng.integers(0, 60, (36, 2)).tolist()]
  tests = [rng.random(size) ** 3 for size in (1, 2, 6, 36)]
  golden = {
    "wilson": [
      [k, size, *map(float, proportion_confint(k, size, alpha=0.05, method="wilson"))]
      for k, size in zip(right, n, strict=True)
    ],
    "mcnemar": [[b, c, float(mcnemar([[11, b], [c, 4]], exact=True).pvalue)] for b, c in pairs],
    "holm": [[p.tolist(), multipletests(p, method="holm")[1].tolist()] for p in tests],
  }
  path = pathlib.Path(__file__).with_name("statistics.json")
  path.write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
  main()
