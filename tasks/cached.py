"""Examples that `seqio_cache_tasks` has stored, in the order of their source, and none of others.

A cache knows nothing of the files that it was made of, and its order is chance. So its examples are
put in the order of the source, and its texts are compared with those of the source.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from kard_jax.core.files import InputError, PathLike
from tasks import tensorflow_setup, vocabularies
from tasks.sources import WorkdirSource

_AGAIN = "cache it again with seqio_cache_tasks --overwrite (docs/beam.md)"
_AT_ONCE = 1024
_TRIED = 64  # texts that are tokenised again, to know the vocabulary


def use(folder: PathLike, tasks: Sequence[seqio.Task]) -> None:
  """Lets SeqIO look for caches in a folder.

  Raises:
    InputError: a task has none there.
  """
  seqio.set_global_cache_dirs([str(folder)])
  for task in tasks:
    if task.cache_dir is None:
      raise InputError(
        f"CACHE = {str(folder)!r}: no cache of {task.name} there; make it with seqio_cache_tasks"
        f" --tasks={task.name} --output_cache_dir={folder} --module_import=... (docs/beam.md)"
      )


def order(task: seqio.Task, split: str, ids: Sequence[str]) -> list[int]:
  """Where the examples of a source stand among cached ones, in the source's order.

  Args:
    task: with a cache.
    split: of it.
    ids: of the cached examples.

  Raises:
    InputError: the cache has other examples than the source.
  """
  if not isinstance(task.source, WorkdirSource):  # a task from elsewhere: as the cache has them
    return list(range(len(ids)))
  place = {id: number for number, id in enumerate(ids)}
  records = task.source.records(split)
  wanted = [getattr(record, "id", str(record)) for record in records]
  if len(ids) != len(wanted) or place.keys() != set(wanted):
    raise InputError(
      f"{task.cache_dir}: {len(ids):,} examples in split {split!r}, of which"
      f" {len(place.keys() & set(wanted)):,} are among the {len(wanted):,} of the work directory;"
      f" {_AGAIN}"
    )
  return [place[id] for id in wanted]


def check_texts(task: seqio.Task, split: str, texts: dict[str, list[bytes]]) -> None:
  """Makes sure that cached examples were made of the source's texts, with its vocabulary.

  Args:
    task: with a cache.
    split: of it.
    texts: of each feature, in the source's order.

  Raises:
    InputError: one is not.
  """
  if not isinstance(task.source, WorkdirSource):
    return
  dataset = task.source.get_dataset(split, shuffle=False)
  at = 0
  for block in dataset.batch(_AT_ONCE):
    for name, some in texts.items():
      now = block[name].numpy().tolist()
      if now != some[at : at + len(now)]:
        different = next(n for n, text in enumerate(now) if text != some[at + n])
        raise changed(task, split, at + different)
    at += len(now)


def check_tokens(
  task: seqio.Task, split: str, tokens: Callable[[int], np.ndarray], texts: Sequence[str], name: str
) -> None:
  """Makes sure of the vocabulary by some texts: `tokens` gives those of the cache, without EOS."""
  vocabulary = task.output_features[name].vocabulary
  places = range(0, len(texts), max(1, len(texts) // _TRIED))
  again = vocabularies.tokens(vocabulary, [texts[place] for place in places], end=False)
  for number, place in enumerate(places):
    if not np.array_equal(tokens(place), again[number]):
      raise changed(task, split, place)


def changed(task: seqio.Task, split: str, number: int) -> InputError:
  """What to raise where a cached example is not the source's."""
  return InputError(
    f"{task.cache_dir}: example {number} of split {split!r} has changed since it was cached, or the"
    f" vocabulary has; {_AGAIN}"
  )


def rows(task: seqio.Task, split: str, names: Sequence[str]) -> dict[str, list[Any]]:
  """Some features of all examples as they were stored, in the source's order."""
  tensorflow_setup.leave_accelerators_alone()
  stored = seqio.Task(
    task.name,  # by which SeqIO finds the cache
    task.source,
    {name: task.output_features[name] for name in names if name in task.output_features},
    preprocessors=[seqio.CacheDatasetPlaceholder()],
  )
  dataset = stored.get_dataset(
    None, split, use_cached=True, shuffle=False, seed=0, try_in_mem_cache=False
  )
  dataset = dataset.map(lambda example: {name: example[name] for name in ("id", *names)})
  found: dict[str, list[Any]] = {name: [] for name in ("id", *names)}
  for example in dataset:
    for name, value in example.items():
      found[name].append(value if isinstance(value, tf.RaggedTensor) else value.numpy())
  ids = [id.decode() for id in found["id"]]
  places = order(task, split, ids)
  return {name: [values[place] for place in places] for name, values in found.items()}
