"""Rotary positions in Hugging Face's words: `rope_parameters`, once `rope_scaling`."""

from __future__ import annotations

import math
from typing import Any

from kard_jax.convert.source import Config
from kard_jax.core.files import InputError
from kard_jax.core.rope import Rope

# Of each type, what it may say (besides its own name, theta and the length), and what it must.
_KNOWN = {
  "default": (set(), set()),
  "linear": ({"factor"}, {"factor"}),
  "dynamic": ({"factor"}, {"factor"}),
  "llama3": (
    {"factor", "low_freq_factor", "high_freq_factor"},
    {"factor", "low_freq_factor", "high_freq_factor"},
  ),
  "yarn": (
    {
      "factor",
      "attention_factor",
      "beta_fast",
      "beta_slow",
      "mscale",
      "mscale_all_dim",
      "truncate",
    },
    set(),
  ),
}
_ALWAYS = {"rope_type", "type", "rope_theta", "original_max_position_embeddings"}


def rope(config: Config, head_dim: int) -> Rope:
  """The rotary positions that a config.json describes.

  Raises:
    InputError: a type or an option that `core.rope` does not have.
  """
  if head_dim % 2:
    raise InputError(f"{config.file}: head_dim = {head_dim}: rotary positions need an even one")
  name = "rope_scaling" if config.values.get("rope_scaling") else "rope_parameters"
  given = config.get(name, {}, dict)
  if any(isinstance(value, dict) for value in given.values()):
    raise config.unsupported(name, "one for all layers is needed")
  values = Config(config.file, dict(given))
  kind = values.get("rope_type", "") or values.get("type", "default")
  if kind not in _KNOWN:
    raise config.unsupported(name, f"its type may be {', '.join(_KNOWN)}")
  part = values.values.get("partial_rotary_factor", config.values.get("partial_rotary_factor"))
  if part not in (None, 1, 1.0):
    raise config.unsupported(name, f"partial_rotary_factor {part}: whole heads are turned here")
  known, needed = _KNOWN[kind]
  theta = values.get("rope_theta", config.get("rope_theta", 10_000.0))
  if lacking := sorted(key for key in needed if values.values.get(key) is None):
    raise InputError(f"{config.file}: {name} of type {kind} lacks {lacking[0]}")
  if unknown := sorted(given.keys() - known - _ALWAYS - {"partial_rotary_factor"}):
    # Known to other types: transformers passes them over with a warning.
    everywhere = set().union(*(may for may, _ in _KNOWN.values()))
    if strange := [key for key in unknown if key not in everywhere]:
      raise config.unsupported(name, f"{strange[0]} is not known here")
  asked: dict[str, Any] = {"theta": theta, "scaling": kind}
  if kind == "default":
    return Rope(**asked)
  longest = config.size("max_position_embeddings")
  original = longest
  if kind in ("llama3", "yarn"):
    original = values.size("original_max_position_embeddings", longest)
    original = config.size("original_max_position_embeddings", original)
  asked["factor"] = values.get("factor", longest / original)
  if kind == "linear":
    return Rope(**asked)
  asked["original_length"] = original
  if kind == "llama3":
    asked["low_frequency_factor"] = values.get("low_freq_factor", 1.0)
    asked["high_frequency_factor"] = values.get("high_freq_factor", 4.0)
  if kind == "yarn":
    asked["beta_fast"] = values.get("beta_fast", 0.0) or 32.0
    asked["beta_slow"] = values.get("beta_slow", 0.0) or 1.0
    asked["truncate"] = values.get("truncate", True)
    asked["attention_factor"] = _attention_factor(values, asked["factor"])
  return Rope(**asked)


def _attention_factor(values: Config, factor: float) -> float | None:
  """Of YaRN: said outright, or the quotient of two as in DeepSeek's configurations."""
  if values.values.get("attention_factor") is not None:
    return values.get("attention_factor", 1.0)
  over, under = values.get("mscale", 0.0), values.get("mscale_all_dim", 0.0)
  if not over or not under:
    return None
  log = math.log(factor) if factor > 1 else 0.0
  return (0.1 * over * log + 1.0) / (0.1 * under * log + 1.0)
