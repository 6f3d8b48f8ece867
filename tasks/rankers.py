"""Rerankers as functions of texts: one that a recipe trained, or a cross-encoder from elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import numpy as np
from etils import epath

from kard_jax.convert import cross_encoder as convert
from kard_jax.convert import initial, source
from kard_jax.core.objective import Params
from kard_jax.core.partitioning import Partitioner
from kard_jax.reranker import score as score_lib
from tasks import registry, vocabularies

# Queries, the texts of their candidates, and what counts candidates -> scores.
Score = Callable[[Sequence[str], Sequence[Sequence[str]], Callable[[int], None]], list[np.ndarray]]


def trained(
  folder: epath.PathLike,
  dataset: registry.Dataset,
  *,
  network: nn.Module,
  partitioner: Partitioner,
  query_length: int,
  passage_length: int,
  checkpoint: str = "best",
) -> Score:
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
  return _scoring(network, params, dataset.vocabulary, *lengths, partitioner)


def cross_encoder(model: str, query_length: int, passage_length: int) -> Score:
  """A cross-encoder from a Hugging Face folder, or by its name on the Hub.

  Raises:
    InputError: it cannot be loaded, or has no tokenizer.
  """
  network, params = convert.load(model)
  vocabulary = vocabularies.Vocabulary(str(source.find(model)))
  return _scoring(network, params, vocabulary, query_length, passage_length, None)


def _scoring(
  network: Any,
  params: Params,
  vocabulary: vocabularies.Vocabulary,
  query_length: int,
  passage_length: int,
  partitioner: Partitioner | None,
) -> Score:
  def tokens(texts: Sequence[str], length: int) -> list[np.ndarray]:
    rows = vocabularies.encode(vocabulary, texts, length)
    return [row[row != vocabulary.pad_id] for row in rows]

  def score(
    queries: Sequence[str], lists: Sequence[Sequence[str]], progress: Callable[[int], None]
  ) -> list[np.ndarray]:
    distinct = list(dict.fromkeys(text for texts in lists for text in texts))
    known = dict(zip(distinct, tokens(distinct, passage_length), strict=True))
    return score_lib.rerank_scores(
      network,
      params,
      tokens(queries, query_length),
      [[known[text] for text in texts] for texts in lists],
      partitioner=partitioner,
      progress=progress,
    )

  return score
