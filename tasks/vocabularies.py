"""Vocabularies: trained on a dataset's text, or a pretrained model's own, SentencePiece or not.

Training and answering turn text into tokens with the same tokeniser. For SentencePiece it is
TensorFlow Text's, which SeqIO uses: the Python one splits a few inputs differently, such as long
rows of underscores.
"""

from __future__ import annotations

import io
import itertools
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, SupportsInt

import numpy as np
import sentencepiece
import seqio
import tensorflow as tf
from etils import epath
from jaxtyping import Int32

from kard_jax.core import files
from kard_jax.core.files import InputError, PathLike
from tasks import hugging_face, sentence_pieces, tensorflow_setup
from tasks.ragged import Ragged

PAD, EOS, UNK = 0, 1, 2  # as in T5

Loaded = sentence_pieces.Loaded | hugging_face.Loaded

_AT_ONCE = 1024  # texts tokenised in one call
_T5_FILES = ("spiece.model", "tokenizer_config.json", "config.json")


class Vocabulary(seqio.Vocabulary):
  """A SeqIO vocabulary whose file is found when it is first used.

  A task is registered before anyone knows in which work directory its vocabulary will stand.

  Args:
    path: a SentencePiece model as T5's, or as Llama's; a tokenizer.json; a folder with one of them,
      or with the files of an older Hugging Face tokenizer; or a function that tells the path.
    extra_ids: sentinels behind the pieces of a SentencePiece model; T5's own has 100. A folder's
      files tell themselves how many there are.

  Raises:
    InputError: at first use: no such file, or not a vocabulary.
  """

  def __init__(self, path: PathLike | Callable[[], PathLike], extra_ids: int = 0):
    super().__init__(extra_ids=extra_ids)
    self._path = path
    self._loaded: tuple[str, Loaded] | None = None
    self._lock = threading.Lock()

  @property
  def path(self) -> str:
    """Where it is."""
    return str(self._path() if callable(self._path) else self._path)

  @property
  def loaded(self) -> Loaded:
    """What was read, at the first use."""
    with self._lock:
      path = self.path
      if self._loaded is None or self._loaded[0] != path:
        self._loaded = path, _load(path, self._extra_ids)
      return self._loaded[1]

  def forget(self) -> None:
    """Reads the file again at the next use."""
    self._loaded = None

  @property
  def pad_id(self) -> int:
    """Stands after the end of a row; -1 where a tokenizer has none."""
    return self.loaded.pad_id

  @property
  def bos_id(self) -> int | None:
    """Begins a text where the tokenizer has such a token; BERT's [CLS]."""
    return self.loaded.bos_id

  @property
  def eos_id(self) -> int:
    """Ends a text; BERT's [SEP]."""
    return self.loaded.eos_id

  @property
  def unk_id(self) -> int | None:
    """Stands for what has no token."""
    return self.loaded.unk_id

  @property
  def prefix(self) -> tuple[int, ...]:
    """What the original tokenizer puts before every text: BOS, [CLS], or nothing."""
    return self.loaded.prefix

  @property
  def sentinels(self) -> tuple[int, ...]:
    """Ids of T5's <extra_id_0>, <extra_id_1>, ...; empty where there are none."""
    return self.loaded.sentinels

  @property
  def vocab_size(self) -> int:
    """One more than the highest id, with sentinels and added tokens."""
    return self.loaded.size

  @property
  def _base_vocab_size(self) -> int:
    return self.loaded.size

  def whole(self, text: str) -> list[int]:
    """A text as the original tokenizer gives it by default, with what it puts around."""
    loaded = self.loaded
    return [*loaded.prefix, *self.encode(text), *loaded.suffix]

  def __eq__(self, other: object) -> bool:
    """The same tokens, wherever the files are: tasks in a mixture must agree in this."""
    if isinstance(other, Vocabulary):
      return self.loaded.fingerprint == other.loaded.fingerprint
    if isinstance(other, seqio.SentencePieceVocabulary):
      return self.loaded.fingerprint == other.sp_model
    return NotImplemented

  __hash__ = None  # type: ignore[assignment]  # as SeqIO's

  def __str__(self) -> str:
    return f"Vocabulary({self._path}, extra_ids={self._extra_ids})"

  def __getstate__(self) -> dict[str, Any]:
    """Gin copies what it configures: a copy reads its own file."""
    return {**self.__dict__, "_loaded": None, "_lock": None}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.__dict__.update(state)
    self._lock = threading.Lock()

  def _encode(self, s: str) -> list[int]:
    return self.loaded.encode([s])[0]

  def _decode(self, ids: Iterable[SupportsInt]) -> str:
    return self.loaded.decode([int(id) for id in ids])

  def _encode_tf(self, s: tf.Tensor) -> tf.Tensor | tf.RaggedTensor:
    loaded = self.loaded
    if isinstance(loaded, sentence_pieces.Loaded):
      return loaded.tf_tokenizer.tokenize(s)
    s = tf.convert_to_tensor(s)
    values, lengths = tf.numpy_function(
      lambda texts: _flat(loaded, texts), [tf.reshape(s, [-1])], (tf.int32, tf.int64), False
    )
    values.set_shape([None])
    if s.shape.rank == 0:
      return values
    lengths.set_shape(s.shape)
    return tf.RaggedTensor.from_row_lengths(values, lengths)

  def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
    loaded = self.loaded
    if isinstance(loaded, sentence_pieces.Loaded):
      return loaded.tf_tokenizer.detokenize(ids)

    def texts(ids: np.ndarray) -> np.ndarray:
      rows = ids.reshape(-1, ids.shape[-1]).tolist()
      found = [loaded.decode([id for id in row if 0 <= id < loaded.size]) for row in rows]
      return np.array([text.encode() for text in found], object).reshape(ids.shape[:-1])

    text = tf.numpy_function(texts, [ids], tf.string, False)
    text.set_shape(ids.shape[:-1])
    return text


def _flat(loaded: Loaded, texts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Ids of texts, joined, and how many each has."""
  ids = loaded.encode([text.decode(errors="replace") for text in texts.tolist()])
  lengths = np.array([len(row) for row in ids], np.int64)
  return np.fromiter(itertools.chain.from_iterable(ids), np.int32, lengths.sum()), lengths


def tokens(vocabulary: seqio.Vocabulary, texts: Sequence[str], *, end: bool = True) -> Ragged:
  """Texts as the tokens that tasks give for them: as the tokenizer begins a text, and with EOS.

  Args:
    vocabulary: one with an EOS.
    texts: any number of them.
    end: whether each ends in EOS.
  """
  tensorflow_setup.leave_accelerators_alone()
  prefix = tuple(getattr(vocabulary, "prefix", ()))
  around = [*prefix, *([vocabulary.eos_id] if end else [])]
  blocks = [Ragged.of([])]
  for start in range(0, len(texts), _AT_ONCE):
    pieces = vocabulary.encode_tf(tf.constant(list(texts[start : start + _AT_ONCE])))
    sizes = pieces.row_lengths().numpy()
    ends = np.cumsum(sizes)
    places = np.repeat(
      np.stack([ends - sizes, ends], 1), [len(prefix), len(around) - len(prefix)], axis=1
    )
    values = np.insert(pieces.flat_values.numpy(), places.ravel(), np.tile(around, len(sizes)))
    blocks.append(Ragged.of_lengths(values.astype(np.int32), sizes + len(around)))
  return Ragged.join(blocks)


def encode(
  vocabulary: seqio.Vocabulary, texts: Sequence[str], length: int
) -> Int32[np.ndarray, "n {length}"]:
  """Texts as an encoder reads them, while answering too: tokens at one length.

  Args:
    vocabulary: that of the model.
    texts: any number of them.
    length: of each row. A longer text is cut and still ends in EOS, as in the batches.
  """
  rows = np.arange(len(texts))
  found = tokens(vocabulary, texts)
  return found.padded(rows, length, end=vocabulary.eos_id, fill=vocabulary.pad_id)


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
    texts.append(
      vocabulary.decode([token for token in ids if token >= 0 and token != vocabulary.pad_id])
    )
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
  processor: Any = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
  return int(processor.GetPieceSize())


def input_files(path: PathLike) -> list[epath.Path]:
  """The files that decide a vocabulary: itself, or those of a folder that matter."""
  place = epath.Path(path)
  if place.suffix == ".json":
    place = place.parent
  if not place.is_dir():
    return [place]
  if hugging_face.is_folder_of_t5(place):
    return [file for name in _T5_FILES if (file := place / name).exists()]
  return [file for name in hugging_face.FILES if (file := place / name).exists()]


def _load(path: str, extra_ids: int) -> Loaded:
  tensorflow_setup.leave_accelerators_alone()  # a SentencePiece tokeniser starts it
  place = epath.Path(path)
  if not place.exists():
    raise InputError(f"{path}: no such vocabulary; train one, or set its path (gin: VOCABULARY)")
  if place.is_dir():
    if hugging_face.is_folder_of_t5(place):
      return sentence_pieces.load(place / "spiece.model", hugging_face.t5_extra_ids(place))
    return hugging_face.load(place)
  if place.suffix == ".json":
    return hugging_face.load(place.parent, place)
  if sentence_pieces.is_llamas(place):
    return hugging_face.load(place.parent, place)
  return sentence_pieces.load(place, extra_ids)
