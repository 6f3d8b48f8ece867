"""Products and their gradients are those of `jnp.matmul`, and sums are float32."""

import re

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kard_jax.core import products


def _operands(rows, m, k, n, seed):
  rng = np.random.default_rng(seed)
  shapes = (*rows, m, k), (*rows, k, n), (*rows, m, n)
  return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


def _vjp(function, x, y, grad):
  value, back = jax.vjp(function, x, y)
  return (value, *back(grad))


@hypothesis.given(
  rows=st.sampled_from([(), (2,), (2, 3)]),
  sizes=st.tuples(*[st.integers(1, 4)] * 3),
  seed=st.integers(0, 2**31),
)
@hypothesis.settings(max_examples=12, deadline=None)
def test_values_and_gradients_are_those_of_matmul(rows, sizes, seed):
  x, y, grad = _operands(rows, *sizes, seed)
  got = _vjp(lambda x, y: products.product(x, y, "float32", "float32"), x, y, grad)
  want = _vjp(jnp.matmul, x, y, grad)
  for a, b in zip(got, want, strict=True):
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("output_dtype", ["bfloat16", "float32"])
def test_bfloat16_operands_have_float32_sums_and_kernels_float32_gradients(output_dtype):
  x, kernel, grad = _operands((), 5, 300, 7, seed=0)
  x, grad = x.astype(jnp.bfloat16), grad.astype(output_dtype)
  product = lambda x, y: products.product(x, y, "bfloat16", output_dtype)
  value, x_grad, kernel_grad = _vjp(product, x, kernel, grad)
  assert (value.dtype, x_grad.dtype, kernel_grad.dtype) == (output_dtype, "bfloat16", "float32")
  wide = [np.asarray(a.astype(jnp.bfloat16), np.float64) for a in (x, kernel, grad)]
  x, kernel, grad = wide
  exact = 2.0**-8 if output_dtype == "bfloat16" else 1e-5
  scale = np.abs(x) @ np.abs(kernel)
  assert np.max(np.abs(np.asarray(value, np.float64) - x @ kernel) / scale) < exact
  np.testing.assert_allclose(kernel_grad, x.T @ grad, rtol=1e-4, atol=1e-5)
  assert not np.array_equal(kernel_grad, kernel_grad.astype(jnp.bfloat16))  # not rounded
  np.testing.assert_allclose(np.asarray(x_grad, np.float64), grad @ kernel.T, rtol=0.01, atol=0.01)


@hypothesis.given(
  rows=st.sampled_from([(), (1,), (2, 3)]),
  sizes=st.tuples(*[st.sampled_from([1, 3, 8, 64, 130])] * 3),
  turned=st.booleans(),
  output_dtype=st.sampled_from(["bfloat16", "float32"]),
)
@hypothesis.settings(max_examples=15, deadline=None)
def test_narrow_products_of_any_shape_compile_and_are_right(rows, sizes, turned, output_dtype):
  """XLA's CPU has products of bfloat16 that it plans and then cannot run: transposed ones."""
  x, y, grad = _operands(rows, *sizes, seed=4)
  x, grad = x.astype("bfloat16"), grad.astype(output_dtype)
  turn = (lambda a: jnp.swapaxes(a, -1, -2)) if turned else (lambda a: a)

  def product(x, y):
    return turn(products.product(turn(x), turn(y), "bfloat16", output_dtype))

  got = jax.jit(lambda *a: _vjp(product, *a))(turn(x), turn(y), turn(grad))
  x, y, grad = (np.asarray(a.astype(jnp.bfloat16), np.float32) for a in (x, y, grad))
  want = x @ y, grad @ y.swapaxes(-1, -2), x.swapaxes(-1, -2) @ grad
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(turn(a).astype(np.float32), b, rtol=0.02, atol=0.02 * max(sizes))


def test_a_cpu_multiplies_in_bfloat16_what_lies_transposed():
  """The kernels for bfloat16 are twice as fast; XLA would turn the operands into float32."""
  x, y, grad = _operands((), 64, 32, 16, seed=5)
  x, grad = x.astype(jnp.bfloat16), grad.astype(jnp.bfloat16)
  product = lambda x, y: products.product(x, y, "bfloat16", "bfloat16")
  program = jax.jit(lambda *a: _vjp(product, *a)).lower(x, y, grad).compile().as_text()
  products_found = [line for line in program.splitlines() if " dot(" in line]
  assert len(products_found) == 3
  for line in products_found:
    for operand in re.findall(r"%([\w.]+)", line.split(" dot(")[1].split(")")[0]):
      assert re.search(rf"%{re.escape(operand)} = bf16\[", program), line


def test_both_ways_to_a_kernels_gradient_are_equal():
  x, _, grad = _operands((2,), 6, 4, 3, seed=1)
  np.testing.assert_allclose(
    jax.jit(products._written_out)(x, grad), products._summed(x, grad), rtol=1e-6, atol=1e-6
  )


def test_a_cpu_writes_the_transposed_operand_out():
  x, y, _ = _operands((), 4, 3, 2, seed=2)
  total = lambda y: products.product(x, y, "float32", "float32").sum()
  program = jax.jit(jax.grad(total)).lower(y).as_text()
  assert "optimization_barrier" in program


def test_the_gradient_of_what_rows_share_is_their_sum():
  grad = _operands((5,), 2, 3, 1, seed=3)[0]
  x = jnp.ones((1, 2, 3))
  value, back = jax.vjp(lambda x: products.for_each_row(x, 5), x)
  np.testing.assert_array_equal(value, np.ones((5, 2, 3)))
  np.testing.assert_allclose(back(grad)[0], np.sum(grad, axis=0, keepdims=True), rtol=1e-6)
  np.testing.assert_allclose(products._reduced(grad), products._added(grad), rtol=1e-6)
