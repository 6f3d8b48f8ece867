"""Model FLOPs: products of matrices, loops unrolled, what is computed twice counted once."""

import jax
import jax.numpy as jnp
import pytest

from kard_jax.core import flops
from kard_jax.student import objective, t5


def shape(*sizes):
  return jax.ShapeDtypeStruct(sizes, jnp.float32)


def count(function, *shapes):
  return flops.products(jax.make_jaxpr(function)(*shapes).jaxpr)


@pytest.mark.parametrize(
  ("kind", "tera"),
  [
    ("TPU v4", 275),
    ("TPU v5 lite", 197),
    ("TPU v5e", 197),
    ("TPU v5p", 459),
    ("TPU v5", 459),
    ("TPU v6 lite", 918),
    ("NVIDIA A100-SXM4-80GB", 312),
    ("NVIDIA H100 80GB HBM3", 989),
    ("NVIDIA H100 PCIe", 756),
    ("NVIDIA H200", 989),
    ("cpu", None),
    ("NVIDIA A10", None),
    ("TPU v7", None),
  ],
)
def test_peaks(kind, tera):
  assert flops.peak(kind) == (None if tera is None else tera * 1e12)


def test_a_product_takes_two_operations_a_term():
  assert count(jnp.matmul, shape(3, 5), shape(5, 7)) == 2 * 3 * 5 * 7
  assert count(lambda x, y: jnp.einsum("bij,bkj->bik", x, y), shape(2, 3, 5), shape(2, 7, 5)) == (
    2 * 2 * 3 * 5 * 7
  )


def test_loops_are_unrolled_and_branches_are_the_longest():
  def loop(kernels, x):
    return jax.lax.scan(lambda x, kernel: (x @ kernel, None), x, kernels)[0]

  def branch(x, kernel):
    return jax.lax.cond(x[0, 0] > 0, lambda: x @ kernel @ kernel, lambda: x @ kernel)

  assert count(loop, shape(10, 4, 4), shape(3, 4)) == 10 * 2 * 3 * 4 * 4
  assert count(branch, shape(3, 4), shape(4, 4)) == 2 * 2 * 3 * 4 * 4


def test_a_convolution():
  def convolve(x, kernel):
    return jax.lax.conv_general_dilated(
      x, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )

  assert count(convolve, shape(2, 8, 3), shape(5, 3, 7)) == 2 * (2 * 8 * 7) * (5 * 3)


def network(**options):
  return t5.T5(
    vocab_size=128,
    embed_dim=32,
    num_heads=4,
    head_dim=8,
    mlp_dim=64,
    num_encoder_layers=3,
    num_decoder_layers=3,
    dropout_rate=0.1,
    **options,
  )


def work(**options):
  loss = objective.TokenCrossEntropy(network(**options))
  tokens = jax.ShapeDtypeStruct((2, 16), jnp.int32)
  targets = jax.ShapeDtypeStruct((2, 8), jnp.int32)
  batch = {
    "encoder_input_tokens": tokens,
    "decoder_input_tokens": targets,
    "decoder_target_tokens": targets,
    "decoder_loss_weights": shape(2, 8),
  }
  boxed = jax.eval_shape(loss.init, jax.random.key(0), batch)
  params = jax.tree.map(lambda box: box.value, boxed, is_leaf=lambda leaf: hasattr(leaf, "names"))
  run = lambda params, batch: loss.loss(params, batch, jax.random.key(0)).total
  return flops.training_step(run, params, batch), params


def test_a_step_is_six_operations_a_parameter_and_token_and_attention():
  """Kernels see the tokens of their side; the encoder's output is a key of the decoder's."""
  total, _ = work()
  inputs, targets, width, layers = 2 * 16, 2 * 8, 32, 3
  attention, mlp = 4 * width * width, 3 * width * 64
  encoder = layers * (attention + mlp) * inputs
  decoder = layers * ((attention + width * width * 2 + mlp) * targets + width * width * 2 * inputs)
  scores = layers * 2 * width * (inputs * 16 + targets * 8 + targets * 16)
  head = 128 * width * targets
  assert total == 6 * (encoder + decoder + scores + head)


@pytest.mark.parametrize("options", [{"remat": "full"}, {"scan_layers": True}])
def test_recomputation_and_scanned_layers_change_nothing(options):
  assert work(**options)[0] == work()[0]


def test_frozen_parameters_need_no_gradient_of_their_own():
  assert flops.training_step(jnp.matmul, shape(3, 5), shape(5, 7), trained=0.0) == 2 * 2 * 3 * 5 * 7
