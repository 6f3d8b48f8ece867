"""Rerankers as functions of texts: one that a recipe trained, or a cross-encoder from elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import numpy as np
from etils import epath

from kard_jax.convert import cross_encoder as convert
from kard_jax.convert import initial, source
from kard_jax.core import progress as progress_lib
from kard_jax.core.files import InputError
from kard_jax.core.objective import Params
from kard_jax.core.partitioning import Partitioner
from kard_jax.reranker import score as score_lib
from kard_jax.reranker import store
from kard_jax.reranker.network import LateInteraction
from kard_jax.retrieval.passages import Passage, Passages
from tasks import registry, vocabularies

_AT_ONCE = 1024  # passages read and tokenised together
Ids = Sequence[Sequence[str]]
Progress = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class Ranker:
  """A network with parameters and a vocabulary: texts in, scores out.

  Attributes:
    network: scores candidates.
    params: its parameters, unboxed, adapters merged.
    vocabulary: reads texts.
    query_length: tokens of a question that are read.
    passage_length: tokens of a passage that are read.
    partitioner: mesh and rules; None: the first device alone.
  """

  network: Any
  params: Params
  vocabulary: vocabularies.Vocabulary
  query_length: int
  passage_length: int
  partitioner: Partitioner | None = None

  def __call__(
    self, queries: Sequence[str], lists: Sequence[Sequence[str]], progress: Progress
  ) -> list[np.ndarray]:
    """Scores of each query's candidates.

    Args:
      queries: what is read of the questions.
      lists: what is read of each one's candidates.
      progress: called with how many candidates have got their score since the last call.
    """
    distinct = list(dict.fromkeys(text for texts in lists for text in texts))
    known = dict(zip(distinct, self._tokens(distinct, self.passage_length), strict=True))
    return score_lib.rerank_scores(
      self.network,
      self.params,
      self._tokens(queries, self.query_length),
      [[known[text] for text in texts] for texts in lists],
      partitioner=self.partitioner,
      progress=progress,
    )

  def by_ids(
    self, folder: epath.PathLike, passages: Passages, text: Callable[[Passage], str]
  ) -> Callable[[Sequence[str], Ids, Progress], list[np.ndarray]]:
    """As the ranker itself, for passages by their ids, see the function of this name."""
    score = by_ids(
      folder,
      passages,
      network=self.network,
      params=self.params,
      tokens=lambda texts: self._tokens(texts, self.passage_length),
      text=text,
      passage_length=self.passage_length,
      partitioner=self.partitioner,
    )
    return lambda queries, lists, progress: score(
      self._tokens(queries, self.query_length), lists, progress
    )

  def _tokens(self, texts: Sequence[str], length: int) -> list[np.ndarray]:
    rows = vocabularies.encode(self.vocabulary, texts, length)
    return [row[row != self.vocabulary.pad_id] for row in rows]


def by_ids(
  folder: epath.PathLike,
  passages: Passages,
  *,
  network: nn.Module,
  params: Params,
  tokens: Callable[[Sequence[str]], list[np.ndarray]],
  text: Callable[[Passage], str],
  passage_length: int,
  partitioner: Partitioner | None = None,
) -> Callable[[Sequence[score_lib.Tokens], Ids, Progress], list[np.ndarray]]:
  """What scores a knowledge base's passages by its stored vectors, which are computed once.

  Args:
    folder: local; it is made, and replaced where it is of other parameters or passages.
    passages: the knowledge base.
    network: compares encoded sides.
    params: its parameters, unboxed, adapters merged.
    tokens: token ids of texts, cut to `passage_length`, without padding.
    text: what a reranker reads of a passage.
    passage_length: tokens of a passage that are read.
    partitioner: mesh and rules; None: the first device alone.

  Returns:
    a function of questions' token ids, the ids of their candidates and what counts these, that
    gives scores.

  Raises:
    InputError: the network must see both sides at once.
  """
  if not isinstance(network, LateInteraction):
    raise InputError(
      f"{folder}: a network.{type(network).__name__} reads question and passage together, so that "
      "nothing of a passage can be stored; use network.LateInteraction, or no VECTORS"
    )
  opened = _opened(folder, passages, passage_length, params)
  if opened is None:
    parts = (passages[at : at + _AT_ONCE] for at in range(0, len(passages), _AT_ONCE))
    rows = (row for some in parts for row in tokens([text(passage) for passage in some]))
    corpus = _corpus(passages, passage_length)
    with progress_lib.candidates(len(passages)) as advance:
      count = store.write(
        folder, network, params, rows, corpus=corpus, partitioner=partitioner, progress=advance
      )
    opened = store.Store(folder)
    print(f"{count:>7,} passages encoded: {folder}, {opened.vectors.nbytes:,} bytes", flush=True)
  vectors = opened

  def score(
    queries: Sequence[score_lib.Tokens], lists: Ids, progress: Progress
  ) -> list[np.ndarray]:
    positions = [[passages.position(id) for id in some] for some in lists]
    return vectors.rerank_scores(
      network, params, queries, positions, partitioner=partitioner, progress=progress
    )

  return score


def _opened(
  folder: epath.PathLike, passages: Passages, length: int, params: Params
) -> store.Store | None:
  if not epath.Path(folder).exists():
    return None
  found = store.Store(folder)
  if found.fits(params, _corpus(passages, length)):
    return found
  print(f"{folder}: of another reranker or of other passages; made again", flush=True)
  return None


def _corpus(passages: Passages, length: int) -> str:
  return f"{passages.corpus} {length}"


def trained(
  folder: epath.PathLike,
  dataset: registry.Dataset,
  *,
  network: nn.Module,
  partitioner: Partitioner,
  query_length: int,
  passage_length: int,
  checkpoint: str = "best",
) -> Ranker:
  """A reranker of a recipe.

  Args:
    folder: of its checkpoints.
    dataset: whose vocabulary.
    network: as it was trained.
    partitioner: mesh and rules.
    query_length: tokens of a question that are read.
    passage_length: tokens of a passage that are read.
    checkpoint: "best" or "latest".

  Raises:
    InputError: no checkpoint, or one of another network.
  """
  inputs = [np.zeros((1, query_length), np.int32), np.zeros((1, 1, passage_length), np.int32)]
  params = initial.load(initial.find(folder, which=checkpoint), network, partitioner, inputs)
  lengths = query_length, passage_length
  return Ranker(network, params, dataset.vocabulary, *lengths, partitioner)


def cross_encoder(model: str, query_length: int, passage_length: int) -> Ranker:
  """A cross-encoder from a Hugging Face folder, or by its name on the Hub.

  Raises:
    InputError: it cannot be loaded, or has no tokenizer.
  """
  network, params = convert.load(model)
  vocabulary = vocabularies.Vocabulary(str(source.find(model)))
  return Ranker(network, params, vocabulary, query_length, passage_length)
