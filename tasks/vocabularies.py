"""SentencePiece vocabularies: trained on a dataset's text, or a pretrained model's own.

Training and answering turn text into tokens with the same tokeniser (TensorFlow Text's, which SeqIO
uses): the Python one splits a few inputs differently, such as long rows of underscores.
"""

from __future__ import annotations

import io
import itertools
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, SupportsInt

import numpy as np
import sentencepiece
import seqio
import tensorflow as tf
import tensorflow_text
from etils import epath
from jaxtyping import Int32
from sentencepiece import sentencepiece_model_pb2

from kard_jax.core import files
from kard_jax.core.files import InputError, PathLike
from tasks import tensorflow_setup
from tasks.ragged import Ragged

PAD, EOS, UNK = 0, 1, 2  # as in T5; every network here takes id 0 for padding

_AT_ONCE = 1024  # texts tokenised in one call
_MODEL: Any = sentencepiece_model_pb2.ModelProto  # type: ignore[attr-defined]  # made at run time
_LOADING = threading.Lock()  # SentencePiece may crash when two threads load a model


class Loaded(NamedTuple):
  """A model that was read; the names are those that SeqIO asks for."""

  path: str
  tokenizer: sentencepiece.SentencePieceProcessor
  sp_model: bytes
  tf_tokenizer: tensorflow_text.SentencepieceTokenizer


class Vocabulary(seqio.SentencePieceVocabulary):
  """A SeqIO vocabulary whose file is found when it is first used.

  A task is registered before anyone knows in which work directory its vocabulary will stand.

  Args:
    path: the file, or a function that tells it.
    extra_ids: sentinels behind the model's pieces; T5's own vocabulary has 100.

  Raises:
    InputError: at first use: no such file, not a SentencePiece model, or padding is not id 0.
  """

  def __init__(self, path: PathLike | Callable[[], PathLike], extra_ids: int = 0):
    super().__init__("", extra_ids=extra_ids)
    self._path = path
    self._model: Any = None  # a `Loaded`; SeqIO knows to leave it out of copies

  @property
  def sentencepiece_model_file(self) -> str:
    """The path of the model."""
    return str(self._path() if callable(self._path) else self._path)

  @property
  def tf_tokenizer(self) -> tensorflow_text.SentencepieceTokenizer:
    """TensorFlow's tokeniser, made once: SeqIO would make another at every call."""
    return self._model_context().tf_tokenizer

  def forget(self) -> None:
    """Reads the file again at the next use."""
    self._model = None

  def __eq__(self, other: object) -> bool:
    """The same pieces, wherever the files are: tasks in a mixture must agree in this."""
    if not isinstance(other, seqio.SentencePieceVocabulary):
      return NotImplemented
    return self.extra_ids == other.extra_ids and self.sp_model == other.sp_model

  __hash__ = None  # type: ignore[assignment]  # as its base class

  def __str__(self) -> str:
    return f"Vocabulary({self._path}, extra_ids={self.extra_ids})"

  def _model_context(self) -> Loaded:
    with _LOADING:
      path = self.sentencepiece_model_file
      if self._model is None or self._model.path != path:
        self._model = _load(path, self.extra_ids)
      return self._model


def tokens(vocabulary: seqio.Vocabulary, texts: Sequence[str]) -> Ragged:
  """Texts as the tokens that tasks give for them, each ending in EOS.

  Args:
    vocabulary: one with an EOS.
    texts: any number of them.
  """
  tensorflow_setup.leave_accelerators_alone()
  blocks = [Ragged.of([])]
  for start in range(0, len(texts), _AT_ONCE):
    pieces = vocabulary.encode_tf(tf.constant(list(texts[start : start + _AT_ONCE])))
    sizes = pieces.row_lengths().numpy()
    values = np.insert(pieces.flat_values.numpy(), np.cumsum(sizes), vocabulary.eos_id)
    blocks.append(Ragged.of_lengths(values.astype(np.int32), sizes + 1))
  return Ragged.join(blocks)


def encode(
  vocabulary: seqio.Vocabulary, texts: Sequence[str], length: int
) -> Int32[np.ndarray, "n {length}"]:
  """Texts as a model reads them, while answering too: tokens at one length.

  Args:
    vocabulary: that of the model.
    texts: any number of them.
    length: of each row. A longer text is cut and still ends in EOS, as in the batches.
  """
  rows = np.arange(len(texts))
  return tokens(vocabulary, texts).padded(rows, length, end=vocabulary.eos_id)


def decode(vocabulary: seqio.Vocabulary, tokens: Iterable[Iterable[SupportsInt]]) -> list[str]:
  """Tokens that a model wrote as texts: up to EOS, without padding.

  Args:
    vocabulary: that of the model.
    tokens: [n, length], or sequences of any length.
  """
  texts = []
  for row in tokens:
    ids = [int(token) for token in row]
    if vocabulary.eos_id in ids:
      ids = ids[: ids.index(vocabulary.eos_id)]
    texts.append(vocabulary.decode([token for token in ids if token != vocabulary.pad_id]))
  return texts


def train_sentencepiece(
  texts: Iterable[str],
  path: PathLike,
  size: int,
  *,
  model_type: str = "unigram",
  character_coverage: float = 1.0,
  byte_fallback: bool = False,
) -> int:
  """Trains a SentencePiece model with T5's special ids and writes it, whole or not at all.

  The same texts in the same order give the same bytes.

  Args:
    texts: what the model will read and write; each line of a text is a sentence.
    path: of the model to write.
    size: pieces wanted, specials included. Little text gives fewer.
    model_type: "unigram" as T5, "bpe", "char" or "word".
    character_coverage: share of the characters that get a piece; the rest become unknown.
    byte_fallback: spells unknown characters in bytes, which takes 256 pieces.

  Returns:
    The number of pieces.

  Raises:
    InputError: there is no text, or the size is too small for its characters.
  """
  sentences = (line for text in texts for line in text.splitlines() if line.strip())
  first = next(sentences, None)
  if first is None:
    raise InputError(f"{path}: there is no text to train a vocabulary on")
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=itertools.chain([first], sentences),
      model_writer=model,
      vocab_size=size,
      model_type=model_type,
      character_coverage=character_coverage,
      byte_fallback=byte_fallback,
      hard_vocab_limit=False,
      pad_id=PAD,
      eos_id=EOS,
      unk_id=UNK,
      bos_id=-1,
      max_sentence_length=1 << 20,  # bytes; longer ones are left out without a word
      num_threads=1,
      minloglevel=2,
    )
  except (RuntimeError, OSError, ValueError) as error:
    reason = str(error).rpartition("] ")[2].strip()  # behind the place in SentencePiece's source
    raise InputError(f"{path}: cannot train a vocabulary of {size} pieces: {reason}") from None
  with files.atomic(path) as temporary:
    temporary.write_bytes(model.getvalue())
  return len(_MODEL.FromString(model.getvalue()).pieces)


def _load(path: str, extra_ids: int) -> Loaded:
  file = epath.Path(path)
  if not file.exists():
    raise InputError(f"{path}: no such vocabulary; train one, or set its path (gin: VOCABULARY)")
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
    tokenizer.LoadFromSerializedProto(model.SerializeToString())
  except Exception as error:  # protobuf and SentencePiece raise types of their own
    raise InputError(f"{path}: not a SentencePiece model ({error})") from None
  if tokenizer.pad_id() != PAD or tokenizer.eos_id() < 0 or tokenizer.unk_id() < 0:
    raise InputError(
      f"{path}: padding must be id 0, and EOS and unknown must exist; this vocabulary has pad "
      f"{tokenizer.pad_id()}, eos {tokenizer.eos_id()}, unk {tokenizer.unk_id()}"
    )
  serialized = model.SerializeToString()
  with tf.init_scope():  # the first use may be inside a graph, which the tokeniser has to outlive
    return Loaded(path, tokenizer, serialized, tensorflow_text.SentencepieceTokenizer(serialized))
