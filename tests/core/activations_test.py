"""Activations against their definitions, and what is said of a name that is none."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from kard_jax.core import activations
from kard_jax.core.files import InputError

X = np.linspace(-12, 12, 49)
SIGMOID = 1 / (1 + np.exp(-X))
SOFTPLUS = np.log1p(np.exp(X))
ERF_GELU = X * np.array([0.5 * (1 + math.erf(x / math.sqrt(2))) for x in X])
DEFINITIONS = {
  "gelu": 0.5 * X * (1 + np.tanh(math.sqrt(2 / math.pi) * (X + 0.044715 * X**3))),
  "gelu_erf": ERF_GELU,
  "gelu_clipped": np.clip(ERF_GELU, -10, 10),
  "gelu_sigmoid": X / (1 + np.exp(-1.702 * X)),
  "hard_swish": X * np.clip(X + 3, 0, 6) / 6,
  "laplace": np.array(
    [0.5 * (1 + math.erf((x - 0.707107) / (0.282095 * math.sqrt(2)))) for x in X]
  ),
  "leaky_relu": np.where(X > 0, X, 0.01 * X),
  "linear": X,
  "mish": X * np.tanh(SOFTPLUS),
  "relu": np.maximum(X, 0),
  "relu6": np.clip(X, 0, 6),
  "relu_squared": np.maximum(X, 0) ** 2,
  "sigmoid": SIGMOID,
  "silu": X * SIGMOID,
  "softplus_root": np.sqrt(SOFTPLUS),
  "tanh": np.tanh(X),
}


def test_each_is_what_its_name_says():
  assert set(DEFINITIONS) == set(activations.ACTIVATIONS)
  for name, want in DEFINITIONS.items():
    got = activations.named(name)(jnp.asarray(X, jnp.float32))
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-6, err_msg=name)


def test_a_name_that_is_none():
  with pytest.raises(InputError, match=r"no activation is called 'gelo'; there are gelu, gelu_erf"):
    activations.named("gelo")
