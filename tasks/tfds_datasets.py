"""Datasets of TensorFlow Datasets by name, `tfds:NAME`, as they were prepared on disk.

Nothing is downloaded: a dataset has to be prepared first, with the `tfds` command.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from kard_jax.core.files import InputError, PathLike

PREFIX = "tfds:"


def is_named(source: PathLike | None) -> bool:
  """Whether a source names a dataset of TFDS, not a file."""
  return source is not None and str(source).startswith(PREFIX)


def builder(
  source: str, features: Sequence[str], data_dir: PathLike | None = None
) -> tfds.core.DatasetBuilder:
  """The builder of a prepared dataset.

  Args:
    source: `tfds:` and a name as TFDS itself takes it.
    features: those that it must have.
    data_dir: where TFDS keeps its datasets; by default `$TFDS_DATA_DIR` or `~/tensorflow_datasets`.

  Raises:
    InputError: no such dataset, one without the features, or it is not prepared; the message has
      the command that prepares it.
  """
  name = source.removeprefix(PREFIX)
  try:
    found = tfds.builder(name, data_dir=data_dir)
  except (ValueError, AssertionError, ImportError) as error:  # TFDS lists all that it knows
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    raise InputError(f"{source}: TFDS has no such dataset ({reason})") from None
  if not found.is_prepared():
    flag = "" if data_dir is None else f" --data_dir={data_dir}"
    raise InputError(
      f"{source}: not prepared in {found.data_path}; nothing is downloaded here. Run"
      f" `tfds build {name}{flag}`, or say with --data_dir where it is"
    )
  for feature in features:
    if feature not in found.info.features:
      there = ", ".join(sorted(found.info.features))
      raise InputError(f"{source}: it has no feature {feature!r}, but {there}")
  return found


def examples(found: tfds.core.DatasetBuilder, part: Any) -> Iterator[Mapping[str, Any]]:
  """Examples in the order in which they lie, a few at a time in memory."""
  if found.info.file_format is tfds.core.FileFormat.ARRAY_RECORD:
    yield from found.as_data_source(split=part)
    return
  from tasks import tensorflow_setup  # ArrayRecord is read without TensorFlow

  tensorflow_setup.leave_accelerators_alone()
  config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
  dataset = found.as_dataset(split=part, shuffle_files=False, read_config=config)
  yield from tfds.as_numpy(dataset)


def splits(source: str, features: Sequence[str]) -> dict[str, Iterator[Mapping[str, Any]]]:
  """The examples of each split; arguments and errors as of `builder`."""
  found = builder(source, features)
  return {split: examples(found, split) for split in found.info.splits}


def record(source: str) -> epath.Path:
  """The file that tells one preparation of a dataset from another: counts and sizes by shard."""
  return epath.Path(builder(source, ()).data_path) / "dataset_info.json"
