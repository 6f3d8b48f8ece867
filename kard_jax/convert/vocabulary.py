"""Whether a folder's tokenizer fits its embedding table."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from kard_jax.convert.source import Source
from kard_jax.core.files import InputError


def check(source: Source) -> None:
  """Refuses a tokenizer with ids that the table does not have.

  Fewer ids than rows are common: tables are padded to shard well.

  Raises:
    InputError: an id is too large, or a tokenizer's file cannot be read.
  """
  rows = source.config.size("vocab_size", 1 << 31)
  for name, count in (
    ("tokenizer.json", _tokenizers),
    ("spiece.model", _pieces),
    ("vocab.json", _dictionary),
    ("added_tokens.json", _dictionary),
    ("vocab.txt", _lines),
  ):
    file = source.folder / name
    if not file.is_file():
      continue
    try:
      ids = count(file)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
      raise InputError(
        f"{file}: not a tokenizer that can be read ({type(error).__name__}: {error}); download it "
        "again"
      ) from None
    if ids > rows:
      raise InputError(
        f"{file}: has ids up to {ids - 1}, and {source.config.file.name} a vocab_size of {rows}; "
        "it is another model's tokenizer, or the table must be resized to it before conversion"
      )


def _tokenizers(file: pathlib.Path) -> int:
  values: Any = json.loads(file.read_bytes())
  vocab = values["model"]["vocab"]
  last = [len(vocab) - 1] if isinstance(vocab, list) else list(vocab.values())
  last += [token["id"] for token in values.get("added_tokens") or ()]
  return max(last, default=-1) + 1


def _pieces(file: pathlib.Path) -> int:
  import sentencepiece  # only where there is such a file

  processor = sentencepiece.SentencePieceProcessor()
  processor.Load(str(file))
  return processor.GetPieceSize()


def _dictionary(file: pathlib.Path) -> int:
  return max(json.loads(file.read_bytes()).values(), default=-1) + 1


def _lines(file: pathlib.Path) -> int:
  return len(file.read_text(encoding="utf-8").splitlines())
