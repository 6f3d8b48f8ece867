"""MedQA-USMLE (Jin et al., 2021): cases of the medical licensing examination of the United States.

`source` holds the release (`questions/US/4_options/phrases_no_exclude_{train,dev,test}.jsonl`, or
`questions/US/{train,dev,test}.jsonl` with five options; also as data_clean.zip) or the form of
KARD's code (train, dev, test; `sent1`, `ending0` ...). The knowledge base is the release's English
textbooks, in blocks of a hundred words, or a corpus of textbooks as JSON lines.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from kard_jax.core.files import InputError
from kard_jax.retrieval.passages import Passage
from kard_jax.retrieval.readers import cut
from kard_jax.teacher import RecordedTeacher
from tasks import question_rows, recorded, registry
from tasks.exemplars import MEDQA
from tasks.question_rows import Rejected, Splits
from tasks.releases import ROWS, Release, named, split_files

PUBLISHED = {"train": 10_178, "validation": 1_272, "test": 1_273}
WORDS = 100  # in a block of a textbook
KEEP = ("meta_info",)

_WITHIN = (r"(^|/)(medqa|usmle)[^/]*/", r"(^|/)US/", "")
_SPLITS = ("train", "validation", "test")
_NAMES = {"train": "train", "validation": "dev", "test": "test"}
_FOUR: Mapping[str, str] = {
  split: rf"phrases_no_exclude_{name}\.jsonl(\.gz)?" for split, name in _NAMES.items()
}
_PLAIN: Mapping[str, str] = {split: named(split) for split in _SPLITS}
_SAMPLE: Mapping[str, str] = {"train": rf"train_first\d+{ROWS}"}
_TEXTBOOKS = r"textbooks/en/"
_CORPUS = r"(?:textbooks?|openstax)\w*\.jsonl(\.gz)?"


def questions(seed: int, source: str | None) -> Splits:
  """The questions by split, with four options where the release has both kinds.

  Args:
    seed: not needed.
    source: the folder, or an archive of it.

  Raises:
    InputError: there are no training questions, or a file is damaged.
  """
  del seed
  return _read(source, (_FOUR, _PLAIN, _SAMPLE))


def five_options(seed: int, source: str | None) -> Splits:
  """The questions of the release's first form, which has five options."""
  del seed
  return _read(source, (_PLAIN,))


def passages(seed: int, source: str | None) -> Iterator[Passage]:
  """The textbooks, in blocks of a hundred words; passages of a corpus as they are.

  Args:
    seed: not needed.
    source: as for `questions`.

  Raises:
    InputError: there are none, or a row is wrong.
  """
  del seed
  release = _release(source)
  books = release.every(r".+\.txt", _TEXTBOOKS)
  corpora = release.every(_CORPUS)
  if not books and not corpora:
    raise InputError(
      f"{source}: no textbooks in it (textbooks/en/*.txt, or textbooks.jsonl); give them, or "
      "another knowledge base (gin: KNOWLEDGE)"
    )
  if books:
    yield from cut(_paragraphs(release, books), WORDS)
    return
  seen: set[str] = set()
  for file in corpora:
    for where, row in release.rows(file):
      id, text = row.get("_id", row.get("id")), row.get("text")
      if not isinstance(id, str) or not isinstance(text, str) or not text.strip():
        raise InputError(f'{where}: a passage needs an "id" and a "text"')
      if id in seen:
        raise InputError(f"{where}: the id {id!r} stands twice")
      seen.add(id)
      yield Passage(id, str(row.get("title") or ""), text)


def teacher(seed: int, source: str | None) -> RecordedTeacher:
  """ChatGPT's completions for the training questions, not filtered.

  Args:
    seed: not needed.
    source: as for `questions`.

  Raises:
    InputError: there are none, or they do not fit the questions.
  """
  del seed
  release = _release(source)
  files, within = _files(release, (_FOUR, _PLAIN, _SAMPLE))
  rows = enumerate(release.rows(files["train"]))
  ids = [question_rows.id_of(row, "train", number) for number, (_, row) in rows]
  return recorded.teacher(release, ids, within=within)


def _read(source: str | None, forms: Sequence[Mapping[str, str]]) -> Splits:
  release = _release(source)
  files, _ = _files(release, forms)
  rejected: list[Rejected] = []
  found = {}
  for split, file in files.items():
    found[split] = question_rows.read(release.rows(file), split, rejected, keep=KEEP)
    mine = [row for row in rejected if row.split == split]
    question_rows.demand(found[split], mine, release.where(file))
  return Splits(found, rejected)


def _files(release: Release, forms: Sequence[Mapping[str, str]]) -> tuple[dict[str, str], str]:
  for within in _WITHIN:
    found = split_files(release, forms, within)
    if "train" in found:
      return found, within
  raise InputError(
    f"{release.place}: no training questions in it; phrases_no_exclude_train.jsonl or train.jsonl "
    "is looked for"
  )


def _release(source: str | None) -> Release:
  if source is None:
    raise InputError("medqa: set the folder of its files (gin: SOURCE = '.../medqa')")
  return Release(source)


def _paragraphs(release: Release, books: Sequence[str]) -> Iterator[Passage]:
  for file in books:
    title = file.rpartition("/")[2].removesuffix(".txt")
    for number, line in enumerate(release.text(file).split("\n"), 1):
      if line.strip():
        yield Passage(f"{title}/{number}", title.replace("_", " "), line)


registry.register(
  "medqa",
  questions=questions,
  passages=passages,
  teacher=teacher,
  exemplars=MEDQA,
  published=PUBLISHED,
  extra_ids=100,
)
registry.register(
  "medqa_five_options",
  questions=five_options,
  passages=passages,
  teacher=teacher,
  exemplars=MEDQA,
  published=PUBLISHED,
  extra_ids=100,
)
