"""Activations of feed-forward layers by name, so that a configuration can say which.

T5X's names where it has one: its "gelu" is the tanh form, which Hugging Face calls `gelu_new`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from kard_jax.core.files import InputError

Activation = Callable[[jax.Array], jax.Array]

_LAPLACE_MEAN, _LAPLACE_DEVIATION = 0.707107, 0.282095  # as published with MEGA (Ma et al. 2022)


def _erf_gelu(x: jax.Array) -> jax.Array:
  return jax.nn.gelu(x, approximate=False)


def _laplace(x: jax.Array) -> jax.Array:
  standard = (x - _LAPLACE_MEAN) / (_LAPLACE_DEVIATION * math.sqrt(2.0))
  return 0.5 * (1.0 + jax.lax.erf(standard))


ACTIVATIONS: dict[str, Activation] = {
  "gelu": lambda x: jax.nn.gelu(x, approximate=True),  # by tanh
  "gelu_erf": _erf_gelu,
  "gelu_clipped": lambda x: jnp.clip(_erf_gelu(x), -10.0, 10.0),
  "gelu_sigmoid": lambda x: x * jax.nn.sigmoid(1.702 * x),
  "hard_swish": jax.nn.hard_swish,
  "laplace": _laplace,
  "leaky_relu": lambda x: jax.nn.leaky_relu(x, negative_slope=0.01),
  "linear": lambda x: x,
  "mish": lambda x: x * jnp.tanh(jax.nn.softplus(x)),
  "relu": jax.nn.relu,
  "relu6": jax.nn.relu6,
  "relu_squared": lambda x: jnp.square(jax.nn.relu(x)),
  "sigmoid": jax.nn.sigmoid,
  "silu": jax.nn.silu,  # also called swish
  "softplus_root": lambda x: jnp.sqrt(jax.nn.softplus(x)),
  "tanh": jnp.tanh,
}


def named(name: str) -> Activation:
  """The activation of that name.

  Raises:
    InputError: there is none.
  """
  if name not in ACTIVATIONS:
    raise InputError(f"no activation is called {name!r}; there are {', '.join(ACTIVATIONS)}")
  return ACTIVATIONS[name]
