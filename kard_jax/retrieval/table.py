"""Search results for people: a table as wide as the terminal, the query's words set off.

A text is cut to one line, where most of the query's terms stand together. Words are compared as the
index does, after analysis: a query of "cells" sets off "Cell" too.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kard_jax.retrieval.analyzer import Analyzer

_HIT, _ID = "bold yellow", "cyan"
_BEFORE = "… "
_GAP = 2  # spaces between columns
_LEAST = 24  # columns for texts, at least
_PIPE_WIDTH = 120  # where no terminal says how wide it is
_LEAD = 16  # characters before the first word set off, at most


def console() -> Console:
  """Standard output: colours and the width of a terminal, or plain lines."""
  width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _PIPE_WIDTH
  return Console(file=sys.stdout, width=width, highlight=False, markup=False, emoji=False)


def show(
  query: str,
  passages: Sequence[Mapping[str, Any]],
  analyzer: Analyzer,
  output: Console,
  *,
  text: bool = True,
) -> None:
  """Prints a query's passages, best first.

  Args:
    query: as it was asked.
    passages: rows of id, score and, for `text`, title and text.
    analyzer: the index's.
    output: where to.
    text: show titles and texts.
  """
  headline = Text(_plain(query), style="bold", no_wrap=True, overflow="ellipsis")
  output.print(headline)
  if not passages:
    output.print("nothing found: no passage has a word of it\n")
    return
  terms = set(analyzer(query))
  scores = [f"{row['score']:.4f}" for row in passages]
  table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="dim")
  widths = [len(str(len(passages))), max(map(len, [*scores, "score"]))]
  for name, width in zip(("", "score"), widths, strict=True):
    table.add_column(name, justify="right", no_wrap=True, width=width)
  room = max(_LEAST, output.width - sum(widths) - 2 * _GAP)
  table.add_column("passage", no_wrap=True, width=room)
  for rank, (row, score) in enumerate(zip(passages, scores, strict=True), 1):
    passage = Text(_plain(row["id"]), style=_ID)
    if text:
      passage = Text.assemble(passage, " " * _GAP if row["title"] else "", _plain(row["title"]))
    passage.truncate(room, overflow="ellipsis")
    if text:
      passage = Text("\n").join([passage, shortened(row["text"], terms, analyzer, room)])
    table.add_row(str(rank), score, passage)
  output.print(table)
  output.print()


def shortened(text: str, terms: set[str], analyzer: Analyzer, width: int) -> Text:
  """The part of a text where most of the terms stand, in one line, with those words set off.

  Args:
    text: of a passage.
    terms: of the query.
    analyzer: turns the text's words into terms.
    width: columns of the terminal.
  """
  plain = _plain(text)
  hits = [word for word in _words(plain, analyzer) if word.term in terms]
  start = 0 if cell_len(plain) <= width else _best_start(plain, hits, width)
  head = _BEFORE if start else ""
  result = Text(head + plain[start:])
  for word in hits:
    if word.start >= start:
      result.stylize(_HIT, word.start - start + len(head), word.end - start + len(head))
  result.truncate(width, overflow="ellipsis")
  return result


class _Word(NamedTuple):
  term: str
  start: int
  end: int


def _words(text: str, analyzer: Analyzer) -> Iterator[_Word]:
  """The words of a text, with where they stand: they come in order, so each is looked for on."""
  end = 0
  for word in analyzer.words(text):
    start = text.index(word, end)
    end = start + len(word)
    yield _Word(analyzer.term(word), start, end)


def _best_start(text: str, hits: Sequence[_Word], width: int) -> int:
  """Where a line that holds the most distinct terms begins; the first of several such."""
  best, most, last = 0, len({word.term for word in hits if word.end < width}), 0
  for first, word in enumerate(hits):
    begin = max(0, word.start - min(_LEAD, width // 4))
    begin = text.find(" ", begin, word.start) + 1 or begin  # not in the middle of a word
    while last < len(hits) and hits[last].end <= begin + width - len(_BEFORE) - 1:
      last += 1
    found = len({hit.term for hit in hits[first:last]})
    if found > most:
      best, most = begin, found
  return best


def _plain(text: str) -> str:
  """One line that does nothing to a terminal."""
  return " ".join("".join(c if c.isprintable() else " " for c in text).split())
