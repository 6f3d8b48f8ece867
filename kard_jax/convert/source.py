"""Where a Hugging Face model lies: a local folder, or a name on the Hub; its configuration.

Only what is needed comes from the Hub, into huggingface_hub's own cache; what is there already is
not asked for again when the machine is offline.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any, TypeVar

from kard_jax.convert.tensors import Tensors
from kard_jax.core.files import InputError, PathLike

CONFIG = "config.json"
# What stands beside weights and belongs to the tokenizer (or to `generate`).
TOKENIZER = (
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "spiece.model",
  "tokenizer.model",
  "sentencepiece.bpe.model",
  "vocab.json",
  "merges.txt",
  "vocab.txt",
  "chat_template.jinja",
  "generation_config.json",
)
_WANTED = [CONFIG, "model*.safetensors", "model.safetensors.index.json", *TOKENIZER]

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Config:
  """A config.json; `get` reads a setting and checks its type."""

  file: pathlib.Path
  values: dict[str, Any]

  def get(self, name: str, default: T, kind: type[T] | None = None) -> T:
    """A setting, of the default's type (or of `kind`); null counts as not set.

    Raises:
      InputError: it is of another type.
    """
    value = self.values.get(name)
    if value is None:
      return default
    kind = kind or type(default)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
      return float(value)  # type: ignore[return-value]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
      raise InputError(f"{self.file}: {name} = {value!r} should be of type {kind.__name__}")
    return value

  def size(self, name: str, default: int | None = None) -> int:
    """A setting that must be a number of at least 1; needed unless there is a default."""
    if self.values.get(name) is None and default is None:
      raise InputError(f"{self.file}: lacks {name}")
    value = self.get(name, default, int)
    if value is None or value < 1:
      raise InputError(f"{self.file}: {name} = {value!r} must be at least 1")
    return value

  def unsupported(self, name: str, why: str) -> InputError:
    """The error for a setting that no network here has."""
    return InputError(f"{self.file}: {name} = {self.values.get(name)!r} is not supported ({why})")

  @property
  def model_type(self) -> str:
    """The architecture's name in Hugging Face's words."""
    return self.get("model_type", "")


class Source:
  """A model's folder.

  Attributes:
    folder: local.
    config: its config.json.
  """

  def __init__(self, source: PathLike):
    """Finds a folder, or brings it from the Hub.

    Raises:
      InputError: neither is there, or config.json is missing or not JSON.
    """
    self.folder = find(source)
    self.config = _config(self.folder / CONFIG)
    self._tensors: Tensors | None = None

  @property
  def tensors(self) -> Tensors:
    """The weights; headers are read once.

    Raises:
      InputError: see `Tensors`.
    """
    if self._tensors is None:
      self._tensors = Tensors(self.folder)
    return self._tensors

  @property
  def has_weights(self) -> bool:
    """Whether there are any safetensors."""
    return any(self.folder.glob("*.safetensors*"))

  def tokenizer_files(self) -> list[pathlib.Path]:
    """The files of the tokenizer."""
    return [self.folder / name for name in TOKENIZER if (self.folder / name).is_file()]


def find(source: PathLike) -> pathlib.Path:
  """The local folder of a model; brings it from the Hub if `source` is a name there."""
  place = pathlib.Path(source).expanduser()
  if place.is_dir():
    return place
  name = str(source)
  if place.exists():
    raise InputError(f"{name}: a file; give the folder that holds {CONFIG} and the weights")
  if name.startswith((".", "/", "~")) or name.count("/") > 1 or not name:
    raise InputError(f"{name}: no such folder")
  return _from_hub(name)


def _from_hub(name: str) -> pathlib.Path:
  import huggingface_hub  # heavy, and not needed for a folder
  from huggingface_hub import errors

  try:
    return pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=_WANTED))
  except (errors.RepositoryNotFoundError, errors.GatedRepoError, errors.HFValidationError) as error:
    reason = " ".join(str(error).split())[:200]
    raise InputError(
      f"{name}: no such folder, and the Hugging Face Hub does not give such a model ({reason})"
    ) from None
  except (errors.HfHubHTTPError, OSError, ValueError) as error:
    reason = " ".join(str(error).split())[:200]
    raise InputError(
      f"{name}: no such folder; not in the local cache, and the Hugging Face Hub cannot be reached "
      f"({type(error).__name__}: {reason}). Where there is a network: `hf download {name} "
      f"--local-dir FOLDER`; then give FOLDER"
    ) from None


def _config(file: pathlib.Path) -> Config:
  if not file.is_file():
    raise InputError(f"{file.parent}: holds no {CONFIG}; it must be a Hugging Face model's folder")
  try:
    values = json.loads(file.read_bytes())
  except ValueError as error:
    raise InputError(f"{file}: not JSON ({error})") from None
  if not isinstance(values, dict):
    raise InputError(f"{file}: a JSON object is needed")
  return Config(file, values)
