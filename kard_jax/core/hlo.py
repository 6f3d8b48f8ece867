"""What a compiled program sends between chips: its collectives, read from XLA's own text.

A collective in the body of a loop counts as often as the loop runs: as XLA says it does, else by
the bound and the step of the loop's counter, which starts at 0. Where neither is there, as in a
loop until all texts have ended, it counts once. What XLA cuts into pieces (a matrix product that
waits for its operand step by step) is counted by piece.
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "bf16": 2, "f16": 2} | {"c64": 8, "c128": 16, "token": 0}

_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_CALLED = re.compile(
  r"(?:calls|to_apply|body|condition|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)
_LOOP = re.compile(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+[0-9]*(?:e\d\w*)?)\[([\d,]*)\]")
_DEFINED = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = ")
_BELOW = re.compile(r"compare\(%?([\w.\-]+), %?([\w.\-]+)\), direction=LT")
_ADDED = re.compile(r" add\(%?([\w.\-]+), %?([\w.\-]+)\)")
_NUMBER = re.compile(r" constant\((\d+)\)")
_INDEX = re.compile(r" get-tuple-element\(.*\), index=(\d+)")
_TUPLE = re.compile(r" tuple\((.*?)\)(?:,|$)")
_CHANNEL = re.compile(r"channel_id=(\d+)")


class Collective(NamedTuple):
  """All collectives of one kind.

  Attributes:
    times: how many a chip takes part in, in one run of the program.
    bytes: of their results on a chip.
  """

  times: int
  bytes: int


def collectives(text: str) -> dict[str, Collective]:
  """Kind -> count and bytes, of a compiled program's text (`compiled.as_text()`)."""
  computations = dict(_computations(text))
  runs = _runs(computations, text)
  # XLA may spread one collective over several fusions; its channel then tells that it is one.
  found: dict[tuple[str, str], tuple[int, int]] = {}
  for name, lines in computations.items():
    for i, line in enumerate(lines):
      hit = _COLLECTIVE.search(line)
      if not hit or not runs[name]:
        continue
      channel = _CHANNEL.search(line)
      key = (hit[2], channel[1] if channel else f"{name}/{i}")
      size = _size(hit[1], bool(hit[3]))
      found[key] = max(found.get(key, (0, 0)), (runs[name], size))
  totals: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
  for (kind, _), (times, size) in found.items():
    totals[kind][0] += times
    totals[kind][1] += times * size
  return {kind: Collective(*totals[kind]) for kind in KINDS if kind in totals}


def _computations(text: str) -> Iterator[tuple[str, list[str]]]:
  name = ""
  lines: list[str] = []
  for line in text.splitlines():
    head = _HEAD.match(line)
    if head and " = " not in line.split("(")[0]:
      name, lines = head[1], []
    elif line.startswith("}"):
      yield name, lines
    else:
      lines.append(line)


def _runs(computations: Mapping[str, list[str]], text: str) -> dict[str, int]:
  """How often each computation runs in one run of the program."""
  entry = re.search(r"^ENTRY %?([\w.\-]+)", text, re.M)
  runs = dict.fromkeys(computations, 0)
  waiting = [(entry[1], 1)] if entry else []
  while waiting:
    name, times = waiting.pop()
    if name not in runs:
      continue
    runs[name] += times
    for line in computations[name]:
      loop = _LOOP.search(line)
      trips = _trips(computations, line, loop[1], loop[2]) if loop else 1
      for called in _CALLED.findall(line):
        for part in re.findall(r"[\w.\-]+", called):
          waiting.append((part, times * (trips if loop and part == loop[2] else 1)))
  return runs


def _trips(computations: Mapping[str, list[str]], loop: str, condition: str, body: str) -> int:
  """How often a loop runs; 1 where it cannot be told."""
  if known := _TRIPS.search(loop):
    return int(known[1])
  tests, steps = (_definitions(computations.get(name, [])) for name in (condition, body))
  below = _BELOW.search(tests.get("ROOT", ""))
  counter, bound = (
    found.search(tests.get(below[i], "")) if below else None
    for i, found in ((1, _INDEX), (2, _NUMBER))
  )
  results = _TUPLE.search(steps.get("ROOT", ""))
  if not counter or not bound or not results:
    return 1
  names = re.sub(r"/\*.*?\*/", "", results[1]).split(",")
  added = _ADDED.search(steps.get(names[int(counter[1])].strip().lstrip("%"), ""))
  step = _NUMBER.search(steps.get(added[2], "")) if added else None
  return -(-int(bound[1]) // int(step[1])) if step and int(step[1]) else 1


def _definitions(lines: list[str]) -> dict[str, str]:
  """Name -> its line; "ROOT" -> the line of the result."""
  found = {hit[1]: line for line in lines if (hit := _DEFINED.match(line))}
  return found | {"ROOT": next((x for x in lines if x.lstrip().startswith("ROOT ")), "")}


def _size(shape: str, started: bool) -> int:
  """Bytes of a result. One that was started holds its operands, results and flags: the largest."""
  sizes = [
    math.prod(map(int, filter(None, dims.split(",")))) * _width(dtype)
    for dtype, dims in _ARRAY.findall(shape)
  ]
  return max(sizes, default=0) if started else sum(sizes)


def _width(dtype: str) -> int:
  if dtype in _BYTES:
    return _BYTES[dtype]
  bits = re.search(r"\d+", dtype)
  return max(1, int(bits[0]) // 8) if bits else 0
