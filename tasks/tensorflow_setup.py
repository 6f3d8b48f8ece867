"""TensorFlow reads and tokenises here; accelerators belong to JAX."""

from __future__ import annotations

import logging

import tensorflow as tf

_LOG = logging.getLogger(__name__)


def leave_accelerators_alone() -> None:
  """Hides GPUs and TPUs from TensorFlow, which else takes most of a GPU's memory at its first op.

  It is called before a vocabulary or data is read, and does nothing the second time. If TensorFlow
  has already started with a GPU, that cannot be undone: a warning says so.
  """
  for kind in ("GPU", "TPU"):
    try:
      tf.config.set_visible_devices([], kind)
    except RuntimeError:
      if tf.config.get_visible_devices(kind):
        _LOG.warning(
          "TensorFlow had started before kard_jax could keep it off the %ss: it may hold their "
          "memory. Read data with kard_jax before other TensorFlow work.",
          kind,
        )
