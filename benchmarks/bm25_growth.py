"""Measures how time and memory of the BM25 index grow, and carries it on to Wikipedia's size.

Examples:
  python benchmarks/bm25_growth.py --json=growth.json
  python benchmarks/bm25_growth.py --sizes=20000,50000,100000

Each size is built and searched in processes of its own; the passages are synthetic
(`bm25_corpus.py`), and are written to disk first, a few at a time. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import signal
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import bm25_check
import bm25_corpus
import bm25_engines
import bm25_report
import numpy as np
from worker import Worker

# What is fitted: its label, how it is shown, and its unit.
_MEASURES = {
  "build_s": ("build, s", "{:,.0f}", 1.0),
  "peak_rss_bytes": ("memory of build, MiB", "{:,.0f}", 2.0**20),
  "index_bytes": ("index, GB", "{:.2f}", 1e9),
  "bytes_per_posting": ("bytes a posting", "{:.2f}", 1.0),
  "first_batch_s": ("first batch, s", "{:.1f}", 1.0),
  "queries_per_s": ("queries/s", "{:,.0f}", 1.0),
  "search_peak_rss_bytes": ("memory of search, MiB", "{:,.0f}", 2.0**20),
}


def main() -> int:
  """Measures, prints; 1 if a search was not exact."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--sizes", default="100000,1000000,10000000", help="numbers of passages, with commas")
  add("--to", type=int, default=40_000_000, help="carry the fits on to so many (40 million)")
  add("--queries", type=int, default=1000, help="in a batch (1000)")
  add("--terms", type=int, default=39, help="of a query, stop words besides (39)")
  add("--k", type=int, default=100)
  add("--rounds", type=int, default=5)
  add("--exhaustive", type=int, default=5, help="queries also searched exhaustively (5)")
  add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="all cores by default")
  add("--memory_limit", type=int, default=1 << 30, help="bytes, of the build (1 GiB)")
  add("--seed", type=int, default=0)
  add("--folder", help="where to work: 1.5 KB a passage are needed; the system's by default")
  add("--texts", metavar="FOLDER", help="keep the passages there, and use those that are")
  add("--json", metavar="FILE", help="write the measures there")
  arguments = parser.parse_args()
  sizes = sorted(int(size) for size in arguments.sizes.split(","))
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that folders are removed
  rows = []
  for size in sizes:
    with tempfile.TemporaryDirectory(prefix="bm25-growth-", dir=arguments.folder) as folder:
      rows.append(measure(size, arguments, Path(folder)))
    if arguments.json:  # after each: the next may take long
      config = {**bm25_report.settings(arguments), **bm25_report.machine()}
      ours = {"sizes": rows, "fits": fits(rows, arguments.to)}
      found = {"config": config, "ours": ours, "peers": {}, "ratios": {}}
      Path(arguments.json).write_text(json.dumps(found, indent=2) + "\n")
  print(table(rows, fits(rows, arguments.to), arguments.to))
  return int(any(row["exhaustive"]["wrong"] for row in rows))


def measure(size: int, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
  """Builds and searches one size, and compares with an exhaustive search."""
  kept = Path(arguments.texts) if arguments.texts else folder
  parts = kept / f"passages-{size}-{arguments.seed}"
  if not parts.exists():
    say(f"{size:,} passages: writing")
    unfinished = kept / f"unfinished-{size}"
    bm25_corpus.write(unfinished, size, seed=arguments.seed, parts=min(16, size))
    unfinished.rename(parts)
  index = str(folder / "index")
  say("building")
  with Worker("bm25_engines.py", "ours", sys.executable, folder / "log", search=False) as worker:
    built = worker(
      "build",
      parts=str(parts),
      folder=index,
      threads=arguments.threads,
      memory_limit=arguments.memory_limit,
    )
  say(f"built in {built['seconds']:.0f} s; searching")
  queries = bm25_corpus.queries(arguments.queries, arguments.terms, seed=arguments.seed)
  with Worker("bm25_engines.py", "ours", sys.executable, folder / "log", search=True) as worker:
    first = worker("first", folder=index, queries=queries, k=arguments.k, threads=arguments.threads)
    runs = [len(queries) / worker("run")["seconds"] for _ in range(arguments.rounds)]
    load = worker("load")
    worker("results", path=str(folder / "found.npz"))
    memory = worker("memory")
  row = {
    "passages": size,
    "postings": built["postings"],
    "build_s": built["seconds"],
    "peak_rss_bytes": built["peak_rss_bytes"],
    "index_bytes": built["bytes"],
    "bytes_per_posting": built["bytes"] / built["postings"],
    **first,
    **load,
    "queries_per_s": statistics.median(runs),
    "queries_per_s_spread": [min(runs), max(runs)],
    "search_peak_rss_bytes": memory["peak_rss_bytes"],
    "search_files_rss_bytes": memory["files_rss_bytes"],
  }
  shutil.rmtree(index)
  say("searching exhaustively")
  some = queries[: arguments.exhaustive]
  texts = bm25_engines.texts(parts)
  exact = bm25_check.exhaustive(texts, some, k1=bm25_engines.K1, b=bm25_engines.B)
  with np.load(folder / "found.npz") as arrays:
    ids, scores = arrays["ids"][: len(some)], arrays["scores"][: len(some)]
  row["exhaustive"] = bm25_check.against_exhaustive(ids, scores, exact)
  say(json.dumps(row))
  return row


def fits(rows: list[dict[str, Any]], to: int) -> dict[str, dict[str, float]]:
  """Power laws, `measure = factor * passages ** exponent`, by least squares of the logarithms.

  Returns:
    Of each measure the exponent, the largest relative residual, and the value carried on; nothing
    with less than two sizes.
  """
  if len(rows) < 2:
    return {}
  found = {}
  passages = np.log([row["passages"] for row in rows])
  for name in _MEASURES:
    values = np.log([row[name] for row in rows])
    exponent, offset = np.polyfit(passages, values, 1)
    residual = np.expm1(np.abs(values - offset - exponent * passages)).max()
    carried = np.exp(offset + exponent * np.log(to))
    found[name] = {
      "exponent": float(exponent), "residual": float(residual), "carried": float(carried),
    }  # fmt: skip
  return found


def table(rows: list[dict[str, Any]], fitted: dict[str, dict[str, float]], to: int) -> str:
  """Markdown: a column for each size, the exponents, and what they come to."""
  head = ["", *(f"{row['passages']:,}" for row in rows), "exponent", f"{to:,} (carried on)"]
  lines = [head, ["---", *["---:"] * (len(head) - 1)]]
  for name, (label, form, unit) in _MEASURES.items():
    fit = fitted.get(name)
    last = [f"{fit['exponent']:.2f}", form.format(fit["carried"] / unit)] if fit else ["", ""]
    lines.append([label, *(form.format(row[name] / unit) for row in rows), *last])
  return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def say(text: str) -> None:
  """Tells the time and a line on standard error."""
  print(f"{datetime.datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
  sys.exit(main())
