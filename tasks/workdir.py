"""The files of a work directory that examples are made of, read and checked when asked for."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from kard_jax import questions as questions_lib
from kard_jax import teacher
from kard_jax.core import files
from kard_jax.core.files import InputError, PathLike
from kard_jax.questions import Question
from kard_jax.retrieval.passages import Passages

SPLITS = ("train", "validation", "test")

Key = tuple[str, int]  # question id, sample: the name of a rationale


class Candidates(NamedTuple):
  """A reranker's list: passages by position, and what the rationale as the query says of them."""

  positions: np.ndarray  # [n] int32
  scores: np.ndarray  # [n] float32, descending
  from_rationale: np.ndarray  # [n] bool: found by the rationale, not only by the question


@dataclasses.dataclass(frozen=True)
class Workdir:
  """One recipe's work directory.

  Attributes:
    folder: where it is.
  """

  folder: PathLike

  @property
  def path(self) -> epath.Path:
    """The folder."""
    return epath.Path(self.folder)

  def splits(self) -> tuple[str, ...]:
    """The splits that have a file of questions."""
    return tuple(split for split in SPLITS if self._questions(split).exists())

  def questions(self, split: str) -> list[Question]:
    """The questions of a split.

    Raises:
      InputError: the split has no file, or as `kard_jax.questions.read`.
    """
    path = self._questions(split)
    if not path.exists():
      there = ", ".join(self.splits()) or "none"
      raise InputError(f"{path}: no such split; there are: {there}. Run the index stage first")
    return questions_lib.read(path)

  def kept_rationales(self, split: str) -> list[tuple[Question, int, str]]:
    """(question, sample, rationale) of each rationale that was kept for a question of the split.

    They come in the order of the file. A rationale for a question of no split is an error.
    """
    known = {name: self.questions(name) for name in dict.fromkeys((split, *self.splits()))}
    rows = teacher.read_rationales(
      self.path / "rationales.jsonl", [question for part in known.values() for question in part]
    )
    wanted = {question.id: question for question in known[split]}
    return [
      (wanted[row["question_id"]], row["sample"], row["rationale"])
      for row in rows
      if row["kept"] and row["question_id"] in wanted
    ]

  @functools.cached_property
  def passages(self) -> Passages:
    """The knowledge base."""
    return Passages(self.path / "knowledge" / "passages")

  def silver(self) -> dict[Key, tuple[int, ...]]:
    """Positions of each rationale's silver passages, best first."""
    return self._read("silver.jsonl", lambda row, at: (_key(row), self._positions(row, at)))

  def retrieved(self) -> dict[str, tuple[int, ...]]:
    """Positions of the passages that each question finds, best first, by question id."""
    return self._read("retrieved.jsonl", lambda row, at: (_id(row), self._positions(row, at)))

  def candidates(self) -> dict[Key, Candidates]:
    """Each rationale's candidates, best first."""
    return self._read("candidates.jsonl", lambda row, at: (_key(row), self._candidates(row, at)))

  def stamp(self) -> tuple[Any, ...]:
    """What changes when one of the files does."""
    paths = [self._questions(split) for split in SPLITS]
    paths += [self.path / name for name in _FILES]
    return tuple((str(path), *_stat(path)) for path in paths if path.exists())

  def _questions(self, split: str) -> epath.Path:
    return self.path / "questions" / f"{split}.jsonl"

  def _read(self, name: str, entry: Any) -> dict[Any, Any]:
    path = self.path / name
    found = {}
    for line, row in files.read_jsonl(path):
      where = f"{path}:{line}"
      try:
        key, value = entry(row, where)
      except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
          raise
        raise InputError(
          f"{where}: not a row of {name} ({type(error).__name__}: {error}); run the ground stage "
          "again"
        ) from None
      if key in found:
        raise InputError(f"{where}: {key!r} stands in the file twice")
      found[key] = value
    return found

  def _candidates(self, row: Mapping[str, Any], where: str) -> Candidates:
    listed = row["passages"]
    for passage in listed:
      _check_score(passage, where)
    if len({passage["id"] for passage in listed}) < len(listed):
      raise InputError(f"{where}: a passage stands in the list twice; keep it once")
    scores = np.array([passage["score"] for passage in listed], np.float32)
    order = np.argsort(-scores, kind="stable")
    return Candidates(
      np.array(self._positions(row, where), np.int32)[order],
      scores[order],
      np.array([_SIDES[passage["from"]] for passage in listed], bool)[order],
    )

  def _positions(self, row: Mapping[str, Any], where: str) -> tuple[int, ...]:
    try:
      return tuple(map(self._position, (passage["id"] for passage in row["passages"])))
    except InputError as error:
      raise InputError(
        f"{where}: {error}; the knowledge base has changed: run the ground stage again"
      ) from None

  @functools.cached_property
  def _position(self) -> Any:
    return functools.cache(self.passages.position)  # the same few passages stand in many rows


_FILES = ("rationales.jsonl", "silver.jsonl", "candidates.jsonl", "retrieved.jsonl")
_SIDES = {"rationale": True, "question": False}
_LARGEST = float(np.finfo(np.float32).max)


def _stat(path: epath.Path) -> tuple[int, int]:
  """Size and time. epath's time is in whole seconds, too coarse for a file made twice in one."""
  if "://" in str(path):
    remote = path.stat()
    return int(remote.length), int(remote.mtime)
  local = os.stat(path)
  return local.st_size, local.st_mtime_ns


def _check_score(passage: Mapping[str, Any], where: str) -> None:
  """Refuses what JSON lets through, but would make a loss NaN or be read as another number."""
  score = passage["score"]
  number = isinstance(score, int | float) and not isinstance(score, bool)
  if not number or not abs(score) <= _LARGEST:
    raise InputError(
      f"{where}: the score of passage {passage['id']!r} is {score!r}, and has to be a finite number"
    )


def _id(row: Mapping[str, Any]) -> str:
  return str(row["question_id"])


def _key(row: Mapping[str, Any]) -> Key:
  return _id(row), int(row["sample"])
