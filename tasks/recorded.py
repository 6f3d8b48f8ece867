"""A teacher's completions that exist already: a row for each training question, in its order."""

from __future__ import annotations

from collections.abc import Sequence

from kard_jax.core.files import InputError
from kard_jax.teacher import RecordedTeacher
from tasks.releases import Release

FILE = r"teacher_train\w*\.jsonl(\.gz)?"


def teacher(release: Release, ids: Sequence[str], *, within: str = "") -> RecordedTeacher:
  """The teacher of `teacher_train.jsonl.gz`: `{"index", "model", "completions": [..]}` a row.

  Args:
    release: where it is.
    ids: of the training questions, one for each row, also of those that were left out.
    within: what its path must match.

  Raises:
    InputError: there is no such file, or its rows do not fit the questions one to one.
  """
  file = release.find(FILE, within) or release.find(FILE)
  if file is None:
    raise InputError(
      f"{release.place}: no teacher_train.jsonl.gz in it (rows of index and completions)"
    )
  completions: dict[str, list[str]] = {}
  names: dict[str, None] = {}
  for where, row in release.rows(file):
    index, texts = row.get("index"), row.get("completions")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
      raise InputError(f'{where}: "completions" must be a list of texts')
    if index != len(completions) or index >= len(ids):
      raise InputError(
        f"{where}: the index of row {len(completions)} of {len(ids)} is wanted, not {index!r}"
      )
    completions[ids[index]] = texts
    names[str(row.get("model", "recorded"))] = None
  if len(completions) != len(ids):
    raise InputError(
      f"{release.where(file)}: {len(completions)} rows for {len(ids)} training questions"
    )
  return RecordedTeacher(completions, name=", ".join(names))
