"""A task's examples in memory, tokenised once, and how rows of a batch are made of them.

What the arrays hold is SeqIO's: `StudentExamples` equals `seqio.EncDecFeatureConverter`, packed or
not, and `ListExamples` equals `features.RerankFeatureConverter`, value for value.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import seqio
import tensorflow as tf

from kard_jax.core.files import InputError
from tasks import cached as cached_lib
from tasks import features, packing, tensorflow_setup, vocabularies
from tasks.ragged import Ragged
from tasks.sources import ListRecord, RerankSource, WorkdirSource

_AT_ONCE = 1024  # examples taken from TensorFlow at a time; one by one costs four times as much


class Pick(NamedTuple):
  """A row of a batch."""

  example: int  # -1: a row that counts nothing
  chosen: np.ndarray | None = None  # of a list: places of the candidates that were drawn


class Cut(NamedTuple):
  """Inputs and targets at the lengths of a row."""

  inputs: Ragged
  targets: Ragged


@dataclasses.dataclass(frozen=True)
class StudentExamples:
  """Examples of `_ft`, `_kaft`, `_rd`, `_kard`, or of any SeqIO task with inputs and targets.

  Attributes:
    ids: of the examples; with the task's name before them in a mixture.
    inputs: tokens, each ending in EOS.
    targets: likewise.
    sizes: how many examples each task has.
    end: EOS, or None where inputs have none.
  """

  ids: list[str]
  inputs: Ragged
  targets: Ragged
  sizes: tuple[int, ...]
  end: int | None

  @classmethod
  def load(
    cls, tasks: Sequence[seqio.Task], split: str, *, cached: bool = False
  ) -> StudentExamples:
    """Runs the tasks' pipelines once, in order, without trimming; `cached`, from SeqIO's cache."""
    tensorflow_setup.leave_accelerators_alone()
    parts = [tokenised(task, split, cached=cached) for task in tasks]
    feature = tasks[0].output_features["inputs"]
    if feature.vocabulary.pad_id != vocabularies.PAD:
      raise InputError(
        f"{tasks[0].name}: its vocabulary pads with id {feature.vocabulary.pad_id}, and an encoder-"
        "decoder's batches with 0; it is a decoder-only network's vocabulary"
      )
    return cls(
      qualified([ids for ids, _, _ in parts], tasks),
      Ragged.join([inputs for _, inputs, _ in parts]),
      Ragged.join([targets for _, _, targets in parts]),
      sizes=tuple(len(ids) for ids, _, _ in parts),
      end=feature.vocabulary.eos_id if feature.add_eos else None,
    )

  def batch(self, picks: Sequence[Pick], lengths: Mapping[str, int]) -> dict[str, np.ndarray]:
    """The features of some rows, at the given lengths."""
    rows = np.array([pick.example for pick in picks])
    targets = self.targets.padded(rows, lengths["targets"])
    return {
      "encoder_input_tokens": self.inputs.padded(rows, lengths["inputs"], end=self.end),
      "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
      "decoder_target_tokens": targets,
      "decoder_loss_weights": (targets != vocabularies.PAD).astype(np.int32),
    }

  def packed(self, rows: Sequence[np.ndarray], lengths: Mapping[str, int]) -> dict[str, np.ndarray]:
    """The features of rows of some examples each, with segments and positions."""
    cut = self._cut(lengths["inputs"], lengths["targets"])
    inputs = packing.lay(cut.inputs, rows, lengths["inputs"])
    targets = packing.lay(cut.targets, rows, lengths["targets"])
    shifted = np.pad(targets.tokens_BxT, ((0, 0), (1, 0)))[:, :-1]
    return {
      "encoder_input_tokens": inputs.tokens_BxT,
      "encoder_segment_ids": inputs.segment_ids_BxT,
      "encoder_positions": inputs.positions_BxT,
      "decoder_input_tokens": np.where(targets.positions_BxT > 0, shifted, vocabularies.PAD),
      "decoder_target_tokens": targets.tokens_BxT,
      "decoder_loss_weights": (targets.segment_ids_BxT > 0).astype(np.int32),
      "decoder_segment_ids": targets.segment_ids_BxT,
      "decoder_positions": targets.positions_BxT,
    }

  def row_sizes(self, lengths: Mapping[str, int]) -> np.ndarray:
    """[N, 2] how many places each example takes in a row of the encoder and of the decoder."""
    cut = self._cut(lengths["inputs"], lengths["targets"])
    return np.stack([cut.inputs.lengths, cut.targets.lengths], 1)

  def trimmed(self, lengths: Mapping[str, int]) -> dict[str, int]:
    """How many inputs and targets are longer than the lengths."""
    return {
      "inputs": int(np.sum(self.inputs.lengths > lengths["inputs"])),
      "targets": int(np.sum(self.targets.lengths > lengths["targets"])),
    }

  @functools.cached_property
  def _known(self) -> dict[tuple[int, int], Cut]:
    return {}

  def _cut(self, inputs: int, targets: int) -> Cut:
    if (inputs, targets) not in self._known:
      cut = Cut(self.inputs.cut(inputs, end=self.end), self.targets.cut(targets))
      self._known[inputs, targets] = cut
    return self._known[inputs, targets]


@dataclasses.dataclass(frozen=True)
class ListExamples:
  """Examples of `_rerank`. A passage's tokens are kept once, however many lists it is in.

  Attributes:
    ids: of the examples; with the task's name before them in a mixture.
    queries: tokens.
    members: of each list, its candidates as rows of `passages`, best first.
    scores: of the same, float32.
    from_rationale: of the same, bool.
    passages: tokens.
    sizes: how many examples each task has.
    end: EOS.
  """

  ids: list[str]
  queries: Ragged
  members: Ragged
  scores: Ragged
  from_rationale: Ragged
  passages: Ragged
  sizes: tuple[int, ...]
  end: int

  @classmethod
  def load(cls, tasks: Sequence[seqio.Task], split: str, *, cached: bool = False) -> ListExamples:
    """Reads the tasks' sources and tokenises with their vocabulary; or takes a cache's tokens."""
    vocabulary = tasks[0].output_features["query"].vocabulary
    queries, passages, members, lists = [], [], [], []
    known = 0  # passages of the tasks before
    for task in tasks:
      source = task.source
      if not isinstance(source, RerankSource):
        raise InputError(f"{task.name}: a task with lists is made by tasks.registry.register")
      records = source.records(split)
      positions = Ragged.of([record.candidates.positions for record in records])
      used, places = np.unique(positions.values, return_inverse=True)
      if cached:
        both = _cached_lists(task, split, records, used)
      else:
        both = (
          vocabularies.tokens(vocabulary, source.queries(records)),
          vocabularies.tokens(vocabulary, source.passage_texts(used.tolist())),
        )
      queries.append(both[0])
      passages.append(both[1])
      members.append(Ragged((places + known).astype(np.int32), positions.offsets))
      lists.append(records)
      known += len(used)
    every = [record.candidates for records in lists for record in records]
    return cls(
      qualified([[record.id for record in records] for records in lists], tasks),
      Ragged.join(queries),
      Ragged.join(members),
      Ragged.of([candidates.scores for candidates in every], np.float32),
      Ragged.of([candidates.from_rationale for candidates in every], bool),
      Ragged.join(passages),
      sizes=tuple(map(len, lists)),
      end=vocabulary.eos_id,
    )

  def batch(
    self, picks: Sequence[Pick], lengths: Mapping[str, int], candidates: int
  ) -> dict[str, np.ndarray]:
    """The features of some rows, at the given lengths, with C candidates in each list."""
    rows = np.array([pick.example for pick in picks])
    members = np.full((len(picks), candidates), -1)
    scores = np.zeros((len(picks), candidates), np.float32)
    for place, (row, chosen) in enumerate(picks):
      if row >= 0 and chosen is not None:
        members[place, : len(chosen)] = self.members[row][chosen]
        scores[place, : len(chosen)] = self.scores[row][chosen]
    return {
      "query_tokens": self.queries.padded(rows, lengths["query"], end=self.end),
      "passage_tokens": self.passages.padded(members, lengths["passages"], end=self.end),
      "passage_scores": scores,
      "passage_mask": (members >= 0).astype(np.int32),
    }

  def trimmed(self, lengths: Mapping[str, int]) -> dict[str, int]:
    """How many queries, and how many different passages, are longer than the lengths."""
    return {
      "query": int(np.sum(self.queries.lengths > lengths["query"])),
      "passages": int(np.sum(self.passages.lengths > lengths["passages"])),
    }


def tokenised(
  task: seqio.Task, split: str, *, cached: bool = False
) -> tuple[list[str], Ragged, Ragged]:
  """Ids, inputs and targets of a task, untrimmed, in the order of its source.

  Args:
    task: with inputs and targets.
    split: of it.
    cached: take what `seqio_cache_tasks` has stored.

  Raises:
    InputError: the cache is of other examples.
  """
  dataset = task.get_dataset(
    None, split, use_cached=cached, shuffle=False, seed=0, num_epochs=1, try_in_mem_cache=False
  )
  names = [*features.STUDENT, *(["id"] if "id" in dataset.element_spec else [])]
  compared = cached and isinstance(task.source, WorkdirSource)
  texts: dict[str, list[bytes]] = {name: [] for name in features.STUDENT if compared}
  names += [f"{name}_pretokenized" for name in texts]
  dataset = dataset.map(lambda example: {name: example[name] for name in names})
  ids: list[str] = []
  inputs, targets = [Ragged.of([])], [Ragged.of([])]
  for block in dataset.ragged_batch(_AT_ONCE):
    inputs.append(_ragged(block["inputs"]))
    targets.append(_ragged(block["targets"]))
    if "id" in block:
      ids += [id.decode() for id in block["id"].numpy().tolist()]
    else:  # a task from elsewhere
      ids += [f"{split}/{number}" for number in range(len(ids), len(ids) + len(inputs[-1]))]
    for name, some in texts.items():
      some += block[f"{name}_pretokenized"].numpy().tolist()
  found = ids, Ragged.join(inputs), Ragged.join(targets)
  return _in_order(task, split, *found, texts) if compared else found


def _in_order(
  task: seqio.Task,
  split: str,
  ids: list[str],
  inputs: Ragged,
  targets: Ragged,
  texts: dict[str, list[bytes]],
) -> tuple[list[str], Ragged, Ragged]:
  """Cached examples as the source has them, once it is certain that they are its own."""
  places = cached_lib.order(task, split, ids)
  texts = {name: [some[place] for place in places] for name, some in texts.items()}
  cached_lib.check_texts(task, split, texts)
  inputs, targets = (Ragged.of([part[place] for place in places]) for part in (inputs, targets))
  read = [text.decode() for text in texts["inputs"]]
  cached_lib.check_tokens(task, split, lambda number: inputs[number][:-1], read, "inputs")
  return [ids[place] for place in places], inputs, targets


def _cached_lists(
  task: seqio.Task, split: str, records: Sequence[ListRecord], used: np.ndarray
) -> tuple[Ragged, Ragged]:
  """Tokens of queries and of the passages at `used` positions, each ending in EOS, of a cache."""
  source, end = task.source, task.output_features["query"].vocabulary.eos_id
  assert isinstance(source, RerankSource)
  stored = cached_lib.rows(task, split, ("query", "passages", "scores"))
  of_position: dict[int, np.ndarray] = {}
  for number, (record, scores) in enumerate(zip(records, stored["scores"], strict=True)):
    if not np.array_equal(scores, record.candidates.scores):
      raise cached_lib.changed(task, split, number)
    for position, tokens in zip(
      record.candidates.positions.tolist(), stored["passages"][number].numpy(), strict=True
    ):
      of_position.setdefault(position, tokens)
  queries, passages = stored["query"], [of_position[position] for position in used.tolist()]
  for tokens, texts, name in (
    (queries, source.queries(records), "query"),
    (passages, source.passage_texts(used.tolist()), "passages"),
  ):
    cached_lib.check_tokens(task, split, tokens.__getitem__, texts, name)
  query_tokens, passage_tokens = (
    Ragged.of([np.append(tokens, end) for tokens in some]) for some in (queries, passages)
  )
  return query_tokens, passage_tokens


def qualified(ids: Sequence[Sequence[str]], tasks: Sequence[seqio.Task]) -> list[str]:
  """All ids; with their task's name before them where there are several."""
  return [
    f"{task.name}:{id}" if len(tasks) > 1 else id
    for task, some in zip(tasks, ids, strict=True)
    for id in some
  ]


def _ragged(sequences: tf.Tensor | tf.RaggedTensor) -> Ragged:
  if not isinstance(sequences, tf.RaggedTensor):
    sequences = tf.RaggedTensor.from_tensor(sequences)
  return Ragged.of_lengths(
    sequences.flat_values.numpy().astype(np.int32), sequences.row_lengths().numpy()
  )
