"""Adapters as Hugging Face PEFT keeps them: adapter_config.json and adapter_model.safetensors.

PEFT's A is [rank, inputs] and its B [outputs, rank], of the module whose weight the kernel is. A
kernel that is one part of a fused tensor (GPT-2's c_attn) has no adapter of its own there.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from kard_jax.convert import huggingface, tables
from kard_jax.core import files, lora, selection
from kard_jax.core.files import InputError, PathLike
from kard_jax.core.objective import Params

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PLAIN = {"bias": "none", "use_rslora": False, "use_dora": False, "fan_in_fan_out": False}


def export(
  adapters: Params, adapter: lora.Lora, network: nn.Module, folder: PathLike, base: str
) -> None:
  """Writes a folder that `peft.PeftModel.from_pretrained` opens on top of the base model.

  Args:
    adapters: unboxed, `lora_a` and `lora_b` alone, of layers scanned or not.
    adapter: rank, alpha, dropout.
    network: theirs.
    folder: is replaced if it is there.
    base: the base model's name or folder, for the record.

  Raises:
    InputError: a kernel is a part of a fused tensor.
  """
  entries = _entries(network)
  stored: dict[str, np.ndarray] = {}
  for path, array in _single_layers(adapters).items():
    kernel, _, which = path.rpartition("/")
    name = _module(entries[f"{kernel}/kernel"])
    if which == lora.NAMES[0]:
      stored[f"{_PREFIX}{name}.lora_A.weight"] = array.reshape(-1, array.shape[-1]).T
    else:
      stored[f"{_PREFIX}{name}.lora_B.weight"] = array.reshape(array.shape[0], -1).T
  adapted = {name.removeprefix(_PREFIX).rpartition(".lora_")[0] for name in stored}
  encoder_decoder = huggingface.family_of(network).INPUTS == 2
  settings = _PLAIN | {
    "peft_type": "LORA",
    "task_type": "SEQ_2_SEQ_LM" if encoder_decoder else "CAUSAL_LM",
    "base_model_name_or_path": base,
    "r": adapter.rank,
    "lora_alpha": adapter.alpha,
    "lora_dropout": adapter.dropout,
    "target_modules": _targets(adapted, [entry.name for entry in entries.values()]),
    "inference_mode": True,
  }
  with files.atomic(folder) as place:
    temporary = pathlib.Path(place)
    temporary.mkdir()
    arrays = {name: np.ascontiguousarray(array) for name, array in stored.items()}
    safetensors.numpy.save_file(arrays, temporary / WEIGHTS, metadata={"format": "pt"})
    (temporary / CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def base(folder: PathLike) -> str:
  """The name or folder of the model that adapters are for.

  Raises:
    InputError: the settings do not say it.
  """
  file = pathlib.Path(folder) / CONFIG
  given = json.loads(file.read_text()).get("base_model_name_or_path")
  if not isinstance(given, str):
    raise InputError(f"{file}: lacks base_model_name_or_path")
  return given


def load(folder: PathLike, network: nn.Module) -> tuple[lora.Lora, Params]:
  """Adapters as the network has them, on the first device, and what they are.

  Args:
    folder: with PEFT's two files.
    network: of the base model.

  Raises:
    InputError: a file is missing or not PEFT's, an option is on that `core.lora` lacks, or an
      adapter is of a module that the network does not have.
  """
  place = pathlib.Path(folder)
  settings = _settings(place / CONFIG)
  scanned = getattr(network, "scan_layers", False)
  network = network.clone(scan_layers=False)
  shapes, _ = huggingface.abstract(network, huggingface.family_of(network).INPUTS, None)
  kernels = {
    _module(entry): path.removesuffix("/kernel")
    for path, entry in _entries(network).items()
    if path.endswith("/kernel") and not _is_fused(entry)
  }
  if not (place / WEIGHTS).is_file():
    raise InputError(f"{place}: holds no {WEIGHTS}")
  leaves: dict[str, Any] = {}
  for name, array in safetensors.numpy.load_file(place / WEIGHTS).items():
    module, _, kind = name.removeprefix(_PREFIX).rpartition(".lora_")
    if module not in kernels or kind not in ("A.weight", "B.weight"):
      raise InputError(f"{place / WEIGHTS}: has {name}, for which the network has no kernel")
    kernel = shapes[f"{kernels[module]}/kernel"].shape
    summed = _summed(kernels[module], kernel, array, kind)
    if summed is None or settings["r"] not in array.shape:
      raise InputError(f"{place / WEIGHTS}: {name} has shape {list(array.shape)}, not the kernel's")
    outer = kernel[:summed] if kind[0] == "A" else kernel[summed:]
    shape = (*outer, settings["r"]) if kind[0] == "A" else (settings["r"], *outer)
    leaf = lora.NAMES[0] if kind[0] == "A" else lora.NAMES[1]
    leaves[f"{kernels[module]}/{leaf}"] = jnp.asarray(array.astype(np.float32).T.reshape(shape))
  targets = sorted({"/".join(path.split("/")[-3:-1]) for path in leaves})
  adapter = lora.Lora(settings["r"], settings["lora_alpha"], settings["lora_dropout"], targets)
  return adapter, selection.unflatten(_stacked(leaves, shapes) if scanned else leaves)


def _stacked(
  leaves: dict[str, jax.Array], shapes: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
  """Adapters of scanned layers; where a layer has none, zeros do nothing."""
  stacks: dict[str, dict[int, jax.Array]] = {}
  for path, leaf in leaves.items():
    stack, layer, rest = path.partition("/layers_")
    number, _, rest = rest.partition("/")
    stacks.setdefault(f"{stack}/layers/{rest}" if layer else path, {})[int(number or 0)] = leaf
  found = {}
  for path, layers in stacks.items():
    if "/layers/" not in path:
      found[path] = layers[0]
      continue
    kernel = f"{path.rpartition('/')[0]}/kernel"
    count = 0
    while kernel.replace("/layers/", f"/layers_{count}/", 1) in shapes:
      count += 1
    zeros = jnp.zeros_like(next(iter(layers.values())))
    found[path] = jnp.stack([layers.get(i, zeros) for i in range(count)])
  return found


def _settings(file: pathlib.Path) -> dict[str, Any]:
  try:
    values = {"lora_dropout": 0.0} | json.loads(file.read_text())
    numbers = {"r": int(values["r"]), "lora_alpha": float(values["lora_alpha"])}
    numbers["lora_dropout"] = float(values["lora_dropout"])
  except OSError:
    raise InputError(f"{file.parent}: holds no {CONFIG}") from None
  except (ValueError, KeyError, TypeError) as error:
    raise InputError(f"{file}: not PEFT's settings of LoRA ({error})") from None
  kinds: dict[str, Any] = {
    "peft_type": "LORA",
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
  }
  for name, plain in (_PLAIN | kinds).items():
    if (values.get(name) or None) not in (plain, plain or None) and name != "fan_in_fan_out":
      raise InputError(f"{file}: {name} = {values[name]!r} is not supported")
  return numbers


def _targets(adapted: Collection[str], weights: Sequence[str]) -> list[str]:
  """Last names where all modules of such a name are adapted, whole ones otherwise."""
  modules = {name.removesuffix(".weight") for name in weights if name.endswith(".weight")}
  partial = {name.rpartition(".")[2] for name in modules - {*adapted}}
  last = {name: name.rpartition(".")[2] for name in adapted}
  return sorted({name if last[name] in partial else last[name] for name in adapted})


def _entries(network: nn.Module) -> dict[str, tables.Entry]:
  return {entry.path: entry for entry in huggingface.family_of(network).table(network)}


def _is_fused(entry: tables.Entry) -> bool:
  return entry.layout.part[1] > 1


def _module(entry: tables.Entry) -> str:
  if _is_fused(entry):
    raise InputError(
      f"{entry.path}: {entry.name} holds several kernels, for which PEFT has one adapter; "
      "export the merged model"
    )
  return entry.name.removesuffix(".weight")


def _summed(path: str, kernel: tuple[int, ...], array: np.ndarray, kind: str) -> int | None:
  """How many axes of a kernel an adapter's A takes in; None where the shape does not fit."""
  for summed in range(1, len(kernel)):
    width = np.prod(kernel[:summed] if kind[0] == "A" else kernel[summed:])
    # An output projection takes in heads and their width, all others the model's width alone.
    is_out = path.endswith("/out")
    if width == array.shape[1 if kind[0] == "A" else 0] and summed == (2 if is_out else 1):
      return summed
  return None


def _single_layers(adapters: Params) -> dict[str, np.ndarray]:
  """Arrays by path, those of scanned layers one by one."""
  single: dict[str, np.ndarray] = {}
  for path, leaf in selection.flatten(adapters).items():
    if "/layers/" not in path:
      single[path] = np.asarray(leaf)
      continue
    for i, array in enumerate(np.asarray(leaf)):
      single[path.replace("/layers/", f"/layers_{i}/", 1)] = array
  return single
