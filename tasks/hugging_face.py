"""Hugging Face tokenizers, with the original's ids: what stands in a model's folder.

`tokenizer.json` is taken as it is. Older folders have only the files that their tokenizer class
builds the same from: GPT-2, OPT and Qwen2 from vocab.json and merges.txt, BERT from vocab.txt,
Llama from its SentencePiece model. Special tokens are found as transformers 5 finds them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from etils import epath
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from kard_jax.core.files import InputError
from tasks import spm_to_bpe
from tasks.tokenizer_settings import DEFAULTS, Settings, token_of

# What decides a folder's ids; in a stage's record.
FILES = (
  "tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "added_tokens.json",
  "special_tokens_map.json", "tokenizer_config.json", "generation_config.json", "config.json",
)  # fmt: skip

_CLEAN_UP = (
  (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"),
  (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip
_QWEN2_WORDS = (  # how Qwen2 splits text into words
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
  r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Loaded(NamedTuple):
  """A tokenizer that was read.

  Attributes:
    tokenizer: text to ids, without what is put around a text.
    size: one more than the highest id.
    bos_id, eos_id, unk_id: None where there is none; BERT's are [CLS] and [SEP].
    pad_id: -1 where there is none.
    prefix, suffix: what the original puts before and behind a text.
    clean_up: whether the original takes spaces before punctuation away when it decodes.
    sentinels: ids of <extra_id_0>, <extra_id_1>, ... where the tokenizer has them.
    fingerprint: equal for tokenizers that give equal ids.
  """

  tokenizer: Tokenizer
  size: int
  bos_id: int | None
  eos_id: int
  unk_id: int | None
  pad_id: int
  prefix: tuple[int, ...]
  suffix: tuple[int, ...]
  clean_up: bool
  sentinels: tuple[int, ...]
  fingerprint: str

  def encode(self, texts: Sequence[str]) -> list[list[int]]:
    """Ids of texts, without prefix and suffix."""
    return [one.ids for one in self.tokenizer.encode_batch(list(texts), add_special_tokens=False)]

  def decode(self, ids: Sequence[int]) -> str:
    """The text of ids, without special tokens."""
    text = self.tokenizer.decode(list(ids), skip_special_tokens=True)
    if self.clean_up:
      for old, new in _CLEAN_UP:
        text = text.replace(old, new)
    return text


def load(folder: epath.Path, file: epath.Path | None = None) -> Loaded:
  """Reads a tokenizer and the files beside it.

  Args:
    folder: of the model.
    file: the tokenizer.json, or SentencePiece model, where it is not the folder's own.

  Raises:
    InputError: there is none, one cannot be read, or the files contradict one another.
  """
  settings = Settings.read(folder)
  source, build = _found(folder, file)
  try:
    tokenizer = build(source, settings)
  except InputError:
    raise
  except Exception as error:  # tokenizers raises Exception itself
    reason = " ".join(str(error).split())[:200]
    raise InputError(f"{source}: not a tokenizer that can be read ({reason})") from None
  tokenizer.no_truncation()
  tokenizer.no_padding()
  named = settings.special(tokenizer)
  _add_tokens(tokenizer, settings, named, source)
  ids = {kind: tokenizer.token_to_id(str(token)) for kind, token in named.items()}
  size = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
  for kind in ("bos", "eos", "pad"):
    if kind not in ids and (number := settings.generation(kind)) is not None and number < size:
      ids[kind] = number
  ids = {"bos": ids.get("cls"), "eos": ids.get("sep")} | ids
  if ids["eos"] is None:
    raise InputError(
      f"{source}: no file beside it names the token that ends a text; give tokenizer_config.json "
      'an "eos_token"'
    )
  prefix, suffix = _around(tokenizer, settings, ids)
  pad = ids.get("pad")
  return Loaded(
    tokenizer,
    size,
    ids["bos"],
    ids["eos"],
    ids.get("unk"),
    -1 if pad is None else pad,
    prefix,
    suffix,
    bool(settings.of("clean_up_tokenization_spaces")) and not _is_bpe(tokenizer),
    _sentinels(tokenizer),
    f"{tokenizer.to_str()} {sorted(ids.items(), key=str)} {prefix} {suffix}",
  )


def is_folder_of_t5(folder: epath.Path) -> bool:
  """Whether a folder has T5's own SentencePiece model."""
  return (folder / "spiece.model").exists() and Settings.read(folder).kind == "T5Tokenizer"


def t5_extra_ids(folder: epath.Path) -> int:
  """How many sentinels T5's class puts behind the pieces of its SentencePiece model."""
  return int(Settings.read(folder).of("extra_ids", 100))


def _found(
  folder: epath.Path, file: epath.Path | None
) -> tuple[epath.Path, Callable[[epath.Path, Settings], Tokenizer]]:
  """The file that a tokenizer is made of, and how."""
  if file is not None:
    return file, _from_sentencepiece if file.suffix == ".model" else _from_json
  for name, build in (
    ("tokenizer.json", _from_json),
    ("vocab.json", _from_merges),
    ("vocab.txt", _from_word_pieces),
    ("tokenizer.model", _from_sentencepiece),
  ):
    if (folder / name).exists():
      return folder / name, build
  raise InputError(
    f"{folder}: holds no tokenizer: none of tokenizer.json, spiece.model (T5), vocab.json with "
    "merges.txt (GPT-2, OPT, Qwen2), vocab.txt (BERT), tokenizer.model (Llama)"
  )


def _from_json(file: epath.Path, settings: Settings) -> Tokenizer:
  text = file.read_text(encoding="utf-8")
  tokenizer = Tokenizer.from_str(text)
  if settings.kind == "LlamaTokenizer" and '"ByteLevel"' not in text and _is_bpe(tokenizer):
    # The class takes pieces and merges from the file, and spells spaces in its own way.
    spm_to_bpe.spell_spaces(
      tokenizer,
      first_only=not settings.of("legacy", False),
      space=bool(settings.of("add_prefix_space", True)),
    )
  return tokenizer


def _from_merges(file: epath.Path, settings: Settings) -> Tokenizer:
  """GPT-2's bytes in pairs; Qwen2 splits words in its own way."""
  if settings.kind not in ("GPT2Tokenizer", "Qwen2Tokenizer"):
    raise InputError(
      f"{file}: vocab.json and merges.txt alone are read for GPT2Tokenizer (GPT-2, OPT) and "
      f"Qwen2Tokenizer, and the class here is {settings.kind or 'not named'}; save the tokenizer "
      "again with transformers, which writes a tokenizer.json"
    )
  merges_file = file.parent / "merges.txt"
  if not merges_file.exists():
    raise InputError(f"{merges_file}: no such file; it belongs to {file.name}")
  lines = merges_file.read_text(encoding="utf-8").split("\n")
  merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
  if any(len(merge) != 2 for merge in merges):
    raise InputError(f"{merges_file}: each line must be two pieces with a space between them")
  is_qwen2 = settings.kind == "Qwen2Tokenizer"
  tokenizer = Tokenizer(models.BPE(vocab=json.loads(file.read_text("utf-8")), merges=merges))
  space = bool(settings.of("add_prefix_space", False))
  if is_qwen2:
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
      [
        pre_tokenizers.Split(Regex(_QWEN2_WORDS), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=space, use_regex=False),
      ]
    )
  else:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
  tokenizer.decoder = decoders.ByteLevel()
  return tokenizer


def _from_word_pieces(file: epath.Path, settings: Settings) -> Tokenizer:
  """BERT's pieces, one a line."""
  if settings.kind not in ("BertTokenizer", ""):
    raise InputError(
      f"{file}: vocab.txt alone is read for BertTokenizer, and the class here is {settings.kind}; "
      "save the tokenizer again with transformers, which writes a tokenizer.json"
    )
  lines = file.read_text(encoding="utf-8").split("\n")
  vocab = {
    piece.rstrip("\r"): number
    for number, piece in enumerate(lines[: -1 if not lines[-1] else None])
  }
  unknown = str(DEFAULTS["BertTokenizer"]["unk"])
  tokenizer = Tokenizer(models.WordPiece(vocab=vocab, unk_token=unknown))
  tokenizer.normalizer = normalizers.BertNormalizer(
    clean_text=True,
    handle_chinese_chars=bool(settings.of("tokenize_chinese_chars", True)),
    strip_accents=settings.of("strip_accents"),
    lowercase=bool(settings.of("do_lower_case", True)),
  )
  tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  tokenizer.decoder = decoders.WordPiece(prefix="##")
  return tokenizer


def _from_sentencepiece(file: epath.Path, settings: Settings) -> Tokenizer:
  """Llama's byte pairs in a SentencePiece model."""
  is_llamas = settings.kind == "LlamaTokenizer"
  legacy = bool(settings.of("legacy", not is_llamas))
  space = settings.of("add_prefix_space")
  exact = legacy and not is_llamas
  return spm_to_bpe.convert(file, first_only=not legacy, space=space, exact=exact)


def _add_tokens(
  tokenizer: Tokenizer, settings: Settings, named: Mapping[str, AddedToken], source: epath.Path
) -> None:
  """Adds what the files beside a tokenizer name and it does not have, under the ids they give."""
  wanted = {
    int(id): token_of(value) for id, value in settings.of("added_tokens_decoder", {}).items()
  }
  if not wanted:
    named_texts = {str(token.content) for token in named.values()}
    wanted = {
      id: AddedToken(text, special=text in named_texts, normalized=text not in named_texts)
      for text, id in settings.added.items()
    }
  known = {id: repr(token) for id, token in tokenizer.get_added_tokens_decoder().items()}
  for id, token in sorted(wanted.items()):
    if known.get(id) != repr(token):
      tokenizer.add_tokens([token])
    if tokenizer.token_to_id(token.content) != id:
      raise InputError(
        f"{source}: {token.content!r} has the id {tokenizer.token_to_id(token.content)}, but the "
        f"files beside it say {id}; they are of two tokenizers, or one is incomplete"
      )
  more = settings.of("additional_special_tokens", settings.tokens.get("additional_special_tokens"))
  tokens = [*named.values(), *(token_of(value, special=True) for value in more or ())]
  tokenizer.add_special_tokens([token for token in tokens if token.content])


def _around(
  tokenizer: Tokenizer, settings: Settings, ids: Mapping[str, int | None]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
  """What the original puts before and behind a text.

  The post-processor of tokenizer.json tells. Where there is no such file it is the class that does,
  by `add_bos_token` and `add_eos_token`, which transformers 5 does not look at otherwise.
  """
  if tokenizer.post_processor is None and any(
    name in settings.tokenizer for name in ("add_bos_token", "add_eos_token")
  ):
    bos, eos = ids["bos"], ids["eos"]
    return (
      (bos,) if settings.of("add_bos_token") and bos is not None else (),
      (eos,) if settings.of("add_eos_token") and eos is not None else (),
    )
  if tokenizer.post_processor is None:
    if settings.kind in ("BertTokenizer", "") and isinstance(tokenizer.model, models.WordPiece):
      cls, sep = ids.get("cls"), ids.get("sep")
      return () if cls is None else (cls,), () if sep is None else (sep,)
    return (), ()
  bare = tokenizer.encode("a", add_special_tokens=False).ids
  whole = tokenizer.encode("a", add_special_tokens=True).ids
  for start in range(len(whole) - len(bare) + 1):
    if whole[start : start + len(bare)] == bare:
      return tuple(whole[:start]), tuple(whole[start + len(bare) :])
  return (), ()


def _sentinels(tokenizer: Tokenizer) -> tuple[int, ...]:
  ids: list[int] = []
  while (id := tokenizer.token_to_id(f"<extra_id_{len(ids)}>")) is not None:
    ids.append(id)
  return tuple(ids)


def _is_bpe(tokenizer: Tokenizer) -> bool:
  return isinstance(tokenizer.model, models.BPE)
