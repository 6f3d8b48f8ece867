"""Matrix products whose sums are float32, and whose gradients are products of the same kind.

Operands are float32 or bfloat16. Sums are always float32 and rounded once, to the type asked for;
so are those of the gradients, for which the incoming gradient is rounded to the operands' type. A
parameter's gradient stays float32.

On a CPU, XLA has fast kernels for bfloat16 operands only where the result is float32 and both lie
in memory row by row; otherwise it turns them into float32 first, at half the speed. A transposed
operand does not lie so, nor do those of a kernel's gradient, which is summed over the rows of both.
There such operands are written out first; elsewhere that is left to the compiler.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

WITH_KERNEL, OF_BATCH = "product_with_kernel", "product_of_batch"  # names that remat policies know


def product(
  x: Float[Array, "*rows M K"],
  y: Float[Array, "*rows K N"],
  dtype: DTypeLike,
  output_dtype: DTypeLike,
) -> Float[Array, "*rows M N"]:
  """The matrix product of two arrays with the same leading axes.

  Args:
    x: the left operand.
    y: the right one, such as a kernel in float32.
    dtype: of the operands; they are rounded to it.
    output_dtype: of the result.
  """
  name = WITH_KERNEL if y.ndim == 2 else OF_BATCH
  return checkpoint_name(_product(x, y, dtype, output_dtype), name)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _product(x: jax.Array, y: jax.Array, dtype: DTypeLike, output_dtype: DTypeLike) -> jax.Array:
  return _dot(x.astype(dtype), y.astype(dtype), 1, 0).astype(output_dtype)


def _forward(
  x: jax.Array, y: jax.Array, dtype: DTypeLike, output_dtype: DTypeLike
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  value = jax.lax.platform_dependent(
    x.astype(dtype), y.astype(dtype), cpu=_of_rows, default=_multiplied
  )
  return value.astype(output_dtype), (x, y)


def _backward(
  dtype: DTypeLike, output_dtype: DTypeLike, kept: tuple[jax.Array, jax.Array], grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
  del output_dtype
  x, y = kept
  grad = grad.astype(dtype)
  x_grad = _dot(grad, y.astype(dtype), 1, 1)
  y_grad = jax.lax.platform_dependent(x.astype(dtype), grad, cpu=_written_out, default=_summed)
  return x_grad.astype(x.dtype), y_grad.astype(y.dtype)


_product.defvjp(_forward, _backward)


def _multiplied(x: jax.Array, y: jax.Array) -> jax.Array:
  return _dot(x, y, 1, 0)


def _of_rows(x: jax.Array, y: jax.Array) -> jax.Array:
  """The same, with both in memory row by row."""
  if not _is_narrow(x):
    return _dot(x, y, 1, 0)
  return _as_it_is(_dot(_by_row(x), _by_row(y), 1, 0))


def _summed(x: jax.Array, grad: jax.Array) -> jax.Array:
  """x transposed times grad."""
  return _dot(x, grad, 0, 0)


def _written_out(x: jax.Array, grad: jax.Array) -> jax.Array:
  """The same, with x transposed in memory; the barrier keeps XLA from undoing that."""
  x = jnp.swapaxes(x, -1, -2)
  if not _is_narrow(x):
    return _dot(_as_it_is(x), grad, 1, 0)
  return _as_it_is(_dot(_by_row(x), _by_row(grad), 1, 0))


_as_it_is = jax.lax.optimization_barrier


def _by_row(x: jax.Array) -> jax.Array:
  """An operand in memory in the order of its axes.

  XLA takes a transposed array for one of another layout, until it has been a vector.
  """
  return _as_it_is(x.reshape(-1)).reshape(x.shape)


def _is_narrow(x: jax.Array) -> bool:
  """Whether it pays to write an operand out: not where a vector would bring shards together."""
  return x.dtype == jnp.bfloat16 and jax.sharding.get_abstract_mesh().size <= 1


def _dot(x: jax.Array, y: jax.Array, x_axis: int, y_axis: int) -> jax.Array:
  """Sums over one of the last two axes of each, in float32; the axes before them are shared."""
  rows = tuple(range(x.ndim - 2))
  summed = ((x.ndim - 2 + x_axis,), (y.ndim - 2 + y_axis,))
  return jax.lax.dot_general(x, y, (summed, (rows, rows)), preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def for_each_row(x: Float[Array, "1 ..."], rows: int) -> Float[Array, "B ..."]:
  """The same array for each row of a batch, such as the bias of positions.

  Its gradient is a sum over rows. On a CPU that is written as additions: the reduction that XLA has
  for a first axis reads 1 GB/s there, and took a tenth of a T5's training step.
  """
  return jnp.broadcast_to(x, (rows, *x.shape[1:]))


def _for_each_row(x: jax.Array, rows: int) -> tuple[jax.Array, None]:
  return for_each_row(x, rows), None


def _over_rows(rows: int, kept: None, grad: jax.Array) -> tuple[jax.Array]:
  del rows, kept
  return (jax.lax.platform_dependent(grad, cpu=_added, default=_reduced),)


for_each_row.defvjp(_for_each_row, _over_rows)


def _reduced(grad: jax.Array) -> jax.Array:
  return jnp.sum(grad, axis=0, keepdims=True)


def _added(grad: jax.Array) -> jax.Array:
  """The same, row by row."""
  return functools.reduce(jnp.add, [grad[i : i + 1] for i in range(grad.shape[0])])
