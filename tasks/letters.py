"""The letters of options as tokens: which of them a language model expects next."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import seqio

from kard_jax.core import next_token
from kard_jax.core.files import InputError
from kard_jax.core.objective import Params
from kard_jax.core.partitioning import Partitioner
from kard_jax.judge import LetterScores
from kard_jax.questions import LETTERS
from tasks import features, vocabularies

_TAIL = "the answer is"  # words before a letter, where both are one text


class LetterTokens(NamedTuple):
  """The tokens that tell letters apart.

  Attributes:
    before: what all letters begin with.
    ids: the token of A, of B, and so on, as far as the vocabulary has different ones.
  """

  before: tuple[int, ...]
  ids: tuple[int, ...]

  @classmethod
  def of(cls, vocabulary: seqio.Vocabulary, decoder_only: bool) -> LetterTokens:
    """Finds them: at the beginning of a text, or in a text, after a space.

    Raises:
      InputError: not even A and B differ.
    """
    bare = list(vocabulary.encode(_TAIL)) if decoder_only else []
    pieces = []
    for letter in LETTERS:
      whole = list(vocabulary.encode(f"{_TAIL} {letter}" if decoder_only else letter))
      if whole[: len(bare)] != bare:
        break
      pieces.append(whole[len(bare) :])
    shared = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(*pieces[:2], strict=False))
    before = [token for token, _ in shared] if len(pieces) > 1 else []
    ids: list[int] = []
    for piece in pieces:
      rest = piece[len(before) :]
      unknown = not rest or rest[0] in ids or rest[0] == vocabulary.unk_id
      if piece[: len(before)] != before or unknown:
        break
      ids.append(rest[0])
    if len(ids) < 2:
      raise InputError(
        "the judge's vocabulary has no tokens that tell the letters of options apart; take a model "
        "with another one (JUDGE_VOCABULARY)"
      )
    return cls(tuple(before), tuple(ids))


def scorer(
  vocabulary: seqio.Vocabulary,
  network: nn.Module,
  params: Params,
  *,
  input_length: int,
  batch_size: int = 64,
  partitioner: Partitioner | None = None,
) -> LetterScores:
  """A language model as what a judge asks.

  Args:
    vocabulary: the model's.
    network: the model.
    params: unboxed, in the partitioner's shardings.
    input_length: tokens of a prompt that are read; what is longer loses its beginning, where the
      examples stand.
    batch_size: prompts read together.
    partitioner: the mesh.

  Raises:
    InputError: as `LetterTokens.of`.
  """
  decoder_only = features.is_decoder_only(network)
  letters = LetterTokens.of(vocabulary, decoder_only)

  def scores(prompts: Sequence[str]) -> list[list[float]]:
    # A space before a letter is part of the letter's token.
    texts = [prompt.rstrip() for prompt in prompts]
    found = vocabularies.tokens(vocabulary, texts, end=not decoder_only)
    # A BOS that stands first stays first.
    first = len(getattr(vocabulary, "prefix", ()))
    rows = []
    for row in range(len(texts)):
      tokens = found[row].tolist()
      cut = max(0, len(tokens) - input_length)
      rows.append(tokens[:first] + tokens[first + cut :])
    return next_token.log_probs(
      network,
      params,
      rows,
      letters.ids,
      forced=letters.before,
      batch_size=batch_size,
      partitioner=partitioner,
    ).tolist()

  return scores
