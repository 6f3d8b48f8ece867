"""Wikipedia's articles as passages, from TensorFlow Datasets: `tfds:wikipedia/20230601.en` and kin.

Any dataset with the feature `text`, and perhaps `title`, can be read; `wiki40b` marks titles,
sections and paragraphs inside its text, which are told apart here. Nothing is downloaded: a dataset
has to be prepared first, with the `tfds` command.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from kard_jax.core.files import InputError, PathLike
from kard_jax.retrieval.passages import Passage
from kard_jax.retrieval.readers import cut
from tasks import tfds_datasets

PREFIX = tfds_datasets.PREFIX
_MARKER = re.compile(r"\s*_START_(ARTICLE|SECTION|PARAGRAPH)_\s*")


def read(
  source: str,
  *,
  data_dir: PathLike | None = None,
  split: str | None = None,
  words: int | None = None,
  fill: bool = False,
) -> Iterator[Passage]:
  """The articles of a TFDS dataset, one after another as they lie on disk.

  An article's id is `<config>-<number>`, such as `20230601.en-17`: its number among those of all
  splits, whichever part is read. (Titles would not do: a dump that was taken while pages were
  renamed may have one twice.) An article without text is passed over.

  Args:
    source: `tfds:wikipedia/20230601.en`, `tfds:wiki40b/en:1.3.0`: a name as TFDS itself takes it.
    data_dir: where TFDS keeps its datasets; by default `$TFDS_DATA_DIR` or `~/tensorflow_datasets`.
    split: which part, as in `train[:1%]`; by default all splits.
    words: cut into passages of so many words, as `kard_jax.retrieval.readers.cut` does.
    fill: as in `cut`.

  Returns:
    An iterator; articles are read as it goes.

  Raises:
    InputError: at once: no such dataset or split, it has no text, or it is not prepared in
      `data_dir`; the message has the command that prepares it.
  """
  if words is not None and words < 1:
    raise InputError(f"words: at least 1, not {words}")
  builder = tfds_datasets.builder(source, ("text",), data_dir)
  parts = _parts(builder, source, split)
  articles = _articles(builder, parts)
  return articles if words is None else cut(articles, words, fill=fill)


def fingerprint(source: str, data_dir: PathLike | None = None) -> dict[str, Any]:
  """What tells a dataset from another of its name: version and number of examples, by split.

  Raises:
    InputError: as `read`.
  """
  builder = tfds_datasets.builder(source, ("text",), data_dir)
  sizes = {name: info.num_examples for name, info in builder.info.splits.items()}
  return {"name": builder.info.full_name, "data_path": str(builder.data_path), "splits": sizes}


def _parts(
  builder: tfds.core.DatasetBuilder, source: str, split: str | None
) -> list[tuple[int, Any]]:
  """The number of the first article, and the instruction that reads it, for each stretch."""
  splits = builder.info.splits
  names = sorted(splits, key=lambda name: (name != "train", name))
  first, number = {}, 0
  for name in names:
    first[name] = number
    number += splits[name].num_examples
  try:
    spec = "+".join(names) if split is None else split
    stretches = tfds.core.ReadInstruction.from_spec(spec).to_absolute(splits)
  except (ValueError, AssertionError, KeyError) as error:
    reason = str(error).splitlines()[0]
    raise InputError(f"{source}: no such split {split!r} ({reason})") from None
  result = []
  for stretch in stretches:
    start, end = stretch.from_ or 0, stretch.to
    end = splits[stretch.splitname].num_examples if end is None else end
    part = tfds.core.ReadInstruction(stretch.splitname, from_=start, to=end, unit="abs")
    if start < end:
      result.append((first[stretch.splitname] + start, part))
  return result


def _articles(builder: tfds.core.DatasetBuilder, parts: list[tuple[int, Any]]) -> Iterator[Passage]:
  config = builder.builder_config.name if builder.builder_config else builder.name
  marked = builder.name == "wiki40b"
  for first, part in parts:
    for number, example in enumerate(tfds_datasets.examples(builder, part), first):
      title, text = example.get("title", b"").decode(), example["text"].decode()
      if marked:
        title, text = _unmark(text)
      if text and not text.isspace():
        yield Passage(f"{config}-{number}", title.strip(), text.strip())


def _unmark(text: str) -> tuple[str, str]:
  """Title and text of a wiki40b article: its sections' names and paragraphs, a line each."""
  pieces = _MARKER.split(text)
  title, lines = "", [pieces[0]]
  for kind, piece in zip(pieces[1::2], pieces[2::2], strict=True):
    if kind == "ARTICLE":
      title = piece
    else:
      lines += piece.split("_NEWLINE_")
  return title, "\n".join(line for piece in lines if (line := piece.strip()))
