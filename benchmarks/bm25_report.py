"""What `bm25.py` measured, as a table and as JSON."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
from pathlib import Path
from typing import Any

_MEASURES = (
  ("queries_per_s", "queries/s, warm", "{:,.0f}", 1.0),
  ("queries_per_processor_s", "the same, a core's", "{:,.0f}", 1.0),
  ("passages_per_s", "passages/s, build", "{:,.0f}", 1.0),
  ("peak_rss_bytes", "memory of build, MiB", "{:,.0f}", 2.0**20),
  ("search_peak_rss_bytes", "memory of search, MiB", "{:,.0f}", 2.0**20),
  ("bytes_per_posting", "bytes a posting", "{:.2f}", 1.0),
  ("open_s", "open, s", "{:.2f}", 1.0),
  ("first_batch_s", "first batch, s", "{:.2f}", 1.0),
)
_RATIOS = (
  "queries_per_s",
  "queries_per_processor_s",
  "passages_per_s",
  "peak_rss_bytes",
  "search_peak_rss_bytes",
)


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
  """The flags, but for the places of this machine."""
  places = ("json", "keep", "folder", "bm25s_python", "lucene_python", "peers_python")
  return {name: value for name, value in vars(arguments).items() if name not in places}


def machine() -> dict[str, Any]:
  """Where and when it was measured."""
  info = Path("/proc/cpuinfo")
  found = re.search("model name\\s*: (.+)", info.read_text()) if info.exists() else None
  return {
    "date": datetime.date.today().isoformat(),
    "processor": found[1] if found else platform.processor(),
    "cores": len(os.sched_getaffinity(0)),
    "python": platform.python_version(),
  }


def ratios(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
  """Ours by theirs: of rates, above 1 is better; of bytes, below."""
  found = {name: ours[name] / theirs[name] for name in (*_RATIOS, "bytes_per_posting")}
  for name, of in (
    ("queries_per_s_from_text", "queries_per_s"),
    ("passages_per_s_without_reading", "passages_per_s"),
  ):
    if name in theirs:
      found[name] = ours[of] / theirs[name]
  return found


def show(found: dict[str, Any]) -> None:
  """Prints a table."""
  engines = {"ours": found["ours"], **found["peers"]}
  config = found["config"]
  print(
    f"{config['passages']:,} passages ({config['bytes'] / 1e6:,.0f} MB),"
    f" {found['ours']['build']['postings']:,} postings; batches of {config['queries']:,} queries,"
    f" top {config['k']}; {config['threads']} threads of {config['cores']} cores"
    f" ({config['processor']})"
  )
  print(
    f"{found['ours']['terms_per_query']:.1f} known terms and"
    f" {found['ours']['postings_per_query']:,.0f} postings a query"
  )
  print(f"{'':24}" + "".join(f"{name:>12}" for name in engines))
  for measure, label, form, unit in _MEASURES:
    values = [form.format(engine[measure] / unit) for engine in engines.values()]
    print(f"{label:24}" + "".join(f"{value:>12}" for value in values))
  for name, engine in engines.items():
    low, high = engine["queries_per_s_spread"]
    print(f"{name}: queries/s from {low:,.0f} to {high:,.0f} over {config['rounds']} rounds")
  for name, values in found["ratios"].items():
    print(f"ours by {name}: " + ", ".join(f"{key} {value:.2f}" for key, value in values.items()))
  print(f"passages written apart in {found['ours']['write_passages_s']:.1f} s")
  if "bm25s" in found["peers"]:
    theirs = found["peers"]["bm25s"]
    ways = ", ".join(f"{key} {value:,.0f}" for key, value in theirs["queries_per_s_of"].items())
    print(
      f"bm25s: {ways}; from text {theirs['queries_per_s_from_text']:,.0f};"
      f" read {theirs['build']['read_s']:.1f} s, tokenised {theirs['build']['tokenise_s']:.1f} s,"
      f" indexed {theirs['build']['index_s']:.1f} s"
    )
  for name, engine in found["peers"].items():
    agreement = engine["agreement"]
    print(
      f"{name} and ours: {agreement['same_rank']:.2%} of (query, rank) pairs equal,"
      f" {agreement['shared']:.2%} of passages found by both,"
      f" scores within {agreement['score_difference']:.1e}"
    )
  exact = found["ours"]["exhaustive"]
  print(
    f"exhaustive float64 and ours, {exact['queries']} queries: {exact['wrong']} wrong,"
    f" {exact['same']:.2%} the very same passage, scores within {exact['score_error']:.1e}"
  )
  for name, reason in found["absent"].items():
    print(f"{name} is absent: {reason}")


def write(found: dict[str, Any], path: Path) -> None:
  """Writes JSON."""
  path.write_text(json.dumps(found, indent=2) + "\n")
