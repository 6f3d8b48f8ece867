"""Parts of a parameter tree by name: what is trained, what stays, what has an adapter.

A path is the names from the root, `encoder/layers_0/attention/query/kernel`; a name chooses every
path that has its parts in a row: `query`, `attention/out`, `decoder`, `encoder/layers_0`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flax import traverse_util

Tree = Any  # nested mappings of arrays, of shapes, or of boxed ones


def flatten(tree: Tree) -> dict[str, Any]:
  """The leaves of a tree by path."""
  return traverse_util.flatten_dict(tree, sep="/")


def unflatten(leaves: Mapping[str, Any]) -> Tree:
  """The tree of leaves by path."""
  return traverse_util.unflatten_dict(dict(leaves), sep="/")


def chosen(path: str, names: Sequence[str]) -> bool:
  """Whether one of the names has its parts in a row in the path."""
  return any(f"/{name.strip('/')}/" in f"/{path}/" for name in names)


def split(tree: Tree, keep: Callable[[str], bool]) -> tuple[Tree, Tree]:
  """The leaves whose path `keep` wants, and the others; either may be empty."""
  leaves = flatten(tree)
  kept = {path: leaf for path, leaf in leaves.items() if keep(path)}
  others = {path: leaf for path, leaf in leaves.items() if path not in kept}
  return unflatten(kept), unflatten(others)


def join(tree: Tree, other: Tree) -> Tree:
  """The tree of which these are the two parts; no array is copied."""
  return unflatten(flatten(tree) | flatten(other))
