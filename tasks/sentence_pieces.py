"""A SentencePiece model as T5 has them: padding is id 0, sentinels may stand behind its pieces."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import sentencepiece
import tensorflow as tf
import tensorflow_text
from etils import epath
from sentencepiece import sentencepiece_model_pb2

from kard_jax.core.files import InputError

_MODEL: Any = sentencepiece_model_pb2.ModelProto  # type: ignore[attr-defined]  # made at run time
_BPE = 2  # a kind of model, by its number in the protocol buffer
_LOADING = threading.Lock()  # SentencePiece may crash when two threads load a model


class Loaded(NamedTuple):
  """A model that was read.

  Attributes:
    tokenizer: in Python; decodes.
    tf_tokenizer: in TensorFlow; encodes.
    fingerprint: the model's bytes, with the sentinels.
    sentinels: ids of <extra_id_0>, <extra_id_1>, ...
  """

  tokenizer: sentencepiece.SentencePieceProcessor
  tf_tokenizer: tensorflow_text.SentencepieceTokenizer
  fingerprint: bytes
  sentinels: tuple[int, ...]
  prefix: tuple[int, ...] = ()
  suffix: tuple[int, ...] = ()

  @property
  def size(self) -> int:
    """One more than the highest id."""
    return int(self.tokenizer.GetPieceSize())

  @property
  def bos_id(self) -> int | None:
    """-1 where there is none, as SeqIO has it."""
    return int(self.tokenizer.bos_id())

  @property
  def eos_id(self) -> int:
    """Ends a text."""
    return int(self.tokenizer.eos_id())

  @property
  def unk_id(self) -> int:
    """Stands for what has no piece."""
    return int(self.tokenizer.unk_id())

  @property
  def pad_id(self) -> int:
    """0."""
    return int(self.tokenizer.pad_id())

  def encode(self, texts: Sequence[str]) -> list[list[int]]:
    """Ids of texts."""
    return [self.tokenizer.EncodeAsIds(text) for text in texts]

  def decode(self, ids: Sequence[int]) -> str:
    """The text of ids; those beyond the last piece are unknown."""
    unknown, size = self.unk_id, self.size
    return str(self.tokenizer.DecodeIds([id if id < size else unknown for id in ids]))


def is_llamas(file: epath.Path) -> bool:
  """Whether a SentencePiece model has byte pairs and no padding, as Llama's."""
  model = _MODEL()
  try:
    model.ParseFromString(file.read_bytes())
  except Exception:  # protobuf raises types of its own; `load` tells what is wrong
    return False
  return bool(model.trainer_spec.model_type == _BPE and model.trainer_spec.pad_id < 0)


def load(file: epath.Path, extra_ids: int) -> Loaded:
  """Reads a model.

  Args:
    file: where it is.
    extra_ids: sentinels to put behind its pieces.

  Raises:
    InputError: not a SentencePiece model, or padding is not id 0.
  """
  model = _MODEL()
  try:
    model.ParseFromString(file.read_bytes())
    for number in reversed(range(extra_ids)):  # the first sentinel has the highest id, as in T5
      model.pieces.add(
        piece=f"▁<extra_id_{number}>",
        score=0.0,
        type=_MODEL.SentencePiece.USER_DEFINED,
      )
    tokenizer: Any = sentencepiece.SentencePieceProcessor()
    with _LOADING:
      tokenizer.LoadFromSerializedProto(model.SerializeToString())
  except Exception as error:  # protobuf and SentencePiece raise types of their own
    raise InputError(f"{file}: not a SentencePiece model ({error})") from None
  if tokenizer.pad_id() != 0 or tokenizer.eos_id() < 0 or tokenizer.unk_id() < 0:
    raise InputError(
      f"{file}: padding must be id 0, and EOS and unknown must exist; this vocabulary has pad "
      f"{tokenizer.pad_id()}, eos {tokenizer.eos_id()}, unk {tokenizer.unk_id()}"
    )
  serialized = model.SerializeToString()
  last = len(model.pieces) - 1
  with tf.init_scope():  # the first use may be inside a graph, which the tokeniser has to outlive
    return Loaded(
      tokenizer,
      tensorflow_text.SentencepieceTokenizer(serialized),
      serialized,
      tuple(range(last, last - extra_ids, -1)),
    )
