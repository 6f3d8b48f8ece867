"""What a model reads of an example: SeqIO features, preprocessors and converters, with T5X's names.

The converters here are TensorFlow's, for `t5x.train`; `examples` makes the same arrays in NumPy.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import seqio
import tensorflow as tf

from tasks.draws import Draw

STUDENT = ("inputs", "targets")  # the lengths that a student's task needs
RERANK = ("query", "passages")  # the lengths that a reranker's task needs

_ENDLESS = ("targets",)  # features that a cut leaves without EOS
_READ = ("inputs", "query", "passages")  # features that begin as the tokenizer begins a text


def student_features(vocabulary: seqio.Vocabulary) -> dict[str, seqio.Feature]:
  """Features of `_ft`, `_kaft`, `_rd` and `_kard`."""
  return {name: seqio.Feature(vocabulary) for name in STUDENT}


def rerank_features(vocabulary: seqio.Vocabulary) -> dict[str, seqio.Feature]:
  """Features of `_rerank`: query [L], passages [C, M], scores [C]."""
  return {
    "query": seqio.Feature(vocabulary),
    "passages": seqio.Feature(vocabulary, rank=2),
    "scores": seqio.Feature(seqio.PassThroughVocabulary(1), add_eos=False, dtype=tf.float32),
  }


def put_prefix(
  dataset: tf.data.Dataset, output_features: Mapping[str, seqio.Feature]
) -> tf.data.Dataset:
  """Begins what is read as the original tokenizer does: with BOS, [CLS], or (T5) nothing."""
  prefixes = {
    name: tuple(getattr(feature.vocabulary, "prefix", ()))
    for name, feature in output_features.items()
    if name in _READ
  }

  def begun(example: dict[str, Any]) -> dict[str, Any]:
    changed = {}
    for name, prefix in prefixes.items():
      if prefix and name in example:
        tokens, start = example[name], tf.constant(prefix, tf.int32)
        if isinstance(tokens, tf.RaggedTensor):
          start = tf.tile(start[None], [tokens.nrows(), 1])
        changed[name] = tf.concat([start, tokens], -1)
    return example | changed

  if not any(prefixes.values()):
    return dataset
  return dataset.map(begun, num_parallel_calls=tf.data.AUTOTUNE)


def append_eos(
  dataset: tf.data.Dataset,
  output_features: Mapping[str, seqio.Feature],
  sequence_length: Mapping[str, int] | None = None,
) -> tf.data.Dataset:
  """Ends every input in EOS, also one that is cut; a target that is cut has none.

  Networks were trained on inputs that end so. A target's EOS says that the answer has been given:
  in the middle of a rationale it would teach to stop there.
  """
  whole = {name: output_features[name] for name in output_features if name not in _ENDLESS}
  endless = {name: output_features[name] for name in output_features if name in _ENDLESS}
  dataset = seqio.preprocessors.append_eos_after_trim(dataset, whole, sequence_length)
  return seqio.preprocessors.append_eos(dataset, endless)


@seqio.map_over_dataset(num_seeds=1)
def draw_candidates(
  example: dict[str, tf.Tensor],
  seed: tuple[tf.Tensor, tf.Tensor],
  sequence_length: Mapping[str, int] | None = None,
) -> dict[str, tf.Tensor]:
  """Draws a list of `sequence_length["scores"]` candidates, half from each side; all without it.

  This is T5X's way in; `batches` leaves the length out and draws by Grain.
  """
  if sequence_length is None or "scores" not in sequence_length:
    return example
  size = sequence_length["scores"]
  draw = Draw(size - size // 2, size // 2)

  def chosen(from_rationale: np.ndarray, *seed: np.ndarray) -> np.ndarray:
    return draw(
      from_rationale.astype(bool), np.random.default_rng(np.array(seed).astype(np.uint32))
    )

  places = tf.numpy_function(chosen, [example["from_rationale"], *seed], tf.int64, stateful=False)
  places.set_shape([None])
  listed = ("passages", "scores", "from_rationale")
  return example | {name: tf.gather(example[name], places) for name in listed}


def dense_passages(dataset: tf.data.Dataset) -> tf.data.Dataset:
  """Pads a list's passages to its longest, since the converter takes arrays."""

  def dense(example: dict[str, Any]) -> dict[str, Any]:
    return example | {"passages": example["passages"].to_tensor()}

  return dataset.map(dense, num_parallel_calls=tf.data.AUTOTUNE)


# What stands before the placeholder is what `seqio_cache_tasks` stores: neither lengths nor chance.
STUDENT_PREPROCESSORS = (
  seqio.preprocessors.tokenize,
  put_prefix,
  seqio.CacheDatasetPlaceholder(),
  append_eos,
)
RERANK_PREPROCESSORS = (
  functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=False),
  put_prefix,
  seqio.CacheDatasetPlaceholder(),
  draw_candidates,
  append_eos,
  dense_passages,
)


class RerankTask(seqio.Task):
  """A task whose passages are cut in their tokens; SeqIO would cut the candidates."""

  def _trim_output_features(
    self, dataset: tf.data.Dataset, sequence_length: Mapping[str, int] | None
  ) -> tf.data.Dataset:
    lengths: dict[str, Any] = dict(sequence_length or {})
    if "passages" in lengths:
      lengths["passages"] = [None, lengths["passages"]]
    return super()._trim_output_features(dataset, lengths)


class RerankFeatureConverter(seqio.FeatureConverter):
  """Lists of candidates for a reranker, under T5X.

  Task lengths are `query` (L), `passages` (M, of each) and `scores` (C, candidates of a list).
  Model features are `query_tokens` [L], `passage_tokens` [C, M], `passage_scores` [C] and
  `passage_mask` [C], which is 0 where a list has fewer than C candidates.
  """

  TASK_FEATURES = {  # noqa: RUF012 (SeqIO's own declaration)
    "query": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
    "passages": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32, rank=2, sequence_dim=1),
    "scores": seqio.FeatureConverter.FeatureSpec(dtype=tf.float32),
  }
  MODEL_FEATURES = {  # noqa: RUF012
    "query_tokens": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
    "passage_tokens": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32, rank=2, sequence_dim=1),
    "passage_scores": seqio.FeatureConverter.FeatureSpec(dtype=tf.float32),
    "passage_mask": seqio.FeatureConverter.FeatureSpec(dtype=tf.int32),
  }
  PACKING_FEATURE_DTYPES: Mapping[str, Any] = {}

  def __init__(self, pack: bool = False, **kwargs: Any):
    if pack:
      raise ValueError("lists of candidates cannot be packed: RerankFeatureConverter(pack=False)")
    super().__init__(pack=False, **kwargs)

  def _convert_features(
    self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
  ) -> tf.data.Dataset:
    query, passage, candidates = (task_feature_lengths[name] for name in self.TASK_FEATURES)

    def convert(example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
      scores = example["scores"][:candidates]
      return {
        "query_tokens": _fit(example["query"], [query]),
        "passage_tokens": _fit(example["passages"], [candidates, passage]),
        "passage_scores": _fit(scores, [candidates]),
        "passage_mask": _fit(tf.ones_like(scores, tf.int32), [candidates]),
      }

    return ds.map(convert, num_parallel_calls=tf.data.AUTOTUNE)

  def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> dict[str, int]:
    """The length of each model feature along its sequence."""
    query, passage, candidates = (task_feature_lengths[name] for name in self.TASK_FEATURES)
    return {
      "query_tokens": query,
      "passage_tokens": passage,
      "passage_scores": candidates,
      "passage_mask": candidates,
    }


def is_decoder_only(network: Any) -> bool:
  """Whether a network reads rows of prompt and target: its call has no tokens for an encoder.

  This is the one place that tells which kind of rows a run has. A reranker's call has neither.
  """
  if network is None:
    return False
  names = inspect.signature(type(network).__call__).parameters
  starts = [name.partition("_tokens")[0] for name in names]
  return "decoder_input" in starts and "encoder_input" not in starts


def student_shapes(
  lengths: Mapping[str, int], batch_size: int, *, decoder_only: bool = False, pack: bool = False
) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and types of a student's batch.

  Args:
    lengths: tokens of inputs and targets; a decoder's row has room for both.
    batch_size: B.
    decoder_only: whether inputs and targets are one text.
    pack: whether a row holds several examples.
  """
  encoder: tuple[str, ...] = () if decoder_only else ("encoder_input_tokens",)
  decoder: tuple[str, ...] = (
    "decoder_input_tokens", "decoder_target_tokens", "decoder_loss_weights",
  )  # fmt: skip
  if pack:
    encoder += () if decoder_only else ("encoder_segment_ids", "encoder_positions")
    decoder += ("decoder_segment_ids", "decoder_positions")
  target = lengths["inputs"] + lengths["targets"] - 1 if decoder_only else lengths["targets"]
  return {
    **{n: jax.ShapeDtypeStruct((batch_size, lengths["inputs"]), np.int32) for n in encoder},
    **{n: jax.ShapeDtypeStruct((batch_size, target), np.int32) for n in decoder},
  }


def rerank_shapes(
  lengths: Mapping[str, int], batch_size: int, candidates: int
) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and types of a reranker's batch."""
  listed = (batch_size, candidates)
  return {
    "query_tokens": jax.ShapeDtypeStruct((batch_size, lengths["query"]), np.int32),
    "passage_tokens": jax.ShapeDtypeStruct((*listed, lengths["passages"]), np.int32),
    "passage_scores": jax.ShapeDtypeStruct(listed, np.float32),
    "passage_mask": jax.ShapeDtypeStruct(listed, np.int32),
  }


def _fit(tensor: tf.Tensor, shape: Sequence[int]) -> tf.Tensor:
  """Cuts and pads every axis."""
  tensor = tensor[tuple(slice(0, size) for size in shape)]
  missing = [[0, size - tf.shape(tensor)[axis]] for axis, size in enumerate(shape)]
  tensor = tf.pad(tensor, missing)
  tensor.set_shape(shape)
  return tensor
