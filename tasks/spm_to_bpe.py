"""A SentencePiece model of byte pairs (Llama's tokenizer.model) as a Hugging Face tokenizer.

A SentencePiece model keeps pieces and scores; the other kind keeps the merges, best first. A
piece's merges are all ways to put it together from two pieces, and rank as its score.
"""

from __future__ import annotations

from typing import Any

from etils import epath
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from kard_jax.core.files import InputError

_MODEL: Any = sentencepiece_model_pb2.ModelProto  # type: ignore[attr-defined]  # made at run time
_BPE = 2  # a kind of model, by its number in SentencePiece's protocol buffer
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4  # kinds of piece
_SPACE = "▁"


def convert(
  file: epath.Path, *, first_only: bool = True, space: bool | None = None, exact: bool = False
) -> Tokenizer:
  """Reads a SentencePiece model of byte pairs.

  Args:
    file: the model.
    first_only: the space before a text stands before its first part alone, where special tokens cut
      it; else before every part (Llama's "legacy").
    space: whether there is one; None is what the model says.
    exact: a text that begins with a space gets another, as SentencePiece does and Llama's class in
      transformers 5 does not.

  Raises:
    InputError: not a model, one of another kind, or with steps that Llama's do not have.
  """
  model = _MODEL()
  try:
    model.ParseFromString(file.read_bytes())
  except Exception as error:  # protobuf raises types of its own
    raise InputError(f"{file}: not a SentencePiece model ({error})") from None
  normalizer = model.normalizer_spec
  if model.trainer_spec.model_type != _BPE or normalizer.remove_extra_whitespaces:
    raise InputError(
      f"{file}: SentencePiece models without padding are read where they are byte pairs that keep "
      "all spaces, as Llama's; save the tokenizer again with transformers, which writes a "
      "tokenizer.json"
    )
  vocab = {piece.piece: number for number, piece in enumerate(model.pieces)}
  unknown = next((piece.piece for piece in model.pieces if piece.type == _UNKNOWN), None)
  tokenizer = Tokenizer(
    models.BPE(
      vocab=vocab,
      merges=_merges(model.pieces, vocab),
      unk_token=unknown,
      fuse_unk=True,
      byte_fallback=model.trainer_spec.byte_fallback,
    )
  )
  space = normalizer.add_dummy_prefix if space is None else space
  spell_spaces(tokenizer, first_only=first_only, space=space)
  steps: list[normalizers.Normalizer] = []
  if normalizer.precompiled_charsmap:
    steps.append(normalizers.Precompiled(normalizer.precompiled_charsmap))
  if exact and space:  # Metaspace gives no second space to a text that begins with one
    steps.append(normalizers.Replace(" ", _SPACE))
    steps.append(normalizers.Replace(Regex(rf"\A{_SPACE}"), 2 * _SPACE))
  if steps:
    tokenizer.normalizer = normalizers.Sequence(steps)
  for piece in model.pieces:
    if piece.type in (_CONTROL, _UNKNOWN, _USER_DEFINED):
      special = piece.type != _USER_DEFINED
      tokenizer.add_tokens([AddedToken(piece.piece, normalized=False, special=special)])
  return tokenizer


def spell_spaces(tokenizer: Tokenizer, *, first_only: bool, space: bool) -> None:
  """Makes spaces part of the pieces, and back, as transformers 5 does for Llama.

  Args:
    tokenizer: of byte pairs over characters.
    first_only: as for `convert`.
    space: whether a text that does not begin with a space gets one.
  """
  scheme = ("first" if first_only else "always") if space else "never"
  tokenizer.normalizer = None
  tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme=scheme, split=False)
  steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
  tokenizer.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", left=1)] if space else [])])


def _merges(pieces: Any, vocab: dict[str, int]) -> list[tuple[str, str]]:
  ranked = []
  for number, piece in enumerate(pieces):
    text = piece.piece
    for cut in range(1, len(text)) if piece.type == _NORMAL else ():
      left, right = vocab.get(text[:cut]), vocab.get(text[cut:])
      if left is not None and right is not None:
        ranked.append((-piece.score, number, left, right, cut))
  ranked.sort()
  return [
    (pieces[number].piece[:cut], pieces[number].piece[cut:]) for _, number, _, _, cut in ranked
  ]
