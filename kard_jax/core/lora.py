"""Low-rank adapters: a frozen kernel W is used as W + (alpha / rank) A B (Hu et al. 2021).

The paper fine-tunes its larger students so (rank 16, alpha 32, dropout 0.1, on query and value).
Networks know nothing of it: while `Lora.active` holds, every `layers.Dense` of a target name also
makes `lora_a` [inputs, rank] and `lora_b` [rank, features] beside its kernel. They carry the
kernel's own axis names, so they are sharded, scanned and named as it is.

Why not qwix: its Linen provider finds a kernel by tracing back what reaches `dot_general`, applies
dropout in evaluation too, and loses the names of all but the first axis of what is reshaped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from kard_jax.core import layers, selection
from kard_jax.core.files import InputError
from kard_jax.core.objective import Batch, Loss, Objective, Params

NAMES = ("lora_a", "lora_b")  # of an adapter's two arrays
RANK_AXIS = "lora_rank"


@dataclasses.dataclass(frozen=True)
class Lora:
  """Which kernels get an adapter, and of which kind.

  Attributes:
    rank: r, the columns of A.
    alpha: the adapter's product is multiplied by alpha / rank.
    dropout: on what enters an adapter, while training.
    targets: names such as "query", "value", "attention/out", "mlp/wi_0"; "decoder" means all its
      kernels.
  """

  rank: int = 16
  alpha: float = 32.0
  dropout: float = 0.1
  targets: Sequence[str] = ("query", "value")

  def __post_init__(self) -> None:
    if self.rank < 1:
      raise InputError(f"lora.Lora.rank = {self.rank}: must be at least 1")
    if not 0 <= self.dropout < 1:
      raise InputError(f"lora.Lora.dropout = {self.dropout}: give 0 (none) or more, below 1")
    if isinstance(self.targets, str) or not self.targets:
      raise InputError(f"lora.Lora.targets = {self.targets!r}: give a list of names")

  @property
  def scale(self) -> float:
    """What an adapter's product is multiplied by."""
    return self.alpha / self.rank

  @contextlib.contextmanager
  def active(self) -> Iterator[None]:
    """Networks that are traced in here have adapters."""
    with nn.intercept_methods(self._intercept):
      yield

  def _intercept(
    self,
    call: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    context: nn.module.InterceptorContext,
  ) -> Any:
    dense = context.module
    y = call(*args, **kwargs)
    if not isinstance(dense, layers.Dense) or context.method_name != "__call__":
      return y
    if not selection.chosen("/".join(dense.path), self.targets):
      return y
    return y + self._product(dense, *args, **kwargs).reshape(y.shape).astype(y.dtype)

  def _product(self, dense: layers.Dense, x: jax.Array) -> jax.Array:
    """What an adapter adds, [rows, features]; made in the scope of the kernel's own module."""
    summed = len(dense.axes) - len(dense.features)
    inputs = x.shape[x.ndim - summed :]
    fan_in = tuple(range(summed))
    # U(-1/sqrt(fan_in), 1/sqrt(fan_in)), as PEFT starts A; with B = 0 the network begins as it was.
    uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", fan_in, summed)
    boxed_a = nn.with_logical_partitioning(uniform, (*dense.axes[:summed], RANK_AXIS))
    boxed_b = nn.with_logical_partitioning(nn.initializers.zeros, (RANK_AXIS, *dense.axes[summed:]))
    a: Any = dense.param(NAMES[0], boxed_a, (*inputs, self.rank), jnp.float32)
    b: Any = dense.param(NAMES[1], boxed_b, (self.rank, *dense.features), jnp.float32)
    width = math.prod(inputs)
    rows = x.astype(dense.dtype).reshape(*x.shape[: x.ndim - summed], width)
    if self.dropout and dense.has_rng("dropout"):  # objectives give this rng in training alone
      rows = layers.Dropout(self.dropout)(rows, False)
    reduced = jnp.matmul(rows.reshape(-1, width), a.astype(dense.dtype).reshape(width, self.rank))
    return jnp.matmul(reduced, b.astype(dense.dtype).reshape(self.rank, -1)) * self.scale

  def merge(self, params: Params) -> Params:
    """Parameters of the plain network that computes what this one does with its adapters.

    Args:
      params: unboxed, with adapters; scanned or not. Their arrays stay as they are.
    """
    leaves = selection.flatten(params)
    adapters, base = selection.split(params, is_adapter)
    merged = selection.flatten(base)
    for path in selection.flatten(adapters):
      if path.endswith(NAMES[0]):
        stem = path.removesuffix(NAMES[0])
        kernel = merged[f"{stem}kernel"]
        add = _adding(getattr(kernel, "sharding", None))
        merged[f"{stem}kernel"] = add(kernel, leaves[path], leaves[stem + NAMES[1]], self.scale)
    return selection.unflatten(merged)


@functools.cache
def _adding(sharding: jax.sharding.Sharding | None) -> Callable[..., jax.Array]:
  """Compiled once for all kernels of a shape."""
  return jax.jit(_add, out_shardings=sharding)


def _add(kernel: jax.Array, a: jax.Array, b: jax.Array, scale: jax.Array) -> jax.Array:
  stacked = a.ndim + b.ndim - 2 - kernel.ndim  # the axis of layers, where there is one
  rank, first = a.shape[-1], a.shape[:stacked]
  delta = jnp.matmul(
    a.reshape(*first, -1, rank), b.reshape(*first, rank, -1), precision=jax.lax.Precision.HIGHEST
  )
  return kernel + (scale * delta.reshape(kernel.shape)).astype(kernel.dtype)


def is_adapter(path: str) -> bool:
  """Whether a parameter belongs to an adapter."""
  return path.rpartition("/")[2] in NAMES


@dataclasses.dataclass(frozen=True)
class Adapted:
  """An objective whose network has adapters; train the parameters of `NAMES` alone.

  Attributes:
    objective: of the plain network.
    lora: which adapters.
  """

  objective: Objective
  lora: Lora

  def init(self, rng: jax.Array, batch: Batch) -> Params:
    """Fresh parameters, those of adapters among them, boxed.

    Raises:
      InputError: a target names no kernel of the network.
    """
    with self.lora.active():
      params = self.objective.init(rng, batch)
    paths = [path.rpartition("/")[0] for path in selection.flatten(params) if is_adapter(path)]
    for target in self.lora.targets:
      if not any(selection.chosen(path, [target]) for path in paths):
        raise InputError(
          f"lora.Lora.targets: the network has no kernel {target!r}; its kernels are "
          f"{', '.join(_kernels(params))}"
        )
    return params

  def loss(self, params: Params, batch: Batch, rng: jax.Array | None) -> Loss:
    """The loss with adapters."""
    with self.lora.active():
      return self.objective.loss(params, batch, rng)


def _kernels(params: Params) -> list[str]:
  paths = [path.split("/") for path in selection.flatten(params)]
  return sorted({"/".join(path[-3:-1]) for path in paths if path[-1] == "kernel"})
