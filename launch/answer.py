"""Answers questions with one method: retrieve, rerank, generate, vote (paper section 3.3).

The method is the gin file's name: `8_answer_kard_bm25.gin` writes `predictions/kard_bm25.jsonl`.

Example:
  python launch/answer.py --gin_file=gin_configs/recipes/quickstart/8_answer_kard_bm25.gin
"""

from __future__ import annotations

if __name__ == "__main__":  # run the module gin can import, with the project's root on the path
  import pathlib
  import sys

  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])
  from kard_jax.core import config

  sys.exit(config.launch("answer", __doc__ or ""))

import dataclasses
import os
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import numpy as np

from kard_jax import answer as answer_lib
from kard_jax import asking, scorecard
from kard_jax import compose as compose_lib
from kard_jax import questions as questions_lib
from kard_jax.answer import Generate, Rerank, Retrieve, Scored, Written
from kard_jax.compose import Compose, Reader
from kard_jax.convert import initial
from kard_jax.core import decode, files, hosts, progress, streaming
from kard_jax.core.files import InputError
from kard_jax.core.objective import Params
from kard_jax.core.partitioning import Partitioner
from kard_jax.core.provenance import Stage
from kard_jax.endpoint import Endpoint
from kard_jax.questions import Question
from kard_jax.reranker import score as reranker_score
from kard_jax.retrieval import bm25 as bm25_lib
from kard_jax.retrieval import index as index_lib
from kard_jax.retrieval import passages as passages_lib
from tasks import dataset as dataset_lib
from tasks import decoder_only, features, rankers, registry, vocabularies


def answer(
  stage: Stage,
  *,
  dataset: registry.Dataset,
  split: str,
  student: Student | Asked,
  retrieve: Callable[[Stage, registry.Dataset, Sequence[Question]], Retrieve] | None = None,
  rerank: Callable[[Stage, registry.Dataset], Rerank] | None = None,
  prompt: FewShot | None = None,
  candidates: int = 100,
  passages: int = 1,
  samples: int = 5,
) -> None:
  """Writes `predictions/<method>.jsonl`; an empty file where the method has nothing to read.

  Args:
    stage: the work directory and the record.
    dataset: whose questions, prompts and vocabulary.
    split: which questions.
    student: writes rationales and answers; or a model behind an endpoint does.
    retrieve: `bm25` or `silver`, given the stage, the dataset and the questions; None answers
      without knowledge.
    rerank: `neural`; None keeps the retriever's order.
    prompt: writes the prompts; None takes those that students are trained with.
    candidates: passages that the reranker sees (the paper's kappa*).
    passages: passages in the prompt (the paper's k*).
    samples: rationales that are drawn; their answers vote.
  """
  dataset.locate(stage.workdir)
  questions = questions_lib.read(stage.reads(f"questions/{split}.jsonl"))
  method = stage.name.removeprefix("answer_")
  output = stage.writes(f"predictions/{method}.jsonl")
  try:
    retriever = retrieve(stage, dataset, questions) if retrieve else None
  except NothingToRead:  # empty, not absent: an earlier run's file must not stay
    files.write_jsonl(output, ())
    print(f"no passage for any question of {split}: {method} is left out", flush=True)
    return
  # Each of several hosts answers its part; an endpoint is asked by one.
  mine = hosts.share(len(questions))
  if isinstance(student, Asked):
    mine = slice(len(questions) if hosts.is_lead() else 0)
  reader = student.reader(dataset)
  compose = prompt(dataset, reader) if prompt else compose_lib.as_trained(dataset.prompts, reader)
  rows = list(
    answer_lib.answer(
      questions[mine],
      prompts=dataset.prompts,
      retrieve=retriever,
      rerank=rerank(stage, dataset) if rerank else None,
      generate=student(stage, dataset, mine.start or 0),
      compose=compose,
      candidates=candidates,
      passages=passages,
      samples=samples,
      batch=2048,  # questions retrieved, reranked and answered at a time
    )
  )
  files.write_jsonl(output, rows)
  whole = stage.joins(f"predictions/{method}.jsonl")
  if not hosts.is_lead():
    return
  rows = [row for _, row in files.read_jsonl(whole)]
  right = sum(row["answer"] == row["label"] for row in rows)
  unparsed = sum(row["answer"] is None for row in rows)
  print(
    f"{method}: {right:,} of {len(rows):,} right ({right / len(rows):.1%}), {unparsed:,} unparsed",
    flush=True,
  )


class NothingToRead(Exception):
  """There is no passage for any of the questions, so the method would be another one."""


def bm25(stage: Stage, dataset: registry.Dataset, questions: Sequence[Question]) -> Retrieve:
  """Retrieves by BM25 with the question as query."""
  del questions  # any can be asked
  stored = passages_lib.Passages(stage.reads("knowledge/passages"))
  index = index_lib.open(stage.reads("knowledge/bm25"), verify=True)
  index_lib.check_corpus(index, stored)

  def retrieve(questions: Sequence[Question], k: int) -> list[list[Scored]]:
    hits = bm25_lib.top_k(index, [dataset.prompts.question_query(q) for q in questions], k)
    found = []
    for ids, scores in zip(hits.ids_BxK, hits.scores_BxK, strict=True):
      some = ids[ids >= 0].tolist()
      found.append(list(map(Scored, stored.many(some), scores[: len(some)].tolist())))
    return found

  return retrieve


def silver(stage: Stage, dataset: registry.Dataset, questions: Sequence[Question]) -> Retrieve:
  """Looks up what BM25 found by a question's first kept rationale: the oracle.

  A question without a kept rationale gets no passage.

  Raises:
    NothingToRead: none of the questions has one.
  """
  del dataset
  stored = passages_lib.Passages(stage.reads("knowledge/passages"))
  first: dict[str, list[dict]] = {}
  for row in scorecard.read_silver(stage.reads("silver.jsonl")):
    first.setdefault(row["question_id"], row["passages"])
  without = sum(not first.get(q.id) for q in questions)
  if without == len(questions):
    raise NothingToRead
  if without:
    print(f"{without:>7,} of {len(questions):,} questions have no silver passage", flush=True)

  def retrieve(questions: Sequence[Question], k: int) -> list[list[Scored]]:
    lists = [first.get(q.id, [])[:k] for q in questions]
    return [[Scored(stored[stored.position(p["id"])], p["score"]) for p in row] for row in lists]

  return retrieve


def neural(
  stage: Stage,
  dataset: registry.Dataset,
  *,
  network: nn.Module,
  folder: str,
  vectors: str | None = None,
  partitioner: Partitioner,
  query_length: int,
  passage_length: int,
  checkpoint: str = "best",
  vocabulary: files.PathLike | None = None,
) -> Rerank:
  """Reranks by a trained network; the arguments after the dataset are gin's.

  Args:
    stage: the work directory and the record.
    dataset: whose prompts and vocabulary.
    network: as it was trained.
    folder: of its checkpoints, below the work directory.
    vectors: folder below the work directory for the vectors of all passages, which are computed
      once and serve every later run; None encodes candidates as they come.
    partitioner: mesh and rules.
    query_length: tokens of a question that are read.
    passage_length: tokens of a passage that are read.
    checkpoint: "best" or "latest".
    vocabulary: another than the student's: a SentencePiece model, a tokenizer.json, a Hugging Face
      model's folder, or its name on the Hub.
  """
  partitioner = partitioner.of_this_host()
  pieces: vocabularies.Vocabulary = dataset.vocabulary
  if vocabulary is None:
    _read_vocabulary(stage, dataset)
  else:
    path = dataset_lib.find_vocabulary(vocabulary)
    stage.reads_outside(vocabularies.input_files(path))
    pieces = vocabularies.Vocabulary(path, dataset.extra_ids)
  query_1xL = np.zeros((1, query_length), np.int32)
  passage_1x1xM = np.zeros((1, 1, passage_length), np.int32)
  params = _restore(stage, folder, network, partitioner, checkpoint, query_1xL, passage_1x1xM)
  known: dict[str, np.ndarray] = {}  # candidates recur from question to question

  def tokens(texts: Sequence[str], length: int) -> list[np.ndarray]:
    rows = vocabularies.encode(pieces, texts, length)
    return [row[row != pieces.pad_id] for row in rows]

  by_ids = None
  if vectors is not None:
    with hosts.lead_first("the passages' vectors"):
      by_ids = rankers.by_ids(
        stage.workdir / vectors,
        passages_lib.Passages(stage.reads("knowledge/passages")),
        network=network,
        params=params,
        tokens=lambda texts: tokens(texts, passage_length),
        text=dataset.prompts.passage_text,
        passage_length=passage_length,
        partitioner=partitioner,
      )

  def encoding(
    queries: list[np.ndarray], lists: Sequence[Sequence[Scored]], advance: Callable[[int], None]
  ) -> list[np.ndarray]:
    new = {s.passage.id: s.passage for row in lists for s in row if s.passage.id not in known}
    texts = [dataset.prompts.passage_text(passage) for passage in new.values()]
    known.update(zip(new, tokens(texts, passage_length), strict=True))
    return reranker_score.rerank_scores(
      network,
      params,
      queries,
      [[known[s.passage.id] for s in row] for row in lists],
      partitioner=partitioner,
      progress=advance,
    )

  def rerank(
    questions: Sequence[Question], lists: Sequence[Sequence[Scored]]
  ) -> list[list[Scored]]:
    queries = tokens([dataset.prompts.reranker_query(q) for q in questions], query_length)
    with progress.candidates(sum(map(len, lists))) as advance:
      if by_ids is not None:
        scores = by_ids(queries, [[s.passage.id for s in row] for row in lists], advance)
      else:
        scores = encoding(queries, lists, advance)
    ranked = []
    for row, row_scores in zip(lists, scores, strict=True):
      order = np.argsort(-row_scores, kind="stable")
      ranked.append([Scored(row[place].passage, float(row_scores[place])) for place in order])
    return ranked

  return rerank


@dataclasses.dataclass(frozen=True)
class FewShot:
  """Prompts that begin with solved examples, for a model that was not trained to answer.

  Attributes:
    rationales: whether the examples show their rationales (chain of thought) or answers alone.
    exemplars: how many of the dataset's.
  """

  rationales: bool
  exemplars: int = 5

  def __call__(self, dataset: registry.Dataset, reader: Reader | None) -> Compose:
    """What writes the prompts of a dataset, as long as their reader can read.

    Raises:
      InputError: the dataset has fewer exemplars.
    """
    there = len(dataset.exemplars)
    if not there:
      raise InputError(
        f"the dataset {dataset.name!r} has no solved examples for few-shot prompts: give "
        "register(..., exemplars=), or leave these methods out (launch/run.py --methods=...)"
      )
    if not 1 <= self.exemplars <= there:
      raise InputError(
        f"EXEMPLARS = {self.exemplars}: the dataset {dataset.name!r} has {there} of them"
      )
    shown = dataset.exemplars[: self.exemplars]
    return compose_lib.few_shot(dataset.prompts, shown, reader, rationales=self.rationales)


@dataclasses.dataclass(frozen=True)
class Student:
  """A student, and how it writes.

  Attributes:
    network: as it was trained.
    folder: of its checkpoints, below the work directory; or, for one that was not distilled, a
      Hugging Face model's folder, or its name on the Hub.
    partitioner: mesh and rules.
    sampler: how tokens are drawn.
    seed: of what is drawn.
    batch_size: questions decoded together.
    input_length: tokens of a prompt that are read; the rest is cut.
    target_length: tokens that are written at most.
    checkpoint: "best" or "latest".
    buckets: lengths that prompts are padded to, see `streaming.write`; empty chooses them.
  """

  network: nn.Module
  folder: str
  partitioner: Partitioner
  sampler: decode.Sampler
  seed: int = 0
  batch_size: int = 64
  input_length: int = 512
  target_length: int = 256
  checkpoint: str = "best"
  buckets: tuple[int, ...] = ()

  def reader(self, dataset: registry.Dataset) -> Reader:
    """How many tokens the student sees in a text, and how many it reads."""
    return Reader(lambda texts: decoder_only.sizes(dataset, self.network, texts), self.input_length)

  def __call__(self, stage: Stage, dataset: registry.Dataset, first: int = 0) -> Generate:
    """Restores the parameters and returns what writes texts for prompts.

    Args:
      stage: the work directory and the record.
      dataset: whose vocabulary.
      first: the place of the first prompt among all questions, which decides its draws.

    Raises:
      InputError: no checkpoint, or one of another network.
    """
    _read_vocabulary(stage, dataset)
    partitioner = self.partitioner.of_this_host()
    inputs_1xL = np.zeros((1, self.input_length), np.int32)
    targets_1xT = np.zeros((1, self.target_length), np.int32)
    params = _restore(
      stage,
      self.folder,
      self.network,
      partitioner,
      self.checkpoint,
      *((inputs_1xL,) if features.is_decoder_only(self.network) else (inputs_1xL, targets_1xT)),
    )
    sampler = dataclasses.replace(
      self.sampler,
      eos_id=dataset.vocabulary.eos_id,
      pad_id=getattr(self.network, "pad_id", dataset.vocabulary.pad_id),
    )
    rng = jax.random.key(self.seed)
    begun = first  # prompts so far: a prompt's place decides its draws, not its batch

    def generate(prompts: Sequence[str], samples: int) -> list[list[Written]]:
      nonlocal begun
      with progress.texts(len(prompts)) as advance:
        decoded = streaming.write(
          self.network,
          params,
          decoder_only.read(dataset, self.network, prompts, self.input_length),
          sampler=sampler,
          max_length=self.target_length,
          samples=samples,
          rng=rng,
          row_ids_N=np.arange(begun, begun + len(prompts), dtype=np.int32),
          batch_size=self.batch_size,
          lengths=self.buckets,
          partitioner=partitioner,
          progress=advance,
        )
      begun += len(prompts)
      flat = decoded.tokens_BxSxT.reshape(-1, self.target_length)
      texts = vocabularies.decode(dataset.vocabulary, flat.tolist())
      scores = decoded.log_probs_BxS.ravel().tolist()
      lengths = decoded.lengths_BxS.ravel().tolist()
      written = list(map(Written, texts, scores, lengths))
      return [written[at : at + samples] for at in range(0, len(written), samples)]

    return generate


@dataclasses.dataclass(frozen=True)
class Asked:
  """A model behind an endpoint, in place of a student.

  Attributes:
    endpoint: who is asked, and how.
  """

  endpoint: Endpoint

  def reader(self, dataset: registry.Dataset) -> None:
    """How many tokens it reads is its own business."""
    del dataset

  def __call__(self, stage: Stage, dataset: registry.Dataset, first: int = 0) -> Generate:
    """Returns what asks; all that was answered stays in `completions/<stage>.jsonl`.

    Raises:
      InputError: when it is called, as `asking.ask`.
    """
    del dataset, first
    return asking.generate(self.endpoint, stage.workdir / f"completions/{stage.name}.jsonl")


def _read_vocabulary(stage: Stage, dataset: registry.Dataset) -> None:
  for path in dataset.vocabulary_inputs:
    stage.reads(path)


def _restore(
  stage: Stage,
  given: str,
  network: nn.Module,
  partitioner: Partitioner,
  checkpoint: str,
  *inputs: np.ndarray,
) -> Params:
  """The parameters of a network, in the shardings of the mesh; adapters are merged."""
  if not os.path.isabs(given) and (stage.workdir / given).exists():
    place = initial.find(stage.reads(given), which=checkpoint)
  else:
    try:
      place = initial.find(given)
    except InputError as error:
      raise InputError(
        f"{stage.workdir / given}: no such folder; run the stages before {stage.name}. As a "
        f"pretrained model: {error}"
      ) from None
    stage.begins_from(place.files())
  return initial.load(place, network, partitioner, inputs)
