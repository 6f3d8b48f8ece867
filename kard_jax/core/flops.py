"""The arithmetic of a training step, and what a chip could do: together, model FLOPs utilisation.

Utilisation is the model's own work by the chips' peak (Chowdhery et al., 2022, appendix B). The
work is counted in the traced program, before XLA: products of matrices alone, each 2 m n k, of the
forward pass; gradients take twice as much again. What is computed twice to save memory is not
counted, so recomputation lowers utilisation as it lowers speed. XLA's own cost analysis would count
it, and it counts a loop over layers once, whatever its length.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core

# Dense bfloat16 FLOP/s of a device, from the makers' data sheets; the first that fits wins.
_PEAKS = (
  (r"TPU v4", 275e12),
  (r"TPU v5 ?(lite|e)", 197e12),
  (r"TPU v5p?", 459e12),
  (r"TPU v6 ?(lite|e)", 918e12),
  (r"NVIDIA H100 PCIe", 756e12),
  (r"NVIDIA H100 NVL", 835e12),
  (r"NVIDIA (H100|H200|GH200)", 989e12),
  (r"NVIDIA A100", 312e12),
)


def peak(device_kind: str) -> float | None:
  """FLOP/s of a device in bfloat16; None where it is not known, as for a CPU.

  Args:
    device_kind: as `jax.Device.device_kind` has it.
  """
  for pattern, value in _PEAKS:
    if re.match(rf"{pattern}\b", device_kind):
      return value
  return None


def training_step(loss: Callable[..., Any], *arguments: Any, trained: float = 1.0) -> float:
  """FLOPs of a loss and its gradients, over all devices.

  Args:
    loss: any function whose products are the model's.
    arguments: its arguments, or their shapes. Padding is work too: the shapes decide.
    trained: the share of the parameters that are trained; the others need no gradient of their own,
      only one that passes through.
  """
  return (2 + trained) * products(jax.make_jaxpr(loss)(*arguments).jaxpr)


def products(jaxpr: Any) -> float:
  """FLOPs of the matrix products and convolutions of a traced function, loops unrolled."""
  return math.fsum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: Any) -> float:
  name, params = equation.primitive.name, equation.params
  if name in ("dot_general", "ragged_dot"):
    # Every element of the output is a sum over the axes that are contracted.
    left = equation.invars[0].aval.shape
    contracted = params["dimension_numbers"][0][0] if name == "dot_general" else [len(left) - 1]
    return 2.0 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)
  if name == "conv_general_dilated":
    kernel = equation.invars[1].aval
    outputs = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
    return 2.0 * equation.outvars[0].aval.size * kernel.size / outputs
  inner = [products(one) for one in _inner(params)]
  if name == "cond":
    return max(inner, default=0.0)
  return math.fsum(inner) * (params["length"] if name == "scan" else 1)


def _inner(params: dict[str, Any]) -> Iterator[Any]:
  """The functions that an equation calls: of loops, branches, jit, checkpoint, custom gradients."""
  for value in params.values():
    for one in value if isinstance(value, (tuple, list)) else (value,):
      if isinstance(one, core.ClosedJaxpr):
        yield one.jaxpr
      elif isinstance(one, core.Jaxpr):
        yield one
