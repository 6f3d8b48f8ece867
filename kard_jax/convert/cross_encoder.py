"""Cross-encoders of Hugging Face (BertForSequenceClassification with one label) as rerankers.

Such as sentence-transformers' `cross-encoder/ms-marco-MiniLM-L6-v2`. The classifier's bias is left
out: it moves all scores alike, and neither a ranking nor a softmax over a list hears it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kard_jax.convert import huggingface
from kard_jax.convert.source import Source
from kard_jax.core.files import InputError, PathLike
from kard_jax.core.objective import Params
from kard_jax.core.partitioning import Partitioner
from kard_jax.reranker import network

_HEAD = {"pooler": "bert.pooler.dense.weight", "bias": "bert.pooler.dense.bias"}
_SCORE = "classifier.weight"


def load(
  source: PathLike, partitioner: Partitioner | None = None, **overrides: Any
) -> tuple[network.CrossEncoder, Params]:
  """The network and its parameters, unboxed, float32.

  Args:
    source: a folder, or a name on the Hub.
    partitioner: mesh and rules; the head is on every device. None puts all on the first.
    **overrides: attributes of the encoder, such as `dtype`.

  Raises:
    InputError: as `huggingface.load`; or there is no head that gives one score.
  """
  tensors = Source(source).tensors
  for name in (*_HEAD.values(), _SCORE):
    if name not in tensors:
      raise InputError(
        f"{tensors.folder}: no tensor {name}: not a cross-encoder (a BERT classifier of one label)"
      )
  if (labels := tensors[_SCORE].shape[0]) != 1:
    raise InputError(f"{tensors[_SCORE].file}: {_SCORE} gives {labels} scores; one is needed")
  encoder: Any = huggingface.network(source, **overrides)
  where = jax.local_devices()[0] if partitioner is None else partitioner.replicated

  def put(name: str, transposed: bool = False) -> jax.Array:
    array = tensors.read(name).astype(np.float32)
    return jax.device_put(jnp.asarray(array.T if transposed else array), where)

  params = {
    "encoder": huggingface.load(source, encoder, partitioner),
    "pooler": {"kernel": put(_HEAD["pooler"], transposed=True), "bias": put(_HEAD["bias"])},
    "head": put(_SCORE)[0],
  }
  return network.CrossEncoder(encoder, pool="first", pooler=True, passage_start=1), params
