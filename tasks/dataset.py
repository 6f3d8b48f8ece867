"""A dataset: questions, passages and a teacher, as files or functions, and where its files are."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from etils import epath

from kard_jax import questions as questions_lib
from kard_jax import teacher as teacher_lib
from kard_jax.convert import source as hub
from kard_jax.core.files import InputError, PathLike
from kard_jax.exemplars import Exemplar
from kard_jax.prompts import Prompts
from kard_jax.questions import Question
from kard_jax.retrieval import passages as passages_lib
from kard_jax.retrieval import readers
from kard_jax.retrieval.passages import Passage
from kard_jax.teacher import Teacher
from tasks import tfds_datasets, vocabularies, wikipedia
from tasks.question_rows import Splits
from tasks.vocabularies import Vocabulary
from tasks.workdir import SPLITS, Workdir

# Kind of a student's task -> whether its target holds the rationale, and its input's passages.
STUDENT_KINDS: Mapping[str, tuple[bool, str | None]] = {
  "ft": (False, None),
  "kaft": (False, "retrieved"),
  "rd": (True, None),
  "kard": (True, "silver"),
}
# The same text with spans hidden, for T5, and as it is, for a decoder-only student.
DAPT_KINDS = ("dapt", "dapt_lm")
KINDS = (*STUDENT_KINDS, *DAPT_KINDS, "rerank")
KNOWLEDGE_WORDS = 100  # in a passage of an encyclopedia's article (DPR's)
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")  # of a model, such as google/flan-t5-base

QuestionsOf = Callable[[int, str | None], Mapping[str, Sequence[Question]]]
PassagesOf = Callable[[int, str | None], Iterable[Passage]]
TeacherOf = Callable[[int, str | None], Teacher]


@dataclasses.dataclass
class Place:
  """What is known only when a stage runs; all copies of a dataset share it."""

  workdir: PathLike | None = None
  vocabulary: PathLike | None = None
  k: int | None = None
  pieces: Vocabulary | None = None


@dataclasses.dataclass(frozen=True)
class Dataset:
  """What `registry.register` registers; its arguments are told there.

  Attributes:
    name: of the dataset.
    questions, passages, teacher, prompts, exemplars, published: as registered.
    vocabulary_path, extra_ids, passages_in_prompt: as registered.
    seed, source: what functions are called with; `registry.load` sets them.
    module: the file that registers the dataset, where it was loaded from one.
    knowledge: passages that stand for the dataset's own; `registry.load` sets it.
    place: where the files are; `locate` sets it.
  """

  name: str
  questions: PathLike | QuestionsOf
  passages: PathLike | PassagesOf
  teacher: PathLike | TeacherOf | None = None
  prompts: Prompts = Prompts()
  exemplars: tuple[Exemplar, ...] = ()
  published: tuple[tuple[str, int], ...] = ()
  vocabulary_path: PathLike = "vocabulary/sentencepiece.model"
  extra_ids: int = 0
  passages_in_prompt: int = 1
  seed: int = dataclasses.field(default=0, compare=False)
  source: str | None = dataclasses.field(default=None, compare=False)
  module: str | None = dataclasses.field(default=None, compare=False)
  knowledge: str | None = dataclasses.field(default=None, compare=False)
  place: Place = dataclasses.field(default_factory=Place, compare=False)

  def locate(self, workdir: PathLike) -> Dataset:
    """Tells the tasks where the dataset's files are. They are read again after this.

    Args:
      workdir: the work directory.

    Returns:
      the dataset.
    """
    self.place.workdir = workdir
    self.vocabulary.forget()
    return self

  def use(self, vocabulary: PathLike | None = None, k: int | None = None) -> Dataset:
    """Takes another vocabulary, or number of passages in a prompt, than were registered.

    Args:
      vocabulary: a SentencePiece model, a tokenizer.json, a Hugging Face model's folder or its name
        on the Hub; None is the registered one.
      k: passages in a prompt; None is the registered number.

    Returns:
      the dataset.

    Raises:
      InputError: k is below 1.
    """
    if k is not None and k < 1:
      raise InputError(f"{self.name}: {k} passages in a prompt; at least 1 is needed")
    self.place.vocabulary = vocabulary
    self.place.k = k
    self.vocabulary.forget()
    return self

  @property
  def workdir(self) -> epath.Path:
    """The work directory.

    Raises:
      InputError: nobody said where it is.
    """
    if self.place.workdir is None:
      raise InputError(
        f"the dataset {self.name!r} has no work directory yet: call tasks.registry.locate("
        f"{self.name!r}, workdir), or give register(..., workdir=)"
      )
    return epath.Path(self.place.workdir)

  @property
  def k(self) -> int:
    """Passages in a student's prompt."""
    return self.passages_in_prompt if self.place.k is None else self.place.k

  @property
  def vocabulary(self) -> Vocabulary:
    """The vocabulary of all tasks; its file is read at the first use."""
    if self.place.pieces is None:
      self.place.pieces = Vocabulary(lambda: self.vocabulary_file, self.extra_ids)
    return self.place.pieces

  @property
  def vocabulary_file(self) -> epath.Path:
    """Where the vocabulary is, or will be."""
    if self.place.vocabulary is not None:
      return find_vocabulary(self.place.vocabulary)
    if _is_absolute(self.vocabulary_path):
      return epath.Path(self.vocabulary_path)
    return self.workdir / self.vocabulary_path

  def task(self, kind: str, decoder_only: bool = False) -> str:
    """The name of a SeqIO task: "ft", "kaft", "rd", "kard", "dapt" or "rerank".

    Args:
      kind: one of these.
      decoder_only: whether a decoder-only student reads it; then "dapt" hides no spans.
    """
    kind = "dapt_lm" if kind == "dapt" and decoder_only else kind
    if kind not in KINDS:
      raise InputError(f"{kind!r} is not a task; they are {', '.join(KINDS)}")
    return f"{self.name}_{kind}"

  def task_inputs(self, kind: str) -> list[str]:
    """The files that a task reads: relative to the work directory, or absolute."""
    self.task(kind)  # checks the kind
    if kind in DAPT_KINDS:
      return ["knowledge/passages", *self.vocabulary_inputs]
    names = [f"questions/{split}.jsonl" for split in Workdir(self.workdir).splits()]
    rationale, knowledge = STUDENT_KINDS.get(kind, (True, "candidates"))
    if rationale:
      names.append("rationales.jsonl")
    if knowledge:
      names += [f"{knowledge}.jsonl", "knowledge/passages"]
    return [*names, *self.vocabulary_inputs]

  @property
  def vocabulary_inputs(self) -> list[str]:
    """The vocabulary's files as a stage reads them: relative to the work directory, or absolute."""
    workdir = self.workdir
    return [
      str(path.relative_to(workdir) if path.is_relative_to(workdir) else path)
      for path in vocabularies.input_files(self.vocabulary_file)
    ]

  def inputs(self) -> list[epath.Path]:
    """The files and folders outside the work directory that the dataset is made of, code too."""
    paths: list[epath.Path] = [] if self.module is None else [epath.Path(self.module)]
    if callable(self.questions):
      if tfds_datasets.is_named(self.source):
        paths.append(tfds_datasets.record(str(self.source)))
      elif self.source is not None:
        paths.append(epath.Path(self.source))
    else:
      paths += self._question_files().values()
    if self.knowledge is not None:
      named = tfds_datasets.is_named(self.knowledge)
      paths.append(tfds_datasets.record(self.knowledge) if named else epath.Path(self.knowledge))
    for part in (self.passages if self.knowledge is None else None, self.teacher):
      if part is not None and not callable(part):
        paths.append(epath.Path(part))
    return paths

  def read_questions(self) -> Splits:
    """The questions by split, with what was left out of them.

    With another knowledge base they name no gold passages.

    Raises:
      InputError: a split that is not train, validation or test, none for training, one without
        questions, or an id that two questions share: rationales know questions by their id alone.
    """
    if callable(self.questions):
      splits = self.questions(self.seed, self.source)
    else:
      splits = {name: questions_lib.read(path) for name, path in self._question_files().items()}
    seen: dict[str, str] = {}
    for split, some in splits.items():
      if split not in SPLITS:
        raise InputError(f"{self.name}: {split!r} is not a split; they are {', '.join(SPLITS)}")
      if not some:
        raise InputError(f"{self.name}: the split {split!r} has no question")
      for question in some:
        if question.id in seen:
          raise InputError(
            f"{self.name}: the id {question.id!r} stands in split {seen[question.id]!r} and again "
            f"in {split!r}; every question needs its own"
          )
        seen[question.id] = split
    if "train" not in splits:
      where = "" if callable(self.questions) else f": {epath.Path(self.questions)}/train.jsonl"
      raise InputError(f"{self.name}: there are no training questions{where}")
    order = {split: list(splits[split]) for split in SPLITS if split in splits}
    if self.knowledge is not None:
      order = {
        split: [dataclasses.replace(question, gold=()) for question in some]
        for split, some in order.items()
      }
    if isinstance(splits, Splits):
      return Splits(order, splits.rejected, splits.notes)
    return Splits(order)

  def read_passages(self) -> Iterator[Passage]:
    """The knowledge base.

    Raises:
      InputError: as `kard_jax.retrieval.passages.read`.
    """
    if self.knowledge is not None:
      return _knowledge(self.knowledge)
    if callable(self.passages):
      return iter(self.passages(self.seed, self.source))
    return passages_lib.read(self.passages)

  def make_teacher(self) -> Teacher:
    """The teacher; a file of rationales becomes one that recites it.

    Raises:
      InputError: none was registered, or the file is wrong (`kard_jax.teacher.read_rationales`).
    """
    if self.teacher is None:
      raise InputError(
        f"the dataset {self.name!r} was registered without a teacher; give register(..., teacher=) "
        "a function, or the path of a rationales.jsonl"
      )
    if callable(self.teacher):
      return self.teacher(self.seed, self.source)
    questions = [question for some in self.read_questions().values() for question in some]
    rows = teacher_lib.read_rationales(self.teacher, questions)
    return Reciter.of(rows, self.prompts)

  def _question_files(self) -> dict[str, epath.Path]:
    assert not callable(self.questions)
    folder = epath.Path(self.questions)
    paths = {split: folder / f"{split}.jsonl" for split in SPLITS}
    return {split: path for split, path in paths.items() if path.exists()}


def _knowledge(source: str) -> Iterator[Passage]:
  if tfds_datasets.is_named(source):
    return wikipedia.read(source, words=KNOWLEDGE_WORDS)
  return readers.open_corpus(source)


def _is_absolute(path: PathLike) -> bool:
  return "://" in str(path) or os.path.isabs(path)


def find_vocabulary(vocabulary: PathLike) -> epath.Path:
  """A path from the current directory, or the folder of a model that is known by name."""
  path = epath.Path(vocabulary if _is_absolute(vocabulary) else os.path.abspath(vocabulary))
  is_name = _HUB_NAME.fullmatch(str(vocabulary)) and path.suffix not in (".model", ".json")
  return epath.Path(hub.find(vocabulary)) if is_name and not path.exists() else path


@dataclasses.dataclass(frozen=True)
class Reciter:
  """A teacher that gives back the rows of a rationales.jsonl.

  Such rows hold no answers. A row that is kept vouches for the gold one, which is stated anew; the
  others state none.

  Attributes:
    rationales: question id -> (rationale, kept), by sample.
    prompts: how an answer is stated.
    name: who wrote them.
  """

  rationales: Mapping[str, Sequence[tuple[str, bool]]]
  prompts: Prompts
  name: str

  @classmethod
  def of(cls, rows: Iterable[Mapping[str, object]], prompts: Prompts) -> Reciter:
    """Makes one of the rows that `kard_jax.teacher.read_rationales` gives."""
    rationales: dict[str, list[tuple[str, bool]]] = {}
    names: dict[str, None] = {}
    for row in sorted(rows, key=lambda row: int(str(row["sample"]))):
      entry = (str(row["rationale"]), bool(row["kept"]))
      rationales.setdefault(str(row["question_id"]), []).append(entry)
      names[str(row["teacher"])] = None
    return cls(rationales, prompts, ", ".join(names))

  def __call__(self, question: Question, samples: int) -> list[str]:
    """The first `samples` rationales of the question; none where the file has none."""
    return [
      self.prompts.student_target(question, rationale) if kept else rationale
      for rationale, kept in self.rationales.get(question.id, ())[:samples]
    ]
