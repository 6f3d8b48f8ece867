"""The collections of Lucene's golden rankings: what was indexed and asked, read from shared/data.

Shared by `write_lucene.py`, which runs where kard_jax is not installed, and by the test.
"""

import gzip
import json
import pathlib
from typing import Any, NamedTuple

# Rationales asked of the textbooks: from every fourth question of OpenBookQA and every second of
# StrategyQA one of the teacher's answers, another one from question to question.
RATIONALES = (("openbookqa", 4), ("strategyqa", 2))


class Collection(NamedTuple):
  """Passages as (id, title, text), in indexed order, and queries."""

  passages: list[tuple[str, str, str]]
  queries: list[str]


def evidence(data: pathlib.Path) -> Collection:
  """StrategyQA's evidence paragraphs and its questions, both in the order of their files."""
  folder = data / "strategyqa" / "evidence"
  return Collection(
    _passages([folder / "corpus.jsonl.gz"]),
    [row["text"] for row in _rows(folder / "queries.jsonl.gz")],
  )


def openstax(data: pathlib.Path) -> Collection:
  """The OpenStax books, by file name, and real rationales (`RATIONALES`)."""
  queries = []
  for name, step in RATIONALES:
    rows = _rows(data / name / "teacher_train.jsonl.gz")
    for number, row in enumerate(rows[::step]):
      queries.append(row["completions"][number % len(row["completions"])])
  return Collection(_passages(sorted((data / "corpora").glob("openstax_*.jsonl.gz"))), queries)


COLLECTIONS = {"evidence": evidence, "openstax": openstax}


def _passages(paths: list[pathlib.Path]) -> list[tuple[str, str, str]]:
  rows = [row for path in paths for row in _rows(path)]
  return [(row["_id"], row["title"], row["text"]) for row in rows]


def _rows(path: pathlib.Path) -> list[dict[str, Any]]:
  with gzip.open(path, "rt", encoding="utf-8") as lines:
    return [json.loads(line) for line in lines]
