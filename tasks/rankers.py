"""Rerankers as functions of texts: one that a recipe trained, or a cross-encoder from elsewhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
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

  def by_vectors(
    self,
    vectors: store.Store,
    queries: Sequence[str],
    positions: Sequence[Sequence[int]],
    progress: Progress,
  ) -> list[np.ndarray]:
    """As calling it, for passages by their position in what `vectors` gave."""
    return vectors.rerank_scores(
      self.network,
      self.params,
      self._tokens(queries, self.query_length),
      [np.asarray(some, np.int64) for some in positions],
      partitioner=self.partitioner,
      progress=progress,
    )

  def vectors(
    self, folder: epath.PathLike, passages: Passages, text: Callable[[Passage], str]
  ) -> store.Store:
    """The vectors of a knowledge base: opened, or made where the folder has not these.

    Args:
      folder: local; it is made, and replaced where it is of other parameters or passages.
      passages: the knowledge base.
      text: what a reranker reads of a passage.

    Raises:
      InputError: the network must see both sides at once.
    """
    if not isinstance(self.network, LateInteraction):
      raise InputError(
        f"{folder}: a network.{type(self.network).__name__} reads question and passage together, "
        "so that nothing of a passage can be stored; use network.LateInteraction"
      )
    corpus = f"{passages.corpus} {self.passage_length}"
    place = epath.Path(folder)
    if place.exists():
      found = store.Store(place)
      if found.fits(self.params, corpus):
        return found
      print(f"{place}: of another reranker or of other passages; made again", flush=True)
    with progress_lib.candidates(len(passages)) as advance:
      store.write(
        place,
        self.network,
        self.params,
        self._of_passages(passages, text),
        corpus=corpus,
        partitioner=self.partitioner,
        progress=advance,
      )
    found = store.Store(place)
    print(f"{len(found):>7,} passages encoded: {place}, {found.vectors.nbytes:,} bytes", flush=True)
    return found

  def _of_passages(
    self, passages: Passages, text: Callable[[Passage], str]
  ) -> Iterator[np.ndarray]:
    for start in range(0, len(passages), _AT_ONCE):
      some = passages[start : start + _AT_ONCE]
      yield from self._tokens([text(passage) for passage in some], self.passage_length)

  def _tokens(self, texts: Sequence[str], length: int) -> list[np.ndarray]:
    rows = vocabularies.encode(self.vocabulary, texts, length)
    return [row[row != self.vocabulary.pad_id] for row in rows]


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
