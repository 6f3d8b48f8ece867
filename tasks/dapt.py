"""Going on with pre-training on the knowledge base's passages: the paper's baseline DAPT.

For T5 spans of the text are hidden and written out in the target (span corruption, Raffel et al.
2020, section 3.3.4); a decoder-only student predicts each next token. Passages follow one another
and are cut into rows without padding.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from kard_jax.core.files import InputError
from tasks import cached as cached_lib
from tasks import decoder_only, tensorflow_setup, vocabularies
from tasks.decoder_only import DecoderExamples
from tasks.examples import Pick, qualified
from tasks.ragged import Ragged
from tasks.sources import WorkdirSource
from tasks.workdir import Workdir

DENSITY = 0.15  # share of tokens that are hidden
MEAN_SPAN = 3.0  # tokens
_AT_ONCE = 1024
_DEFAULT_LENGTHS = {"inputs": 512, "targets": 114}  # T5's, for a SeqIO dataset without lengths


class PassageSource(WorkdirSource[int]):
  """The passages of the knowledge base, in their order: `id`, `targets` (text)."""

  @property
  def splits(self) -> tuple[str, ...]:
    """All passages are for training."""
    return ("train",)

  def records(self, split: str) -> range:
    """Positions of the passages."""
    del split
    return range(len(Workdir(self._workdir()).passages))

  def texts(self, positions: Sequence[int]) -> Iterator[list[str]]:
    """Passages as students read them, in blocks."""
    passages = Workdir(self._workdir()).passages
    for start in range(0, len(positions), _AT_ONCE):
      some = passages.many(list(positions[start : start + _AT_ONCE]))
      yield [self.prompts.passage_text(passage) for passage in some]

  def _dataset(self, records: Sequence[int], every: Sequence[int]) -> tf.data.Dataset:
    del every

    def blocks() -> Iterator[dict[str, Any]]:
      first = 0
      for texts in self.texts(records):
        numbers = records[first : first + len(texts)]
        yield {"id": [str(number) for number in numbers], "targets": texts}
        first += len(texts)

    spec = tf.TensorSpec([None], tf.string)
    return tf.data.Dataset.from_generator(
      blocks, output_signature={"id": spec, "targets": spec}
    ).unbatch()


def counts(length: int) -> tuple[int, int]:
  """How many of so many tokens are hidden, and in how many spans; 2 tokens or more."""
  hidden = min(max(round(length * DENSITY), 1), length - 1)
  return hidden, min(max(round(hidden / MEAN_SPAN), 1), length - hidden)


def chunk_length(lengths: Mapping[str, int], *, for_decoder: bool) -> int:
  """The longest piece of text that a row can take, so that nothing is cut or padded.

  Args:
    lengths: of a row: `inputs` and `targets`; under SeqIO a decoder's has `targets` alone.
    for_decoder: a decoder-only student's row takes the text as it is.

  Raises:
    InputError: not even two tokens fit.
  """
  if for_decoder:
    return decoder_only.row_length(lengths) + 1 if "inputs" in lengths else lengths["targets"]
  best = 0
  for length in range(2, 2 * sum(lengths.values()) + 2):
    hidden, spans = counts(length)
    inputs, targets = length - hidden + spans + 1, hidden + spans + 1  # each with EOS
    if inputs <= lengths["inputs"] and targets <= lengths["targets"]:
      best = length
  if not best:
    raise InputError(
      f"INPUT_LENGTH = {lengths['inputs']}, TARGET_LENGTH = {lengths['targets']}: too short for a "
      "text with a hidden span"
    )
  return best


def corrupt(
  tokens: np.ndarray, sentinels: Sequence[int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """Hides spans of a text.

  The text begins with a span that stays; kept and hidden spans take turns, their lengths being any
  with the same chance. Each hidden span becomes a sentinel of its own in the input, in order; the
  target is each sentinel with what it hides.

  Args:
    tokens: two or more.
    sentinels: T5's <extra_id_0>, <extra_id_1>, ...
    rng: the only source of chance.

  Returns:
    input and target, without EOS.

  Raises:
    InputError: there are fewer sentinels than spans.
  """
  hidden, spans = counts(len(tokens))
  if spans > len(sentinels):
    raise InputError(
      f"span corruption of {len(tokens)} tokens needs {spans} sentinels, and the vocabulary has "
      f"{len(sentinels)}; T5's own has 100 (for a SentencePiece model: register(extra_ids=100))"
    )
  sizes = np.stack([_parts(len(tokens) - hidden, spans, rng), _parts(hidden, spans, rng)], 1)
  ends = np.cumsum(sizes).reshape(-1, 2)  # of each kept span, and of the hidden one behind it
  inputs: list[np.ndarray] = []
  targets: list[np.ndarray] = []
  begin = 0
  for sentinel, (kept, end) in zip(sentinels, ends.tolist(), strict=False):
    mark = np.array([sentinel], np.int32)
    inputs += [tokens[begin:kept], mark]
    targets += [mark, tokens[kept:end]]
    begin = end
  return np.concatenate(inputs), np.concatenate(targets)


def _parts(total: int, count: int, rng: np.random.Generator) -> np.ndarray:
  """`count` positive numbers that make `total`, each such list with the same chance."""
  cuts = np.sort(rng.choice(total - 1, count - 1, replace=False)) + 1
  return np.diff(np.concatenate([[0], cuts, [total]]))


@dataclasses.dataclass(frozen=True)
class SpanExamples:
  """Pieces of the knowledge base, whose hidden spans are drawn anew each time.

  Attributes:
    ids: of the pieces.
    chunks: tokens.
    sizes: how many each task has.
    sentinels: see `corrupt`.
    eos_id: ends inputs and targets.
  """

  ids: list[str]
  chunks: Ragged
  sizes: tuple[int, ...]
  sentinels: tuple[int, ...]
  eos_id: int

  @classmethod
  def load(
    cls,
    tasks: Sequence[seqio.Task],
    split: str,
    lengths: Mapping[str, int],
    *,
    cached: bool = False,
  ) -> SpanExamples:
    """Reads and tokenises the passages, or takes a cache's; 4 bytes a token stay in memory."""
    vocabulary = tasks[0].output_features["targets"].vocabulary
    parts = [_chunks(task, split, lengths, for_decoder=False, cached=cached) for task in tasks]
    return cls(
      qualified([list(map(str, range(len(part)))) for part in parts], tasks),
      Ragged.join(parts),
      tuple(map(len, parts)),
      tuple(getattr(vocabulary, "sentinels", ())),
      vocabulary.eos_id,
    )

  def batch(self, picks: Sequence[Pick], lengths: Mapping[str, int]) -> dict[str, np.ndarray]:
    """The features of some rows; a pick's `chosen` is the seed of its spans."""
    pairs = [self._pair(pick) for pick in picks]
    rows = np.arange(len(picks))
    targets = Ragged.of([target for _, target in pairs]).padded(rows, lengths["targets"])
    return {
      "encoder_input_tokens": Ragged.of([i for i, _ in pairs]).padded(rows, lengths["inputs"]),
      "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
      "decoder_target_tokens": targets,
      "decoder_loss_weights": (targets != vocabularies.PAD).astype(np.int32),
    }

  def trimmed(self, lengths: Mapping[str, int]) -> dict[str, int]:
    """Nothing: pieces are made for the lengths."""
    return dict.fromkeys(lengths, 0)

  def _pair(self, pick: Pick) -> tuple[Any, Any]:
    if pick.example < 0:
      return [], []
    rng = np.random.default_rng(pick.chosen)
    inputs, targets = corrupt(self.chunks[pick.example], self.sentinels, rng)
    return np.append(inputs, self.eos_id), np.append(targets, self.eos_id)


def decoder_examples(
  tasks: Sequence[seqio.Task], split: str, lengths: Mapping[str, int], *, cached: bool = False
) -> DecoderExamples:
  """Pieces of the knowledge base as rows of a decoder-only student, every token predicted."""
  parts = [_chunks(task, split, lengths, for_decoder=True, cached=cached) for task in tasks]
  chunks = Ragged.join(parts)
  nothing = Ragged.of([[]] * len(chunks))
  ids = qualified([list(map(str, range(len(part)))) for part in parts], tasks)
  pad_id = tasks[0].output_features["targets"].vocabulary.pad_id
  return DecoderExamples(
    ids, nothing, nothing, chunks, tuple(map(len, parts)), pad_id, fills_rows=True
  )


def is_over_passages(task: seqio.Task) -> bool:
  """Whether a task is one of this module's."""
  return isinstance(task.source, PassageSource)


def _chunks(
  task: seqio.Task,
  split: str,
  lengths: Mapping[str, int],
  *,
  for_decoder: bool,
  cached: bool = False,
) -> Ragged:
  """The passages' tokens one behind another, in pieces of one length; the last may be shorter."""
  tensorflow_setup.leave_accelerators_alone()
  source, vocabulary = task.source, task.output_features["targets"].vocabulary
  assert isinstance(source, PassageSource)
  if cached:
    blocks = list(_cached_passages(task, split, for_decoder=for_decoder))
  else:
    blocks = [
      vocabularies.tokens(vocabulary, texts, end=for_decoder).values
      for texts in source.texts(source.records(split))
    ]
  values = np.concatenate(blocks) if blocks else np.zeros(0, np.int32)
  size = chunk_length(lengths, for_decoder=for_decoder)
  whole, rest = divmod(len(values), size)
  sizes = [size] * whole + ([rest] if rest > 1 else [])
  return Ragged.of_lengths(values[: sum(sizes)], sizes)


def _cached_passages(task: seqio.Task, split: str, *, for_decoder: bool) -> Iterator[np.ndarray]:
  """The tokens of each passage as `vocabularies.tokens` gives them, of SeqIO's cache."""
  vocabulary = task.output_features["targets"].vocabulary
  stored = cached_lib.rows(task, split, ("targets", "targets_pretokenized"))
  texts = stored["targets_pretokenized"]
  cached_lib.check_texts(task, split, {"targets": texts})
  around = np.array(getattr(vocabulary, "prefix", ()), np.int32)
  end = np.array([vocabulary.eos_id] if for_decoder else [], np.int32)
  passages = [np.concatenate([around, tokens]) for tokens in stored["targets"]]
  read = [text.decode() for text in texts]
  cached_lib.check_tokens(task, split, passages.__getitem__, read, "targets")
  for tokens in passages:
    yield np.concatenate([tokens, end])


def chunk(
  dataset: tf.data.Dataset,
  output_features: Mapping[str, seqio.Feature],
  sequence_length: Mapping[str, int] | None = None,
  *,
  for_decoder: bool,
) -> tf.data.Dataset:
  """SeqIO's way to the pieces that `_chunks` makes."""
  vocabulary = output_features["targets"].vocabulary
  size = chunk_length(sequence_length or _DEFAULT_LENGTHS, for_decoder=for_decoder)
  ends = [vocabulary.eos_id] if for_decoder else []
  around = tf.constant([*getattr(vocabulary, "prefix", ())], tf.int32), tf.constant(ends, tf.int32)

  def whole(example: dict[str, tf.Tensor]) -> tf.Tensor:
    return tf.concat([around[0], example["targets"], around[1]], 0)

  pieces = dataset.map(whole).unbatch().batch(size).filter(lambda piece: tf.size(piece) > 1)
  return pieces.map(lambda piece: {"targets": piece})


@seqio.map_over_dataset(num_seeds=1)
def hide_spans(
  example: dict[str, tf.Tensor],
  seed: tuple[tf.Tensor, tf.Tensor],
  output_features: Mapping[str, seqio.Feature],
) -> dict[str, tf.Tensor]:
  """SeqIO's way to `corrupt`."""
  sentinels = tuple(getattr(output_features["targets"].vocabulary, "sentinels", ()))

  def both(tokens: np.ndarray, *seed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return corrupt(tokens, sentinels, np.random.default_rng(np.array(seed).astype(np.uint32)))

  types = (tf.int32, tf.int32)
  inputs, targets = tf.numpy_function(both, [example["targets"], *seed], types, stateful=False)
  inputs.set_shape([None])
  targets.set_shape([None])
  return {"inputs": inputs, "targets": targets}


SPAN_PREPROCESSORS = (
  seqio.preprocessors.tokenize,
  seqio.CacheDatasetPlaceholder(),
  functools.partial(chunk, for_decoder=False),
  hide_spans,
  seqio.preprocessors.append_eos,
)
DECODER_PREPROCESSORS = (
  seqio.preprocessors.tokenize,
  seqio.CacheDatasetPlaceholder(),
  functools.partial(chunk, for_decoder=True),
)
