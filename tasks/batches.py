"""The batch of a step: a pure function of seed and step, by Grain over SeqIO's examples.

Nothing is carried from one batch to the next, so a run that resumes, on any number of hosts, sees
the examples that it would have seen.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import grain
import jax
import numpy as np
import seqio

from kard_jax.core.files import InputError
from tasks import dapt, decoder_only, features, packing, registry
from tasks.dapt import SpanExamples
from tasks.decoder_only import DecoderExamples
from tasks.draws import Draw
from tasks.examples import ListExamples, Pick, StudentExamples
from tasks.orders import Shuffle, seed_of
from tasks.ragged import Ragged

_LOG = logging.getLogger(__name__)

# Each use of chance has a number of its own, so that none repeats another.
_ORDER, _LISTS, _EVALUATION, _PACKING = 1, 2, 3, 4


Examples = StudentExamples | DecoderExamples | SpanExamples | ListExamples


class Packed(NamedTuple):
  """Which examples share a row.

  Attributes:
    members: of each row.
    counts: rows of each task.
  """

  members: Ragged
  counts: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Batches:
  """Batches of a task or mixture. Examples are read and tokenised at the first use.

  Attributes:
    task: a SeqIO name: `<dataset>_ft`, `_kaft`, `_rd`, `_kard`, `_rerank`, a mixture of such, or
      any other task with inputs and targets.
    split: train, validation or test.
    lengths: tokens of each feature: `inputs` and `targets`; for a reranker, `query` and `passages`.
      What is longer is cut at its end; `trimmed` counts it.
    batch_size: B, over all hosts.
    seed: of order and draws.
    shuffle: a new order in each epoch; without it, the order of the files again and again.
    draw: candidates of a reranker's list: (by rationale, by question), drawn anew each time; None
      is the official code's (4, 4).
    keep_best: whether a list always holds the candidate that the rationale puts first.
    decoder_only: rows for a decoder-only student (`tasks.decoder_only`); inputs and targets share
      a row of `inputs` + `targets` - 1 places.
    pack: as many examples in a row as there is room for, with segments and positions.
    cached: take tokens from SeqIO's cache (`tasks.cached.use` says where); batches are the same.
  """

  task: str
  split: str
  lengths: Mapping[str, int]
  batch_size: int
  seed: int = 0
  shuffle: bool = True
  draw: tuple[int, int] | None = None
  keep_best: bool = False
  decoder_only: bool = False
  pack: bool = False
  cached: bool = False

  def __post_init__(self) -> None:
    needed = features.RERANK if self.is_lists else features.STUDENT
    if set(self.lengths) != set(needed) or any(self.lengths[name] < 1 for name in needed):
      raise InputError(
        f"Batches.lengths of {self.task} = {dict(self.lengths)}: a positive number of tokens is "
        f"needed for each of {', '.join(needed)}, and no other"
      )
    if self.batch_size < 1:
      raise InputError(f"Batches.batch_size = {self.batch_size}: at least 1 is needed")
    if self.is_lists and (self.decoder_only or self.pack):
      raise InputError(f"{self.task}: lists of candidates are neither packed nor decoded")
    _ = self._draw  # checks the numbers

  def __call__(self, step: int, rows: slice | None = None) -> dict[str, np.ndarray]:
    """The batch of a step.

    Args:
      step: counted from 0. Epochs follow one another without a gap: example `step * B + row` of the
        stream.
      rows: one host's share of the rows; all of them by default.

    Returns:
      int32 and float32 arrays under T5X's names; `shapes` tells them.
    """
    return self._make(self._picks(step, rows))

  def names(self, step: int, rows: slice | None = None) -> list[str]:
    """The ids of the examples in a batch: `question/sample`, or the question's alone.

    Of a packed row those of all its examples, with " + " between them.
    """
    ids = self._examples.ids
    picked = [pick.example for pick in self._picks(step, rows)]
    if not self.pack:
      return [ids[row] for row in picked]
    return [" + ".join(ids[member] for member in self._packed.members[row]) for row in picked]

  def epoch(self) -> Iterator[dict[str, np.ndarray]]:
    """Yields every example once, in order; the last batch is filled up with rows of weight 0.

    A list is the same draw in each epoch, and under each seed, so that evaluations compare.
    """
    for start in range(0, self.rows, self.batch_size):
      places = range(start, start + self.batch_size)
      yield self._make(
        [self._in_order[place] if place < self.rows else Pick(-1) for place in places]
      )

  @property
  def examples(self) -> int:
    """How many examples the split has."""
    return len(self._examples.ids)

  @property
  def rows(self) -> int:
    """How many rows hold them: fewer, if rows are packed."""
    return sum(self._row_counts)

  @property
  def padding(self) -> float:
    """The share of places in an epoch's rows that hold no token."""
    return self._padding(self.rows)

  @property
  def padding_alone(self) -> float:
    """The same, had each example a row of its own."""
    return self._padding(self.examples)

  def _padding(self, rows: int) -> float:
    examples = self._examples
    if isinstance(examples, ListExamples | SpanExamples):
      raise ValueError(f"{self.task}: there is no padding that packing could fill")
    used = examples.row_sizes(self.lengths).sum()
    return 1 - float(used) / (rows * sum(self._row_limits))

  @property
  def steps_per_epoch(self) -> int:
    """Steps after which every example has been seen (in a mixture: as many as there are)."""
    return -(-self.rows // self.batch_size)

  @property
  def trimmed(self) -> int:
    """How many inputs, targets, queries or different passages are cut in all."""
    return sum(self.trimmed_features.values())

  @functools.cached_property
  def trimmed_features(self) -> dict[str, int]:
    """The same by feature."""
    return self._examples.trimmed(self.lengths)

  @property
  def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of a batch; known before there is any data."""
    if self.is_lists:
      return features.rerank_shapes(self.lengths, self.batch_size, self._draw.size)
    return features.student_shapes(
      self.lengths, self.batch_size, decoder_only=self.decoder_only, pack=self.pack
    )

  @property
  def vocabulary(self) -> seqio.Vocabulary:
    """The vocabulary of all tokens."""
    return self._provider.output_features[
      features.RERANK[0] if self.is_lists else "targets"
    ].vocabulary

  @property
  def vocab_size(self) -> int:
    """Token ids are below this; a model's vocabulary must not be smaller."""
    return int(self.vocabulary.vocab_size)

  @property
  def is_lists(self) -> bool:
    """Whether the task is a reranker's."""
    return "passages" in self._provider.output_features

  @property
  def _provider(self) -> seqio.Task | seqio.Mixture:
    return registry.provider(self.task)

  @functools.cached_property
  def _draw(self) -> Draw:
    by_rationale, by_question = self.draw or (Draw.by_rationale, Draw.by_question)
    return Draw(by_rationale, by_question, self.keep_best)

  @functools.cached_property
  def _tasks(self) -> list[seqio.Task]:
    every = seqio.get_subtasks(self._provider)
    tasks = [task for task in every if self.split in task.splits]
    if not tasks:
      raise InputError(f"{self.task}: no split {self.split!r}; there are: {_listed(every)}")
    first = self.vocabulary
    for task in tasks[1:]:
      shared = set(self.lengths) & set(task.output_features)
      if any(task.output_features[name].vocabulary != first for name in shared):
        raise InputError(
          f"{self.task}: {tasks[0].name} and {task.name} have different vocabularies; give the "
          "datasets of a mixture the same file"
        )
    return tasks

  @functools.cached_property
  def _examples(self) -> Examples:
    examples: Examples
    if self.is_lists:
      examples = ListExamples.load(self._tasks, self.split, cached=self.cached)
    elif all(map(dapt.is_over_passages, self._tasks)):
      make = dapt.decoder_examples if self.decoder_only else dapt.SpanExamples.load
      examples = make(self._tasks, self.split, self.lengths, cached=self.cached)
    elif self.decoder_only:
      examples = DecoderExamples.load(self._tasks, self.split, cached=self.cached)
    else:
      examples = StudentExamples.load(self._tasks, self.split, cached=self.cached)
    for task, size in zip(self._tasks, examples.sizes, strict=True):
      if not size:
        raise InputError(
          f"{task.name}: no example in split {self.split!r}: it has no question or, for a task "
          "that learns from rationales, none with a rationale that was kept"
        )
    for feature, count in examples.trimmed(self.lengths).items():
      if count:
        _LOG.warning(
          "%s %s: %d %s longer than %d tokens are cut", self.task, self.split, count, feature,
          self.lengths[feature],
        )  # fmt: skip
    return examples

  @property
  def _row_limits(self) -> tuple[int, ...]:
    """Places of a row: of the encoder's and the decoder's, or of the decoder's alone."""
    if self.decoder_only:
      return (decoder_only.row_length(self.lengths),)
    return self.lengths["inputs"], self.lengths["targets"]

  @functools.cached_property
  def _packed(self) -> Packed:
    """Which examples share a row; those of one task only, so that a mixture keeps its rates."""
    examples = self._examples
    if isinstance(examples, ListExamples | SpanExamples):
      raise InputError(f"PACK = True: rows of {self.task} are full without it")
    sizes = examples.row_sizes(self.lengths)
    parts, first = [], 0
    for number, count in enumerate(examples.sizes):
      order = np.arange(first, first + count)
      if self.shuffle:  # neighbours in a file are rationales of one question
        order = np.random.default_rng(seed_of(_PACKING, self.seed, number)).permutation(order)
      rows = packing.first_fit(sizes[order], self._row_limits)
      parts.append(Ragged(order[rows.values], rows.offsets))
      first += count
    return Packed(Ragged.join(parts), tuple(map(len, parts)))

  @property
  def _row_counts(self) -> tuple[int, ...]:
    """Rows of each task."""
    return self._packed.counts if self.pack else self._examples.sizes

  @functools.cached_property
  def _stream(self) -> grain.MapDataset:
    """Picks without end; a position's pick depends on seed and position alone."""
    parts, weights, first = [], [], 0
    for number, (task, size) in enumerate(zip(self._tasks, self._row_counts, strict=True)):
      part = grain.MapDataset.range(first, first + size).repeat()
      if self.shuffle:
        part = part.map_with_index(Shuffle(first, size, seed_of(_ORDER, self.seed, number)))
      parts.append(part)
      weights.append(self._provider.get_rate(task) if len(self._tasks) > 1 else 1.0)
      first += size
    stream = grain.MapDataset.mix(parts, weights) if len(parts) > 1 else parts[0]
    return self._drawn(stream, seed_of(_LISTS, self.seed))

  @functools.cached_property
  def _in_order(self) -> grain.MapDataset:
    return self._drawn(grain.MapDataset.range(self.rows), seed_of(_EVALUATION))

  def _drawn(self, stream: grain.MapDataset, seed: int) -> grain.MapDataset:
    examples = self._examples
    if isinstance(examples, SpanExamples):
      return stream.random_map(lambda n, rng: Pick(n, rng.integers(2**63, size=2)), seed=seed)
    if not isinstance(examples, ListExamples):
      return stream.map(Pick)

    def pick(example: int, rng: np.random.Generator) -> Pick:
      return Pick(example, self._draw(examples.from_rationale[example], rng))

    return stream.random_map(pick, seed=seed)

  def _picks(self, step: int, rows: slice | None) -> list[Pick]:
    if step < 0:
      raise ValueError(f"step {step}: steps count from 0")
    places = range(step * self.batch_size, (step + 1) * self.batch_size)
    return [self._stream[place] for place in (places if rows is None else places[rows])]

  def _make(self, picks: list[Pick]) -> dict[str, np.ndarray]:
    if isinstance(self._examples, ListExamples):
      return self._examples.batch(picks, self.lengths, self._draw.size)
    if not self.pack:
      return self._examples.batch(picks, self.lengths)
    assert not isinstance(self._examples, SpanExamples)  # `_packed` says so
    members = self._packed.members
    rows = [members[p.example] if p.example >= 0 else members.values[:0] for p in picks]
    return self._examples.packed(rows, self.lengths)


def _listed(tasks: list[seqio.Task]) -> str:
  return ", ".join(sorted({split for task in tasks for split in task.splits}))


def has_examples(task: str, split: str) -> bool:
  """Whether a task or mixture has an example in a split: validation may be without rationales.

  Raises:
    InputError: no such task, or a file of the split is missing or wrong.
  """
  return any(
    part.num_input_examples(split) != 0
    for part in seqio.get_subtasks(registry.provider(task))
    if split in part.splits
  )
