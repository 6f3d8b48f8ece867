"""What the files beside a Hugging Face tokenizer say: its class, special tokens and settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from etils import epath
from tokenizers import AddedToken, Tokenizer

from kard_jax.core.files import InputError

_NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
# What a class takes for a special token that no file names.
_END = "<|endoftext|>"
DEFAULTS: Mapping[str, Mapping[str, str]] = {
  "GPT2Tokenizer": {"bos": _END, "eos": _END, "unk": _END},
  "Qwen2Tokenizer": {"eos": _END, "unk": _END, "pad": _END},
  "LlamaTokenizer": {"bos": "<s>", "eos": "</s>", "unk": "<unk>"},
  "T5Tokenizer": {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"},
  "BertTokenizer": {
    "unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]",
  },
}  # fmt: skip
_CLASS_OF_MODEL = {
  "gpt2": "GPT2Tokenizer",
  "opt": "GPT2Tokenizer",
  "qwen2": "Qwen2Tokenizer",
  "qwen3": "Qwen2Tokenizer",
  "t5": "T5Tokenizer",
  "bert": "BertTokenizer",
}


class Settings(NamedTuple):
  """What the files beside a tokenizer say."""

  tokenizer: Mapping[str, Any]  # tokenizer_config.json
  tokens: Mapping[str, Any]  # special_tokens_map.json
  added: Mapping[str, int]  # added_tokens.json
  models: tuple[Mapping[str, Any], ...]  # generation_config.json, config.json
  kind: str  # the tokenizer's class

  @classmethod
  def read(cls, folder: epath.Path) -> Settings:
    """Reads them; those that are missing say nothing."""
    tokenizer, tokens, added, generation, config = (
      _read_json(folder / name)
      for name in (
        "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
        "generation_config.json", "config.json",
      )
    )  # fmt: skip
    kind = str(tokenizer.get("tokenizer_class") or config.get("tokenizer_class") or "")
    if kind in ("", "TokenizersBackend", "PreTrainedTokenizerFast", "PreTrainedTokenizer"):
      kind = "" if kind else _CLASS_OF_MODEL.get(str(config.get("model_type")), "")
    return cls(tokenizer, tokens, added, (generation, config), kind.removesuffix("Fast"))

  def of(self, name: str, otherwise: Any = None) -> Any:
    """A setting of tokenizer_config.json."""
    value = self.tokenizer.get(name)
    return otherwise if value is None else value

  def special(self, tokenizer: Tokenizer) -> dict[str, AddedToken]:
    """The special tokens that have a name, by `bos`, `eos`, and so on."""
    found = {}
    named = {**self.tokenizer, **({} if "added_tokens_decoder" in self.tokenizer else self.tokens)}
    for kind in _NAMED:
      name = f"{kind}_token"
      if name in named:
        if named[name]:
          found[kind] = token_of(named[name], special=True)
      else:
        default = DEFAULTS.get(self.kind or "LlamaTokenizer", {}).get(kind)
        if default is not None and tokenizer.token_to_id(default) is not None:
          found[kind] = token_of(default, special=True)
    return found

  def generation(self, kind: str) -> int | None:
    """A special id by what the model's own files say; the first, where they name several."""
    for source in self.models:
      value = source.get(f"{kind}_token_id")
      value = value[0] if isinstance(value, list) and value else value
      if isinstance(value, int) and value >= 0:
        return value
    return None


def token_of(value: Any, special: bool | None = None) -> AddedToken:
  """A token as a file writes it: its text, or the text with how it is found."""
  if isinstance(value, str):
    return AddedToken(value, special=bool(special), normalized=False)
  flags = {name: bool(value.get(name, False)) for name in ("lstrip", "rstrip", "single_word")}
  is_special = bool(value.get("special", False)) if special is None else special
  normalized = bool(value.get("normalized", not is_special))
  return AddedToken(str(value["content"]), normalized=normalized, special=is_special, **flags)


def _read_json(file: epath.Path) -> Mapping[str, Any]:
  if not file.exists():
    return {}
  try:
    values = json.loads(file.read_text(encoding="utf-8"))
    return dict(values)
  except (ValueError, TypeError) as error:
    raise InputError(f"{file}: not a JSON object ({error})") from None
