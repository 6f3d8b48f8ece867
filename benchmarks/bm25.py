"""Measures the BM25 index against bm25s and Lucene, on the same synthetic passages.

Examples:
  python benchmarks/bm25.py --passages=200000
  python benchmarks/bm25.py --passages=1000000 --json=bm25.json --bm25s_python=PEERS/bin/python
  python benchmarks/bm25.py --passages=200000 --peers=none

Each engine builds in a process of its own, one after another, then searches in another; batches are
timed in rounds that go from engine to engine, never two at a time. README.md says how to install
the peers, and what is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
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
from worker import Failed, Worker

_PARTS = 16  # files; Lucene reads one a thread
_COMPARED = 50  # queries compared between engines
_EXHAUSTIVE = 20  # queries searched exhaustively


def flags() -> argparse.ArgumentParser:
  """The command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--passages", type=int, default=200_000, metavar="N")
  add("--queries", type=int, default=1000, metavar="Q", help="in a batch (1000)")
  add("--terms", type=int, default=39, help="of a query, stop words besides (39)")
  add("--k", type=int, default=100, help="passages found for each query (100)")
  add("--rounds", type=int, default=7, help="of each engine's search; at least 5 (7)")
  add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="all cores by default")
  add("--memory_limit", type=int, default=1 << 30, help="bytes, of our build (1 GiB)")
  add("--lucene_queries", type=int, default=200, help="Lucene answers the first so many (200)")
  add("--peers", default="bm25s,lucene", help="bm25s, lucene, both with a comma, or none")
  for name, module in (("bm25s", "bm25s and numba"), ("lucene", "Pyserini")):
    variable = f"{name.upper()}_PYTHON"
    python = os.environ.get(variable, sys.executable)
    add(f"--{name}_python", default=python, help=f"interpreter with {module}; or ${variable}")
  add("--seed", type=int, default=0)
  add("--json", metavar="FILE", help="write the measures there")
  add("--keep", metavar="FOLDER", help="keep passages and indexes there")
  return parser


def main() -> int:
  """Measures, prints; 1 if a search was not exact."""
  arguments = flags().parse_args()
  peers = [] if arguments.peers == "none" else arguments.peers.split(",")
  if unknown := set(peers) - {"bm25s", "lucene"}:
    flags().error(f"--peers: bm25s, lucene or none, not {', '.join(sorted(unknown))}")
  if not arguments.k <= arguments.passages or arguments.rounds < 5:
    flags().error("--passages has to be at least --k, and --rounds at least 5")
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that folders are removed
  with contextlib.ExitStack() as stack:
    if arguments.keep:
      folder = Path(arguments.keep).resolve()
      folder.mkdir(parents=True, exist_ok=True)
    else:
      folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bm25-")))
    found = Benchmark(arguments, ["ours", *peers], folder).run()
  bm25_report.show(found)
  if arguments.json:
    bm25_report.write(found, Path(arguments.json))
  return 1 if found["ours"]["exhaustive"]["wrong"] else 0


class Benchmark:
  """One run.

  Args:
    arguments: the flags.
    names: engines, ours first.
    folder: for passages and indexes.
  """

  def __init__(self, arguments: argparse.Namespace, names: list[str], folder: Path):
    self._arguments, self._names, self._folder = arguments, names, folder
    self._parts = folder / "passages"
    self._measures: dict[str, dict[str, Any]] = {name: {} for name in names}
    self._absent: dict[str, str] = {}
    self._queries = bm25_corpus.queries(arguments.queries, arguments.terms, seed=arguments.seed)

  def run(self) -> dict[str, Any]:
    """All measures, as the JSON file has them."""
    arguments = self._arguments
    _say(f"writing {arguments.passages:,} passages")
    paths = bm25_corpus.write(
      self._parts, arguments.passages, seed=arguments.seed, parts=min(_PARTS, arguments.passages)
    )
    for name in self._names:
      self._attempt(name, self._build)
    results = self._search()
    _say("searching exhaustively")
    self._compare(results)
    ours = self._measures["ours"]
    config = {
      **bm25_report.settings(arguments),
      "bytes": sum(path.stat().st_size for path in paths),
      **bm25_report.machine(),
    }
    peers = {name: self._measures[name] for name in self._names[1:] if name not in self._absent}
    ratios = {name: bm25_report.ratios(ours, theirs) for name, theirs in peers.items()}
    return {
      "config": config, "ours": ours, "peers": peers, "ratios": ratios, "absent": self._absent,
    }  # fmt: skip

  def _attempt(self, name: str, action: Any) -> None:
    """Has a peer do something, and goes on without it if it cannot."""
    if name in self._absent:
      return
    try:
      action(name)
    except Failed as error:
      if name == "ours":
        raise SystemExit(f"{error}") from None
      self._absent[name] = str(error)
      _say(f"absent: {error}")

  def _worker(self, name: str, *, search: bool) -> Worker:
    python = getattr(self._arguments, f"{name}_python", sys.executable)
    log = self._folder / f"{name}.log"
    return Worker("bm25_engines.py", name, python, log, search=search)

  def _build(self, name: str) -> None:
    _say(f"{name} builds")
    measures, arguments = self._measures[name], self._arguments
    with self._worker(name, search=False) as worker:
      measures.update(worker.begun)
      built = worker(
        "build",
        parts=str(self._parts),
        folder=str(self._folder / name),
        threads=arguments.threads,
        memory_limit=arguments.memory_limit,
      )
    measures["build"] = built
    measures["passages_per_s"] = arguments.passages / built["seconds"]
    measures["peak_rss_bytes"] = built["peak_rss_bytes"]
    postings = built.get("postings", self._measures["ours"]["build"]["postings"])
    measures["bytes_per_posting"] = built["bytes"] / postings
    if name == "ours":
      with self._worker(name, search=False) as worker:
        stored = worker("store", parts=str(self._parts), folder=str(self._folder / "stored"))
      measures["write_passages_s"] = stored["seconds"]
    if name == "bm25s":  # had it been given the texts in memory
      seconds = built["seconds"] - built["read_s"]
      measures["passages_per_s_without_reading"] = arguments.passages / seconds

  def _search(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Times searches in rounds; returns the results of each engine."""
    workers: dict[str, Worker] = {}
    runs: dict[tuple[str, str], list[tuple[float, float]]] = {}
    results: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def begin(name: str) -> None:
      _say(f"{name} opens its index")
      worker = stack.enter_context(self._worker(name, search=True))
      measures = self._measures[name]
      queries = self._queries_of(name)
      options = {"folder": str(self._folder / name), "k": self._arguments.k, "queries": queries}
      measures.update(worker("first", threads=self._arguments.threads, **options))
      if name != "lucene":
        measures.update(worker("load"))
      workers[name] = worker

    def once(name: str) -> None:
      for kind, options in self._kinds(name):
        done, count = workers[name]("run", **options), len(self._queries_of(name))
        rates = count / done["seconds"], count / done["processor_s"]
        runs.setdefault((name, kind), []).append(rates)

    def end(name: str) -> None:
      path = self._folder / f"{name}.npz"
      workers[name]("results", path=str(path))
      with np.load(path) as arrays:
        results[name] = arrays["ids"], arrays["scores"]
      memory = workers[name]("memory")
      self._measures[name]["search_peak_rss_bytes"] = memory["peak_rss_bytes"]
      self._measures[name]["search_files_rss_bytes"] = memory["files_rss_bytes"]

    with contextlib.ExitStack() as stack:
      for name in self._names:
        self._attempt(name, begin)
      for number in range(self._arguments.rounds + 1):
        if number == 1:
          runs.clear()  # the first round warms up: compilers, caches
        for name in self._names:
          self._attempt(name, once)
        _say(f"round {number} of {self._arguments.rounds}")
      for name in self._names:
        self._attempt(name, end)
    for name in results:
      of_kind = {kind: values for (owner, kind), values in runs.items() if owner == name}
      self._measures[name].update(_rates(of_kind))
    return results

  def _queries_of(self, name: str) -> list[str]:
    return self._queries[: self._arguments.lucene_queries] if name == "lucene" else self._queries

  def _kinds(self, name: str) -> list[tuple[str, dict[str, Any]]]:
    """Ways to search; the fastest counts, but for text, which is told apart."""
    if name != "bm25s":
      return [("default", {})]
    threads = sorted({1, 2, self._arguments.threads})
    kinds = [(f"n_threads={count}", {"threads": count}) for count in threads]
    return [*kinds, ("from_text", {"text": True})]

  def _compare(self, results: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    ids, scores = results["ours"]
    for name in set(results) - {"ours"}:
      count = min(_COMPARED, len(self._queries_of(name)))
      theirs = (array[:count] for array in results[name])
      self._measures[name]["agreement"] = bm25_check.against_peer(
        ids[:count], scores[:count], *theirs
      )
    some = self._queries[:_EXHAUSTIVE]
    texts = bm25_engines.texts(self._parts)
    exact = bm25_check.exhaustive(texts, some, k1=bm25_engines.K1, b=bm25_engines.B)
    self._measures["ours"]["exhaustive"] = bm25_check.against_exhaustive(
      ids[: len(some)], scores[: len(some)], exact
    )


def _rates(of_kind: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
  """Median queries a second of the fastest way, and the spread of all."""
  medians = {kind: statistics.median(r for r, _ in rates) for kind, rates in of_kind.items()}
  ways = {kind: value for kind, value in medians.items() if kind != "from_text"}
  best = max(ways, key=lambda kind: ways[kind])
  found: dict[str, Any] = {
    "queries_per_s": ways[best],
    "queries_per_s_spread": [min(of_kind[best])[0], max(of_kind[best])[0]],
    "queries_per_processor_s": statistics.median(rate for _, rate in of_kind[best]),
  }
  if len(of_kind) > 1:
    found |= {
      "best": best,
      "queries_per_s_of": ways,
      "queries_per_s_from_text": medians["from_text"],
    }
  return found


def _say(text: str) -> None:
  print(f"{datetime.datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
  sys.exit(main())
