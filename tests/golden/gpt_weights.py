"""Random weights of the tiny decoders of write_gpt.py, the same wherever they are drawn."""

import zlib

import numpy as np


def draw(shapes):
  """A float32 array for each name; norms near 1, so that each parameter of any kind matters."""
  weights = {}
  for name, shape in shapes.items():
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    noise = rng.standard_normal(shape)
    if len(shape) == 1 and name.endswith("weight"):
      value = 1 + 0.2 * noise
    else:
      value = noise * (0.5 if "attn" in name else 0.25)  # attention that is not almost even
    weights[name] = value.astype(np.float32)
  return weights
