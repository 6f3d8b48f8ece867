"""Registers a dataset in one call: its SeqIO tasks, and what launchers need to make its files.

Stages ask a dataset for questions, passages and a teacher, and write what comes of them into a work
directory; the tasks read it from there.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib
import importlib.util
import pathlib
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import seqio

from kard_jax import questions as questions_lib
from kard_jax.core.files import InputError, PathLike
from kard_jax.exemplars import Exemplar
from kard_jax.prompts import Prompts
from tasks import dapt, features, metrics
from tasks.dataset import (
  DAPT_KINDS,
  KINDS,
  STUDENT_KINDS,
  Dataset,
  PassagesOf,
  QuestionsOf,
  TeacherOf,
)
from tasks.sources import RerankSource, StudentSource

_NAME = re.compile(r"[a-z][a-z0-9_]*")

_DATASETS: dict[str, Dataset] = {}
_OF_TASK: dict[str, Dataset] = {}


def register(
  name: str,
  *,
  questions: PathLike | QuestionsOf,
  passages: PathLike | PassagesOf,
  teacher: PathLike | TeacherOf | None = None,
  prompts: Prompts = Prompts(),
  exemplars: Sequence[Exemplar] = (),
  published: Mapping[str, int] = {},
  vocabulary: PathLike = "vocabulary/sentencepiece.model",
  extra_ids: int = 0,
  k: int = 1,
  workdir: PathLike | None = None,
) -> Dataset:
  """Registers a dataset and its tasks `<name>_ft`, `_kaft`, `_rd`, `_kard`, `_rerank`, `_dapt`.

  Nothing is read yet. A function is called with a seed and a source, which `load` is told.

  Args:
    name: lower case letters, digits and underscores.
    questions: a folder with train.jsonl and perhaps validation.jsonl and test.jsonl; or a function
      that gives questions by split.
    passages: a .jsonl file, or a function that gives the passages.
    teacher: a function that gives a teacher, or the path of a rationales.jsonl.
    prompts: the templates.
    exemplars: solved examples, for the prompts of a teacher, a judge and the few-shot baselines.
    published: questions by split as the release's paper counts them, to compare with.
    vocabulary: a SentencePiece model, tokenizer.json or folder of a Hugging Face model, in the work
      directory unless absolute.
    extra_ids: sentinels behind a SentencePiece model's pieces (T5's own: 100).
    k: passages in a student's prompt.
    workdir: the work directory, if it is known already; `locate` tells it later.

  Returns:
    the dataset, as `get` will.

  Raises:
    InputError: the name cannot be a task's, or is taken. The same registration again, as when a
      module is imported twice, is no error: it takes the place of the first.
  """
  _check_name(name)
  if k < 1:
    raise InputError(f"register({name!r}): {k} passages in a prompt; at least 1 is needed")
  _check_exemplars(name, prompts, exemplars)
  dataset = Dataset(
    name,
    questions,
    passages,
    teacher,
    prompts,
    tuple(exemplars),
    tuple(published.items()),
    vocabulary,
    extra_ids,
    k,
  )
  old = _DATASETS.get(name)
  if old is not None:
    if _fingerprint(old) != _fingerprint(dataset):
      raise InputError(
        f"register({name!r}): another dataset has this name; choose a new one, or call "
        f"tasks.registry.unregister({name!r}) first"
      )
    dataset = dataclasses.replace(dataset, place=old.place)
    unregister(name)
  for kind in KINDS:
    _check_free(f"{name}_{kind}")
  if workdir is not None:
    dataset.place.workdir = workdir
  _DATASETS[name] = dataset
  for kind in KINDS:
    _add_task(dataset, kind)
  return dataset


def get(name: str) -> Dataset:
  """The dataset of a name.

  Raises:
    InputError: there is none; names like it are told.
  """
  if name not in _DATASETS:
    raise InputError(f"no dataset is registered as {name!r}{_near(name, _DATASETS)}")
  return _DATASETS[name]


def load(
  name: str,
  *,
  module: str | None = None,
  source: str | None = None,
  seed: int = 0,
  vocabulary: PathLike | None = None,
  k: int | None = None,
  knowledge: str | None = None,
) -> Dataset:
  """Imports the module that registers a dataset, and gives the dataset; the way in for gin.

  Args:
    name: of the dataset.
    module: a Python file, or a module's name; by default `tasks.<name>`, unless the dataset is
      registered already.
    source: the folder of its raw files, for functions that read them; for some an archive of it, or
      a name of TensorFlow Datasets (`tfds:openbookqa`).
    seed: for functions that make something up.
    vocabulary: another than the registered one: a SentencePiece model, a tokenizer.json, a Hugging
      Face model's folder, or its name on the Hub.
    k: another number of passages in a prompt than the registered one.
    knowledge: another knowledge base: a file or folder as `readers.open_corpus` takes it, or a name
      of TensorFlow Datasets with the feature "text", which is cut into blocks of a hundred words.
      Questions name no gold passages then.

  Raises:
    InputError: no such module, or it does not register the name.
  """
  if module is None:
    if name not in _DATASETS and importlib.util.find_spec(f"tasks.{name}"):
      importlib.import_module(f"tasks.{name}")
  else:
    _import(module)
  if module is not None and name not in _DATASETS:
    there = ", ".join(names())
    raise InputError(f"{module} does not register {name!r}; registered are: {there or 'none'}")
  file = module if module is not None and module.endswith(".py") else None
  dataset = dataclasses.replace(
    get(name), source=source, seed=seed, module=file, knowledge=knowledge
  )
  dataset.use(vocabulary, k)
  return dataset


def names() -> list[str]:
  """The names of all datasets."""
  return sorted(_DATASETS)


def locate(name: str, workdir: PathLike) -> Dataset:
  """Tells a dataset's tasks where its files are: `Dataset.locate`, by name."""
  return get(name).locate(workdir)


def unregister(name: str) -> None:
  """Removes a dataset and its tasks; a mixture that was made of them keeps them."""
  get(name)
  del _DATASETS[name]
  for kind in KINDS:
    seqio.TaskRegistry.remove(f"{name}_{kind}")
    _OF_TASK.pop(f"{name}_{kind}", None)


def register_mixture(
  name: str, datasets: Sequence[str], rates: Sequence[float | int] | None = None
) -> None:
  """Registers the mixtures `<name>_ft` to `<name>_rerank` over datasets.

  Args:
    name: as a dataset's.
    datasets: names of registered datasets, which must share one vocabulary.
    rates: how often each is drawn, in proportion; by default its number of training examples.

  Raises:
    InputError: a name is unknown or taken, or the rates do not fit.
  """
  _check_name(name)
  if not datasets or len(set(datasets)) != len(datasets):
    raise InputError(f"register_mixture({name!r}): name one or more datasets, each once")
  if rates is not None and (len(rates) != len(datasets) or min(rates) <= 0):
    raise InputError(f"register_mixture({name!r}): each dataset needs one positive rate")
  for dataset in datasets:
    get(dataset)
  for kind in KINDS:
    _check_free(f"{name}_{kind}")
  chosen: Sequence[Any] = [_training_examples] * len(datasets) if rates is None else rates
  for kind in KINDS:
    tasks = [f"{dataset}_{kind}" for dataset in datasets]
    seqio.MixtureRegistry.add(f"{name}_{kind}", list(zip(tasks, chosen, strict=True)))


def provider(task: str) -> seqio.Task | seqio.Mixture:
  """The SeqIO task or mixture of a name.

  Raises:
    InputError: there is none; names like it are told.
  """
  known = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
  if task not in known:
    raise InputError(f"no task is registered as {task!r}{_near(task, known)}")
  return seqio.get_mixture_or_task(task)


def datasets_of(task: str) -> list[Dataset]:
  """The datasets behind a task or mixture: those that have to be located."""
  return [
    _OF_TASK[part.name] for part in seqio.get_subtasks(provider(task)) if part.name in _OF_TASK
  ]


def _add_task(dataset: Dataset, kind: str) -> None:
  if kind == "rerank":
    seqio.TaskRegistry.add(
      dataset.task(kind),
      RerankSource(lambda: dataset.workdir, dataset.prompts),
      output_features=features.rerank_features(dataset.vocabulary),
      preprocessors=list(features.RERANK_PREPROCESSORS),
      task_cls=features.RerankTask,
    )
  elif kind in DAPT_KINDS:
    decodes = kind == "dapt_lm"
    features_of = features.student_features(dataset.vocabulary)
    seqio.TaskRegistry.add(
      dataset.task(kind),
      dapt.PassageSource(lambda: dataset.workdir, dataset.prompts),
      output_features={"targets": features_of["targets"]} if decodes else features_of,
      preprocessors=list(dapt.DECODER_PREPROCESSORS if decodes else dapt.SPAN_PREPROCESSORS),
    )
  else:
    rationale, knowledge = STUDENT_KINDS[kind]
    seqio.TaskRegistry.add(
      dataset.task(kind),
      StudentSource(
        lambda: dataset.workdir,
        dataset.prompts,
        rationale=rationale,
        knowledge=knowledge,
        k=lambda: dataset.k,
      ),
      output_features=features.student_features(dataset.vocabulary),
      preprocessors=list(features.STUDENT_PREPROCESSORS),
      postprocess_fn=metrics.postprocessor(dataset.prompts),
      metric_fns=[metrics.accuracy],
    )
  _OF_TASK[dataset.task(kind)] = dataset


def _import(module: str) -> None:
  """Imports a module by name, or a file by path, once."""
  path = pathlib.Path(module)
  try:
    if path.suffix != ".py":
      importlib.import_module(module)
      return
    name = f"kard_dataset_{path.stem}_{hashlib.sha256(bytes(path.resolve())).hexdigest()[:8]}"
    if name in sys.modules:
      return
    spec = importlib.util.spec_from_file_location(name, path)
    if not path.exists() or spec is None or spec.loader is None:
      raise InputError(f"{module}: no such file; it should register the dataset")
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found
    try:
      spec.loader.exec_module(found)
    except BaseException:
      del sys.modules[name]
      raise
  except ModuleNotFoundError as error:
    raise InputError(f"{module}: cannot be imported ({error})") from None


def _training_examples(task: seqio.Task) -> float:
  return float(task.num_input_examples("train") or 0)


def _check_name(name: str) -> None:
  if not _NAME.fullmatch(name):
    raise InputError(f"{name!r} cannot name a dataset: lower case letters, digits and _ only")


def _check_exemplars(name: str, prompts: Prompts, exemplars: Sequence[Exemplar]) -> None:
  """A prompt states each answer itself, after the rationale."""
  for number, exemplar in enumerate(exemplars):
    where = f"register({name!r}): exemplar {number}"
    questions_lib.parse(exemplar.question.to_json(), where)
    if not exemplar.rationale.strip():
      raise InputError(f"{where} has no rationale")
    read = prompts.parse(exemplar.rationale, exemplar.question.options)
    if read.rationale != exemplar.rationale.strip():
      raise InputError(
        f"{where}: the rationale must end before the statement of the answer, which prompts add; "
        f"it ends in {exemplar.rationale[-40:]!r}"
      )


def _check_free(task: str) -> None:
  if task in seqio.TaskRegistry.names() or task in seqio.MixtureRegistry.names():
    raise InputError(f"SeqIO has a task or mixture called {task!r} already; choose another name")


def _near(name: str, known: Iterable[str]) -> str:
  near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
  if near:
    return f"; did you mean {' or '.join(near)}?"
  return "; is its module imported?"


def _fingerprint(dataset: Dataset) -> tuple[Any, ...]:
  """What two registrations must share to be the same; a function is known by where it stands."""
  fields = [getattr(dataset, field.name) for field in dataclasses.fields(dataset) if field.compare]
  return tuple(
    (value.__code__.co_filename, value.__qualname__) if hasattr(value, "__code__") else value
    for value in fields
  )
