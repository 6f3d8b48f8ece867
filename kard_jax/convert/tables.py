"""Name tables: which stored tensor is which parameter, and how its axes lie, both ways.

A table is a list of `Entry`. It always speaks of single layers (`decoder/layers_3/...`); where a
network stacks its layers for `nn.scan` (`decoder/layers/...`, layer axis first), `match` gathers
the entries of all layers for the stacked array.

An axis equation says how a stored array lies: `(h k) d -> d h k` is stored with heads and head
dimension as one axis, before the width. Both directions only move numbers: they are bit-exact.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from kard_jax.core.files import InputError

Shape = tuple[int, ...]
Slices = tuple[slice, ...]

PARTS = "parts"  # the axis of a fused tensor that counts the tensors in it


@dataclasses.dataclass(frozen=True)
class Layout:
  """How the axes of a stored array lie, by an equation from the stored ones to ours.

  Axes in brackets are stored as one, the first of them outermost. The axis called `parts` is that
  of a fused tensor: ours is one of its equal parts.

  Attributes:
    equation: such as `o i -> i o`, `(h k) d -> d h k` or `d (parts h k) -> d h k`; empty: stored
      as ours, whatever its axes.
    part: which part of a fused tensor, and of how many.
  """

  equation: str = ""
  part: tuple[int, int] = (0, 1)

  @functools.cached_property
  def _axes(self) -> tuple[list[list[str]], list[str]]:
    stored, _, ours = self.equation.partition("->")
    groups: list[list[str]] = []
    inside = False
    for token in stored.replace("(", " ( ").replace(")", " ) ").split():
      if token == "(":
        groups.append([])
        inside = True
      elif token == ")":
        inside = False
      elif inside:
        groups[-1].append(token)
      else:
        groups.append([token])
    return groups, ours.split()

  def _sizes(self, shape: Shape) -> dict[str, int]:
    return {**dict(zip(self._axes[1], shape, strict=True)), PARTS: self.part[1]}

  def stored_shape(self, shape: Shape) -> Shape:
    """The shape that an array of ours has where it is stored (a fused one's with all parts)."""
    if not self.equation:
      return shape
    sizes = self._sizes(shape)
    return tuple(math.prod(sizes[axis] for axis in group) for group in self._axes[0])

  def read(self, read: Callable[[Slices], np.ndarray], shape: Shape, index: Slices) -> np.ndarray:
    """A part of our array, reading no more of the stored one than the ranges that hold it.

    Args:
      read: gives a rectangular part of the stored array.
      shape: of our whole array.
      index: a slice (without step) for each of our axes.
    """
    if not self.equation:
      return read(index)
    groups, ours = self._axes
    sizes = self._sizes(shape)
    bounds = {axis: part.indices(sizes[axis])[:2] for axis, part in zip(ours, index, strict=True)}
    bounds[PARTS] = (self.part[0], self.part[0] + 1)
    ranges, split, inner = [], [], []
    for group in groups:
      start, size, lengths, cuts = _range(
        [sizes[axis] for axis in group], [bounds[a] for a in group]
      )
      ranges.append(slice(start, start + size))
      split += lengths
      inner += cuts
    array = read(tuple(ranges)).reshape(split)[tuple(inner)]
    flat = [axis for group in groups for axis in group]
    if PARTS in flat:
      array = array.squeeze(flat.index(PARTS))
      flat.remove(PARTS)
    return array.transpose([flat.index(axis) for axis in ours])

  def write(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The stored array of ours: of one, or of all parts of a fused tensor in their order."""
    if not self.equation:
      return arrays[0]
    groups, ours = self._axes
    flat = [axis for group in groups for axis in group]
    named = [axis for axis in flat if axis != PARTS]
    moved = [array.transpose([ours.index(axis) for axis in named]) for array in arrays]
    array = np.stack(moved, flat.index(PARTS)) if PARTS in flat else moved[0]
    return array.reshape(self.stored_shape(arrays[0].shape))


def _range(
  sizes: list[int], bounds: list[tuple[int, int]]
) -> tuple[int, int, list[int], list[slice]]:
  """The stored range of a bracket that holds what is asked of its axes.

  Returns:
    Where it starts and how long it is; the axes' sizes in it; what of each is asked.
  """
  start, stride, lengths, cuts = 0, math.prod(sizes), [], []
  narrowing = True  # while all axes before are narrowed to one place
  for size, (low, high) in zip(sizes, bounds, strict=True):
    stride //= size
    if narrowing:
      start += low * stride
      lengths.append(high - low)
      cuts.append(slice(None))
      narrowing = high - low == 1
    else:
      lengths.append(size)
      cuts.append(slice(low, high))
  return start, math.prod(lengths), lengths, cuts


SAME = Layout()
TRANSPOSED = Layout("o i -> i o")


class Entry(NamedTuple):
  """One parameter of ours and the tensor that holds it.

  Attributes:
    path: ours, `/` between the names, of a single layer.
    name: theirs.
    layout: how theirs lies.
    aliases: other names under which it may be stored, instead or besides (tied tensors, a prefix
      that some files lack); copies must be equal.
  """

  path: str
  name: str
  layout: Layout = SAME
  aliases: tuple[str, ...] = ()

  @property
  def names(self) -> tuple[str, ...]:
    """All names, the preferred one first."""
    return (self.name, *self.aliases)


Table = list[Entry]


def match(table: Iterable[Entry], shapes: Mapping[str, Shape]) -> dict[str, list[Entry]]:
  """The entries of each parameter: one, or one a layer for a stacked parameter.

  Args:
    table: of the network.
    shapes: of its parameters, by path.

  Raises:
    InputError: a parameter is not in the table, or the table's is not among the parameters.
  """
  entries = {entry.path: entry for entry in table}
  found: dict[str, list[Entry]] = {}
  for path, shape in shapes.items():
    paths = [path]
    if path not in entries and "/layers/" in f"/{path}":
      paths = [re.sub(r"(^|/)layers/", rf"\1layers_{i}/", path, count=1) for i in range(shape[0])]
    if unknown := [name for name in paths if name not in entries]:
      raise InputError(
        f"the network has a parameter {unknown[0]} that no checkpoint of its family holds; load "
        "and export without adapters (merge them first)"
      )
    found[path] = [entries.pop(name) for name in paths]
  if entries:
    raise InputError(f"the network lacks the parameter {next(iter(entries))} of its family")
  return found


def is_stacked(path: str, entries: Sequence[Entry]) -> bool:
  """Whether a parameter's first axis is that of layers."""
  return entries[0].path != path


def layer_shape(path: str, entries: Sequence[Entry], shape: Shape) -> Shape:
  """The shape of what one entry holds of a parameter."""
  return shape[1:] if is_stacked(path, entries) else shape


def read(
  path: str,
  entries: Sequence[Entry],
  shape: Shape,
  index: Slices,
  tensor: Callable[[Entry, Slices], np.ndarray],
) -> np.ndarray:
  """A part of a parameter, float32 and contiguous.

  Args:
    path: of the parameter.
    entries: from `match`.
    shape: of the whole parameter.
    index: the part.
    tensor: gives a part of a stored tensor.
  """
  one = layer_shape(path, entries, shape)

  def single(entry: Entry, part: Slices) -> np.ndarray:
    return entry.layout.read(functools.partial(tensor, entry), one, part)

  if not is_stacked(path, entries):
    return np.ascontiguousarray(single(entries[0], index), np.float32)
  layers = entries[index[0]]
  sizes = [len(range(*part.indices(size))) for part, size in zip(index[1:], one, strict=True)]
  stacked = np.empty((len(layers), *sizes), np.float32)
  for row, entry in zip(stacked, layers, strict=True):
    row[...] = single(entry, index[1:])
  return stacked
