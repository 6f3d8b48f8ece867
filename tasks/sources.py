"""SeqIO data sources over a work directory: which files make an example's input and target.

A source is made before the files exist, and reads them each time a dataset is asked for. Examples
come in the order of the files, so the same files give the same order.
"""

from __future__ import annotations

import abc
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import seqio
import tensorflow as tf
from etils import epath

from kard_jax.core.files import InputError, PathLike
from kard_jax.prompts import Prompts
from kard_jax.questions import Question
from kard_jax.retrieval.passages import Passage, Passages
from tasks import tensorflow_setup
from tasks.ragged import Ragged
from tasks.workdir import SPLITS, Candidates, Workdir

KNOWLEDGE = (None, "retrieved", "silver")
_SHARDS = 16  # for `seqio_cache_tasks`: each reads the files, and makes its part of the examples
_BLOCK = 256  # rows handed to TensorFlow at once: its cost is by the hand-over

Record = TypeVar("Record")


class StudentRecord(NamedTuple):
  """What a student's example is made of."""

  id: str
  question: Question
  rationale: str | None
  passages: tuple[int, ...]


class ListRecord(NamedTuple):
  """What a reranker's example is made of."""

  id: str
  question: Question
  candidates: Candidates


class WorkdirSource(seqio.DataSource, Generic[Record]):
  """What the sources have in common.

  Args:
    workdir: tells the work directory, when examples are asked for.
    prompts: the dataset's templates.
  """

  def __init__(self, workdir: Callable[[], PathLike], prompts: Prompts):
    super().__init__(splits=SPLITS)
    self._workdir = workdir
    self.prompts = prompts
    self._counts: dict[tuple[Any, ...], int] = {}

  @property
  def splits(self) -> tuple[str, ...]:
    """Those that have a file; all of them while the work directory is not known."""
    try:
      return Workdir(self._workdir()).splits() or SPLITS
    except InputError:
      return SPLITS

  @property
  def supports_arbitrary_sharding(self) -> bool:
    """Any number of hosts can share the examples."""
    return True

  def list_shards(self, split: str) -> Sequence[str]:
    """Shards by number, of which Beam's workers take some each; they can be cut further."""
    return [f"{split}-{shard:05d}-of-{_SHARDS:05d}" for shard in range(_SHARDS)]

  def num_input_examples(self, split: str) -> int:
    """The number of examples; mixtures may take it for their rates."""
    key = (split, *Workdir(self._workdir()).stamp())
    if key not in self._counts:
      self._counts[key] = len(self.records(split))
    return self._counts[key]

  @abc.abstractmethod
  def records(self, split: str) -> Sequence[Record]:
    """The examples of a split before they are text; every file they need is read and checked here.

    Raises:
      InputError: a file is missing or wrong, or two files do not belong together.
    """

  @abc.abstractmethod
  def _dataset(self, records: Sequence[Record], every: Sequence[Record]) -> tf.data.Dataset:
    """The records as SeqIO's examples; shapes are those of all of the split."""

  def get_dataset(  # type: ignore[override]
    self,
    split: str = "train",
    shuffle: bool = True,
    seed: int | None = None,
    shard_info: seqio.ShardInfo | None = None,
    **unused: Any,
  ) -> tf.data.Dataset:
    """The examples of a split, or of one shard of it.

    Args:
      split: train, validation or test.
      shuffle: with a seed, all examples change places, as the task's shuffle buffer would not do:
        it is short, and the rationales of one question stand together. Else in the files' order.
      seed: the same on every host.
      shard_info: which part.
      **unused: what SeqIO offers besides.

    Raises:
      InputError: as `records`. It is raised here, not by TensorFlow in the middle of a step.
    """
    del unused
    tensorflow_setup.leave_accelerators_alone()
    records = self.records(split)
    self._counts[(split, *Workdir(self._workdir()).stamp())] = len(records)
    if shuffle and seed is not None:
      order = np.random.default_rng(int(seed) % 2**63).permutation(len(records))
      records = [records[place] for place in order]
    shard = records[shard_info.index :: shard_info.num_shards] if shard_info else records
    return self._dataset(shard, records)


class StudentSource(WorkdirSource[StudentRecord]):
  """Question, perhaps with passages -> answer, perhaps with its rationale.

  Examples: `id`, `inputs`, `targets`, and for the metrics `options` (padded with "") and `label`.

  Args:
    workdir: tells the work directory.
    prompts: makes inputs and targets.
    rationale: an example for each kept rationale, whose target it is; else one for each question.
    knowledge: "silver" passages (by the rationale), "retrieved" ones (by the question), or None.
    k: tells how many of them stand in the input.
  """

  def __init__(
    self,
    workdir: Callable[[], PathLike],
    prompts: Prompts,
    *,
    rationale: bool,
    knowledge: str | None,
    k: Callable[[], int],
  ):
    super().__init__(workdir, prompts)
    if knowledge not in KNOWLEDGE or (knowledge == "silver" and not rationale):
      raise ValueError(f"knowledge {knowledge!r} with rationale={rationale}")
    self._rationale, self._knowledge, self._k = rationale, knowledge, k

  def records(self, split: str) -> list[StudentRecord]:
    """See the base class."""
    workdir = Workdir(self._workdir())
    if self._rationale:
      rows = [
        StudentRecord(f"{question.id}/{sample}", question, rationale, ())
        for question, sample, rationale in workdir.kept_rationales(split)
      ]
      keys: list[Any] = [(row.question.id, int(row.id.rpartition("/")[2])) for row in rows]
    else:
      rows = [StudentRecord(q.id, q, None, ()) for q in workdir.questions(split)]
      keys = [row.id for row in rows]
    if self._knowledge is None or not rows:
      return rows
    found = workdir.silver() if self._knowledge == "silver" else workdir.retrieved()
    path, k = workdir.path / f"{self._knowledge}.jsonl", self._k()
    most = max(map(len, found.values()), default=0)
    # A list may be short, where few passages share a word with the query; not all of them.
    if most < min(k, len(workdir.passages)):
      raise InputError(
        f"{path}: at most {most} passages a row, but {k} are wanted in a prompt; ground with more"
      )
    return [
      row._replace(passages=_row_of(found, key, path)[:k])
      for row, key in zip(rows, keys, strict=True)
    ]

  def text(self, record: StudentRecord, passages: Sequence[Passage]) -> tuple[str, str]:
    """Input and target of an example."""
    return (
      self.prompts.student_input(record.question, passages),
      self.prompts.student_target(record.question, record.rationale),
    )

  def _dataset(
    self, records: Sequence[StudentRecord], every: Sequence[StudentRecord]
  ) -> tf.data.Dataset:
    read = _reader(Workdir(self._workdir()), any(record.passages for record in records))
    width = max((len(record.question.options) for record in every), default=0)

    def blocks() -> Iterator[dict[str, Any]]:
      for start in range(0, len(records), _BLOCK):
        block = records[start : start + _BLOCK]
        knowledge = read([record.passages for record in block])
        texts = [self.text(*both) for both in zip(block, knowledge, strict=True)]
        options = [record.question.options for record in block]
        yield {
          "id": [record.id for record in block],
          "inputs": [inputs for inputs, _ in texts],
          "targets": [targets for _, targets in texts],
          "options": [[*texts, *[""] * (width - len(texts))] for texts in options],
          "label": [record.question.label for record in block],
        }

    return tf.data.Dataset.from_generator(
      blocks,
      output_signature={
        "id": tf.TensorSpec([None], tf.string),
        "inputs": tf.TensorSpec([None], tf.string),
        "targets": tf.TensorSpec([None], tf.string),
        "options": tf.TensorSpec([None, width], tf.string),
        "label": tf.TensorSpec([None], tf.int32),
      },
    ).unbatch()


class RerankSource(WorkdirSource[ListRecord]):
  """Question -> its candidates' scores under a rationale that the reranker does not see.

  Examples: `id`, `query`, and for each candidate `passages` (text), `scores`, `from_rationale`.
  """

  def records(self, split: str) -> list[ListRecord]:
    """See the base class."""
    workdir = Workdir(self._workdir())
    kept = workdir.kept_rationales(split)
    if not kept:
      return []
    found, path = workdir.candidates(), workdir.path / "candidates.jsonl"
    return [
      ListRecord(f"{question.id}/{sample}", question, candidates)
      for question, sample, _ in kept
      if len((candidates := _row_of(found, (question.id, sample), path)).positions)
    ]

  def queries(self, records: Sequence[ListRecord]) -> list[str]:
    """What the reranker reads of each question."""
    return [self.prompts.reranker_query(record.question) for record in records]

  def passage_texts(self, positions: Sequence[int]) -> list[str]:
    """Passages as the reranker reads them."""
    if not positions:
      return []
    passages = Workdir(self._workdir()).passages
    return [self.prompts.passage_text(passage) for passage in passages.many(positions)]

  def _dataset(self, records: Sequence[ListRecord], every: Sequence[ListRecord]) -> tf.data.Dataset:
    del every
    used = np.unique(Ragged.of([record.candidates.positions for record in records]).values)
    texts = tf.constant(self.passage_texts(used.tolist()), tf.string)

    def rows() -> Iterator[dict[str, Any]]:
      for record, query in zip(records, self.queries(records), strict=True):
        yield {
          "id": record.id,
          "query": query,
          "passages": np.searchsorted(used, record.candidates.positions),
          "scores": record.candidates.scores,
          "from_rationale": record.candidates.from_rationale.astype(np.int32),
        }

    dataset = tf.data.Dataset.from_generator(
      rows,
      output_signature={
        "id": tf.TensorSpec([], tf.string),
        "query": tf.TensorSpec([], tf.string),
        "passages": tf.TensorSpec([None], tf.int64),
        "scores": tf.TensorSpec([None], tf.float32),
        "from_rationale": tf.TensorSpec([None], tf.int32),  # a cache takes no bool
      },
    )
    return dataset.map(lambda row: row | {"passages": tf.gather(texts, row["passages"])})


def _row_of(found: dict[Any, Any], key: Any, path: epath.Path) -> Any:
  if key not in found:
    name = f"question {key!r}" if isinstance(key, str) else f"question {key[0]!r}, sample {key[1]}"
    raise InputError(f"{path}: no row for {name}; run the ground stage again")
  return found[key]


def _reader(
  workdir: Workdir, needed: bool
) -> Callable[[Sequence[tuple[int, ...]]], list[list[Passage]]]:
  """Reads the passages of many prompts at once."""
  passages: Passages | None = workdir.passages if needed else None

  def read(positions: Sequence[tuple[int, ...]]) -> list[list[Passage]]:
    if passages is None:
      return [[] for _ in positions]
    flat = iter(passages.many(list(itertools.chain.from_iterable(positions))))
    return [list(itertools.islice(flat, len(some))) for some in positions]

  return read
