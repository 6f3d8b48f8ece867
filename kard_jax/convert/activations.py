"""Activations by transformers' names."""

from __future__ import annotations

from kard_jax.convert.source import Config
from kard_jax.core.files import InputError

# Those of its table that have no parameters; several are the same function computed otherwise.
OURS = {
  "gelu": "gelu_erf",
  "gelu_10": "gelu_clipped",
  "gelu_accurate": "gelu",
  "gelu_fast": "gelu",
  "gelu_new": "gelu",
  "gelu_python": "gelu_erf",
  "gelu_python_tanh": "gelu",
  "gelu_pytorch_tanh": "gelu",
  "hardswish": "hard_swish",
  "laplace": "laplace",
  "leaky_relu": "leaky_relu",
  "linear": "linear",
  "mish": "mish",
  "quick_gelu": "gelu_sigmoid",
  "relu": "relu",
  "relu2": "relu_squared",
  "relu6": "relu6",
  "sigmoid": "sigmoid",
  "silu": "silu",
  "sqrtsoftplus": "softplus_root",
  "swish": "silu",
  "tanh": "tanh",
}


def ours(config: Config, setting: str, name: str) -> str:
  """The name in `core.activations` of one that a setting names.

  Raises:
    InputError: there is none.
  """
  if name not in OURS:
    raise InputError(
      f"{config.file}: {setting} names the activation {name!r}; known are {', '.join(OURS)}"
    )
  return OURS[name]
