"""Stacks of equal layers: unrolled or by `nn.scan`, with or without recomputation.

Unrolled, a stack has a subtree of parameters for each layer, `layers_0` and so on. Scanned, it has
one subtree, `layers`, whose arrays have the layer axis first (logical name "layers"); it compiles
once for all layers, and computes the same. `stack` and `unstack` turn one tree into the other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from kard_jax.core import products
from kard_jax.core.files import InputError

LAYERS = "layers"  # the scanned subtree, and the logical name of its first axis

Layer = TypeVar("Layer", bound=nn.Module)
Call = Callable[..., Any]  # of a layer, its input and what all layers share

_POLICIES = jax.checkpoint_policies
# `products` are named, as policies do not see into functions with gradients of their own.
_KERNELS = _POLICIES.save_only_these_names(products.WITH_KERNEL)
_ALL = _POLICIES.save_only_these_names(products.WITH_KERNEL, products.OF_BATCH)
REMAT: dict[str, Any] = {  # what the forward pass keeps for the backward pass
  "none": _POLICIES.everything_saveable,
  "dots": _POLICIES.save_from_both_policies(_POLICIES.dots_saveable, _ALL),
  "minimal": _POLICIES.save_from_both_policies(  # T5X's name
    _POLICIES.dots_with_no_batch_dims_saveable, _KERNELS
  ),
  "full": _POLICIES.nothing_saveable,
}


def rematerialised(call: Call, remat: str, *, scanned: bool = False) -> Call:
  """A layer's call that keeps less for the backward pass, and computes the rest again there.

  Args:
    call: as `call(layer, x, *shared)`.
    remat: "none" keeps all; "dots" all matrix products; "minimal" those with kernels, but not
      scores of attention; "full" the layer's input alone.
    scanned: whether it is the body of a scan, which XLA cannot undo by finding common terms.

  Raises:
    InputError: no such policy.
  """
  if remat not in REMAT:
    raise InputError(f"remat = {remat!r}: choose from {', '.join(REMAT)}")
  if remat == "none":
    return call
  return nn.remat(call, prevent_cse=not scanned, policy=REMAT[remat])


def scan(
  layer: nn.Module, call: Call, x: Any, *shared: Any, length: int, remat: str = "none"
) -> Any:
  """Applies a layer `length` times, each time with parameters and dropout of its own.

  Args:
    layer: a module named "layers"; its parameters get the layer axis first.
    call: as `call(layer, x, *shared)`, gives the next x.
    x: what goes from layer to layer, an array or a tree of them.
    shared: what all layers see alike, trees of arrays.
    length: how many layers.
    remat: see `rematerialised`.
  """
  call = rematerialised(call, remat, scanned=True)
  scanned: Any = nn.scan(
    lambda layer, x, *shared: (call(layer, x, *shared), None),
    variable_axes={"params": 0},
    split_rngs={"params": True, "dropout": True},
    in_axes=nn.broadcast,
    length=length,
    metadata_params={nn.PARTITION_NAME: LAYERS},
  )
  return scanned(layer, x, *shared)[0]


def bound(stack: Layer, length: int) -> list[Layer]:
  """The layers of a scanned stack one by one, for calls that are not scanned, as in decoding.

  Args:
    stack: the stack's module, in a call that has parameters.
    length: how many layers.
  """
  layer = stack.clone(parent=None, name=None)
  params = nn.meta.unbox(stack.variables["params"])
  return [
    layer.bind({"params": jax.tree.map(lambda leaf, i=i: leaf[i], params)}) for i in range(length)
  ]


def stack(tree: Mapping[str, Any]) -> dict[str, Any]:
  """A tree with every `layers_0`, `layers_1`, ... turned into one `layers`, the layer axis first.

  Leaves may be arrays of NumPy or JAX, shapes (`jax.ShapeDtypeStruct`), or these boxed with
  logical axis names. Works under `jax.jit`.

  Raises:
    InputError: a layer is missing, or layers differ in what they hold.
  """
  result, layers = {}, {}
  for name, value in tree.items():
    value = stack(value) if isinstance(value, Mapping) else value
    found = re.fullmatch(LAYERS + r"_(\d+)", name)
    if found:
      layers[int(found[1])] = value
    else:
      result[name] = value
  if not layers:
    return result
  ordered = [layers.get(i) for i in range(len(layers))]
  if None in [None if layer is None else 0 for layer in ordered]:
    raise InputError(f"layers {sorted(layers)} cannot be stacked: one is missing")
  shapes = [jax.tree.map(np.shape, layer, is_leaf=_is_box) for layer in map(_unboxed, ordered)]
  for i, shape in enumerate(shapes):
    if shape != shapes[0]:
      raise InputError(f"{LAYERS}_{i} cannot be stacked: its arrays differ from {LAYERS}_0's")
  return result | {
    LAYERS: jax.tree.map(lambda *leaves: _stacked(leaves), *ordered, is_leaf=_is_box)
  }


def unstack(tree: Mapping[str, Any]) -> dict[str, Any]:
  """A tree with every `layers` turned into `layers_0`, `layers_1`, ...: the inverse of `stack`."""
  result: dict[str, Any] = {}
  for name, value in tree.items():
    if name == LAYERS and isinstance(value, Mapping):
      leaves = jax.tree.leaves(_unboxed(value))
      for i in range(leaves[0].shape[0] if leaves else 0):
        result[f"{LAYERS}_{i}"] = jax.tree.map(
          lambda leaf, i=i: _layer(leaf, i), value, is_leaf=_is_box
        )
    else:
      result[name] = unstack(value) if isinstance(value, Mapping) else value
  return result


def _is_box(leaf: Any) -> bool:
  return isinstance(leaf, nn.Partitioned)


def _unboxed(tree: Any) -> Any:
  return jax.tree.map(lambda leaf: leaf.value if _is_box(leaf) else leaf, tree, is_leaf=_is_box)


def _stacked(leaves: tuple[Any, ...]) -> Any:
  first = leaves[0]
  if _is_box(first):
    value = _stacked(tuple(leaf.value for leaf in leaves))
    return first.replace(value=value, names=(LAYERS, *first.names))
  if isinstance(first, jax.ShapeDtypeStruct):
    return jax.ShapeDtypeStruct((len(leaves), *first.shape), first.dtype)
  return np.stack(leaves) if isinstance(first, np.ndarray) else jnp.stack(leaves)


def _layer(leaf: Any, i: int) -> Any:
  if _is_box(leaf):
    return leaf.replace(value=_layer(leaf.value, i), names=leaf.names[1:])
  if isinstance(leaf, jax.ShapeDtypeStruct):
    return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)
  return leaf[i]
