"""Rows of a decoder-only student: prompt, separator and target as one text.

A row is x = prompt + separator + target + EOS; its `decoder_input_tokens` are x without the last
token, its `decoder_target_tokens` x without the first, and the weight is 1 where a target is
predicted. SeqIO's `PrefixLMFeatureConverter` has one place more in front: it feeds a 0 first and
predicts the prompt's first token, with weight 0, which Hugging Face's causal networks never saw.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import seqio
from jaxtyping import Int32

from kard_jax.core.files import InputError
from kard_jax.prompts import Prompts
from tasks import features, packing, tensorflow_setup, vocabularies
from tasks.dataset import Dataset
from tasks.examples import Pick, qualified, tokenised
from tasks.ragged import Ragged


class Texts(NamedTuple):
  """Prompts and targets as one text, at the lengths of a row.

  Attributes:
    fed: x without its last token.
    predicted: x without its first token.
    prompt_sizes: tokens of x that are prompt and separator.
  """

  fed: Ragged
  predicted: Ragged
  prompt_sizes: np.ndarray


@dataclasses.dataclass(frozen=True)
class DecoderExamples:
  """Examples of `_ft`, `_kaft`, `_rd`, `_kard`, or of any SeqIO task with inputs and targets.

  Attributes:
    ids: of the examples; with the task's name before them in a mixture.
    prompts: tokens, without an end.
    separators: tokens between prompt and target, for each example.
    targets: tokens, each ending in EOS.
    sizes: how many examples each task has.
    pad_id: fills rows up.
    fills_rows: whether targets may take all of a row, because there are no prompts.
  """

  ids: list[str]
  prompts: Ragged
  separators: Ragged
  targets: Ragged
  sizes: tuple[int, ...]
  pad_id: int
  fills_rows: bool = False

  @classmethod
  def load(
    cls, tasks: Sequence[seqio.Task], split: str, *, cached: bool = False
  ) -> DecoderExamples:
    """Runs the tasks' pipelines once, in order, without trimming; `cached`, from SeqIO's cache."""
    tensorflow_setup.leave_accelerators_alone()
    parts = [tokenised(task, split, cached=cached) for task in tasks]
    vocabulary = tasks[0].output_features["targets"].vocabulary
    prompts, separators = [], []
    for task, (_, inputs, _) in zip(tasks, parts, strict=True):
      feature = task.output_features["inputs"]
      ends = feature.add_eos and feature.vocabulary.eos_id is not None
      prompts.append(inputs.without_last() if ends else inputs)
      templates = getattr(task.source, "prompts", Prompts())
      between = separator_tokens(vocabulary, templates.separator)
      separators.append(Ragged.of([between] * len(inputs)))
    return cls(
      qualified([ids for ids, _, _ in parts], tasks),
      Ragged.join(prompts),
      Ragged.join(separators),
      Ragged.join([targets for _, _, targets in parts]),
      sizes=tuple(len(ids) for ids, _, _ in parts),
      pad_id=vocabulary.pad_id,
    )

  def batch(self, picks: Sequence[Pick], lengths: Mapping[str, int]) -> dict[str, np.ndarray]:
    """The features of some rows of one example each, at the given lengths."""
    rows = [np.array([pick.example] if pick.example >= 0 else [], int) for pick in picks]
    batch = self.packed(rows, lengths)
    return {name: batch[name] for name in _FEATURES}

  def packed(self, rows: Sequence[np.ndarray], lengths: Mapping[str, int]) -> dict[str, np.ndarray]:
    """The features of rows of some examples each, with segments and positions."""
    texts = self._texts(lengths["inputs"], lengths["targets"])
    length = row_length(lengths)
    inputs = packing.lay(texts.fed, rows, length, self.pad_id)
    targets = packing.lay(texts.predicted, rows, length, self.pad_id)
    # The place of a prompt's last token predicts the first of the target.
    first = texts.prompt_sizes[inputs.members_BxT] - 1
    weights = (inputs.segment_ids_BxT > 0) & (inputs.positions_BxT >= first)
    return {
      "decoder_input_tokens": inputs.tokens_BxT,
      "decoder_target_tokens": targets.tokens_BxT,
      "decoder_loss_weights": weights.astype(np.int32),
      "decoder_segment_ids": inputs.segment_ids_BxT,
      "decoder_positions": inputs.positions_BxT,
    }

  def row_sizes(self, lengths: Mapping[str, int]) -> np.ndarray:
    """[N, 1] how many places each example takes in a row."""
    return self._texts(lengths["inputs"], lengths["targets"]).fed.lengths[:, None]

  def trimmed(self, lengths: Mapping[str, int]) -> dict[str, int]:
    """How many prompts (with separator) and targets are longer than the lengths."""
    targets = row_length(lengths) + 1 if self.fills_rows else lengths["targets"]
    prompts = self.prompts.lengths + self.separators.lengths
    return {
      "inputs": int(np.sum(prompts > lengths["inputs"])),
      "targets": int(np.sum(self.targets.lengths > targets)),
    }

  @functools.cached_property
  def _known(self) -> dict[tuple[int, int], Texts]:
    return {}

  def _texts(self, inputs: int, targets: int) -> Texts:
    if (inputs, targets) not in self._known:
      prompts = joined(self.prompts, self.separators, inputs)
      room = inputs + targets if self.fills_rows else targets
      whole = Ragged.beside([prompts, self.targets.cut(room)])
      texts = Texts(whole.without_last(), whole.without_first(), prompts.lengths)
      self._known[inputs, targets] = texts
    return self._known[inputs, targets]


_FEATURES = ("decoder_input_tokens", "decoder_target_tokens", "decoder_loss_weights")


def row_length(lengths: Mapping[str, int]) -> int:
  """T: places of a row, which has a token more than it has predictions."""
  return lengths["inputs"] + lengths["targets"] - 1


def separator_tokens(vocabulary: seqio.Vocabulary, separator: str) -> list[int]:
  """Tokens between prompt and target.

  T5's vocabularies have none for a line end; then EOS stands there, as in SeqIO's prefix language
  model.
  """
  return list(vocabulary.encode(separator)) or [vocabulary.eos_id]


def joined(prompts: Ragged, separators: Ragged, length: int) -> Ragged:
  """Prompts with their separators, in at most so many tokens: what is cut is a prompt's end."""
  longest = int(separators.lengths.max(initial=0))
  if longest >= length:
    raise InputError(f"INPUT_LENGTH = {length}: the separator alone takes {longest} tokens")
  return Ragged.beside([prompts.cut(length - longest), separators])


def read(
  dataset: Dataset, network: Any, texts: Sequence[str], length: int
) -> Int32[np.ndarray, "n {length}"]:
  """A student's prompts as it was trained to read them, whichever kind of network it is.

  Args:
    dataset: whose vocabulary and templates.
    network: tells its kind, and its `pad_id`.
    texts: any number of prompts.
    length: of each row; a longer prompt is cut.
  """
  if not features.is_decoder_only(network):
    return vocabularies.encode(dataset.vocabulary, texts, length)
  pad_id = getattr(network, "pad_id", dataset.vocabulary.pad_id)
  return prompts(dataset.vocabulary, texts, length, dataset.prompts.separator, pad_id)


def sizes(dataset: Dataset, network: Any, texts: Sequence[str]) -> list[int]:
  """How many tokens `read` would need for prompts: with the end of a text, or the separator."""
  if not features.is_decoder_only(network):
    return vocabularies.tokens(dataset.vocabulary, texts).lengths.tolist()
  between = len(separator_tokens(dataset.vocabulary, dataset.prompts.separator))
  return (vocabularies.tokens(dataset.vocabulary, texts, end=False).lengths + between).tolist()


def prompts(
  vocabulary: seqio.Vocabulary,
  texts: Sequence[str],
  length: int,
  separator: str,
  pad_id: int | None = None,
) -> Int32[np.ndarray, "n {length}"]:
  """Prompts as a decoder-only student reads them, while answering too.

  Args:
    vocabulary: that of the model.
    texts: any number of them.
    length: of each row; a longer prompt is cut before the separator.
    separator: of the dataset's prompts.
    pad_id: fills rows up; None is the vocabulary's own.
  """
  fill = vocabulary.pad_id if pad_id is None else pad_id
  separators = Ragged.of([separator_tokens(vocabulary, separator)] * len(texts))
  found = joined(vocabularies.tokens(vocabulary, texts, end=False), separators, length)
  return found.padded(np.arange(len(texts)), length, fill=fill)
