"""Hugging Face models to networks and parameters, and parameters to folders transformers opens.

Tensors go one at a time into the shardings of a mesh, and of each only the part that a device
holds is read: besides the parameters themselves, memory holds one tensor.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from kard_jax.convert import (
  bert,
  gpt2,
  llama,
  opt,
  rerankers,
  t5,
  tables,
  tensors,
  vocabulary,
  writing,
)
from kard_jax.convert.source import CONFIG, Config, Source
from kard_jax.core import files
from kard_jax.core.files import InputError, PathLike
from kard_jax.core.objective import Params
from kard_jax.core.partitioning import Partitioner

# Each module has NETWORK (a Linen class), INPUTS (how many token arrays it is called with),
# settings(config, tensors), table(network) and inert(name); see `t5`.
FAMILIES: dict[str, ModuleType] = {
  "bert": bert,
  "t5": t5,
  "mt5": t5,
  "umt5": t5,
  "gpt2": gpt2,
  "opt": opt,
  **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "smollm3"), llama),
}
# What may differ from a config.json: it changes how a network runs, not which one it is.
_FREE = ("dropout_rate", "dtype", "remat", "scan_layers", "pad_id")


def network(source: PathLike | Mapping[str, Any], **overrides: Any) -> nn.Module:
  """The network that a model's config.json describes, float32 unless overridden.

  Args:
    source: a folder, or a name on the Hub such as "google/flan-t5-base"; or what a config.json
      would say, for a network that has no weights yet.
    **overrides: attributes of the network, such as `dtype`, `remat`, `dropout_rate`.

  Raises:
    InputError: no such model, another architecture than those here, or an option they lack.
  """
  if isinstance(source, Mapping):
    config = Config(pathlib.Path("the description of the network"), dict(source))
    return _family(config).NETWORK(**_family(config).settings(config, None) | overrides)
  found = Source(source)
  family = _family(found.config)
  return family.NETWORK(**_settings(family, found) | overrides)


def _described(source: PathLike) -> nn.Module:
  return network(source)


def load(source: PathLike, network: nn.Module, partitioner: Partitioner | None = None) -> Params:
  """A model's parameters: unboxed, float32, each already where the mesh wants it.

  Args:
    source: a folder, or a name on the Hub.
    network: from `network`, or an equal one from gin; or a reranker, whose encoder is read.
    partitioner: mesh and rules; None puts all on the first device.

  Raises:
    InputError: the files are not whole or hold other tensors than the network's parameters, or
      the network or the tokenizer does not fit config.json.
  """
  if rerankers.is_reranker(network):
    return rerankers.load(source, network, partitioner, _described, load)
  found = Source(source)
  family = _family(found.config)
  _check_settings(network, _settings(family, found), f"{found.config.file}")
  vocabulary.check(found)
  shapes, shardings = abstract(network, family.INPUTS, partitioner)
  matched = tables.match(family.table(network), {path: x.shape for path, x in shapes.items()})
  stored = _stored_names(found.tensors, matched, family)
  _check_shapes(found.tensors, matched, shapes, stored)

  def read(entry: tables.Entry, part: tables.Slices) -> np.ndarray:
    return found.tensors.read(stored[entry.name][0], part)

  def parameter(path: str) -> jax.Array:
    shape, entries = shapes[path].shape, matched[path]
    return place(
      shape, shardings[path], lambda index: tables.read(path, entries, shape, index, read)
    )

  return tree({path: parameter(path) for path in matched})


def abstract(
  network: nn.Module, inputs: int, partitioner: Partitioner | None
) -> tuple[dict[str, jax.ShapeDtypeStruct], dict[str, Any]]:
  """Shapes and shardings of a network's parameters, by path.

  Args:
    network: any.
    inputs: how many token arrays it is called with.
    partitioner: mesh and rules; None puts all on the first device.
  """
  if partitioner is not None:
    _ = partitioner.mesh  # before anything starts the backend: it may ask for more CPU devices
  tokens = [jax.ShapeDtypeStruct((1, 8), jnp.int32)] * inputs
  boxed = jax.eval_shape(network.init, jax.random.key(0), *tokens)["params"]
  shapes = nn.meta.unbox(boxed)
  if partitioner is None:
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shardings = jax.tree.map(lambda _: here, shapes)
  else:
    shardings = partitioner.shardings(boxed)
  return flatten(shapes), flatten(shardings)


def flatten(tree: Any) -> dict[str, Any]:
  """A tree's leaves by path."""
  return traverse_util.flatten_dict(tree, sep="/")


def tree(leaves: Mapping[str, Any]) -> dict[str, Any]:
  """The tree of leaves by path."""
  return traverse_util.unflatten_dict(dict(leaves), sep="/")


def unboxed(params: Params, shapes: Mapping[str, tables.Shape]) -> dict[str, Any]:
  """Parameters by path.

  Raises:
    InputError: they have other names or shapes than the network's.
  """
  flat = flatten(nn.meta.unbox(params))
  for path in [*flat, *shapes]:
    if path not in flat or path not in shapes or flat[path].shape != shapes[path]:
      raise InputError(f"these are not the network's parameters: {path} differs (merge adapters)")
  return flat


def place(shape: tables.Shape, sharding: jax.sharding.Sharding, read: Any) -> jax.Array:
  """An array whose parts are read once each, whatever the number of devices that hold them."""
  known: dict[Any, np.ndarray] = {}

  def part(index: Any) -> np.ndarray:
    whole = tuple(slice(*i.indices(size)[:2]) for i, size in zip(index, shape, strict=True))
    key = tuple((i.start, i.stop) for i in whole)
    if key not in known:
      known[key] = read(whole)
    return known[key]

  return jax.block_until_ready(jax.make_array_from_callback(shape, sharding, part))


def export(
  params: Params,
  network: nn.Module,
  folder: PathLike,
  like: PathLike,
  *,
  dtype: str | None = None,
  shard_bytes: int = tensors.SHARD_BYTES,
) -> None:
  """Writes a folder that transformers opens with `from_pretrained`; whole or not at all.

  Tensor names, element types and files are those of `like`, its tokenizer files are copied byte
  for byte: what was loaded and not changed is written back as it was.

  Args:
    params: unboxed, as `load` gives them.
    network: theirs.
    folder: is replaced if it is there.
    like: a folder, or a name on the Hub, of the same architecture; its weights may be absent.
    dtype: "float32", "float16" or "bfloat16" instead of like's.
    shard_bytes: of a file, at most, where it cannot be as in `like`.

  Raises:
    InputError: `like` is another architecture than the network, an element type is unknown, or a
      number is too large for it.
  """
  found = Source(like)
  family = _family(found.config)
  _check_settings(network, _settings(family, found), f"{found.config.file}")
  if "://" in str(folder):
    raise InputError(f"{folder}: safetensors are written to local folders only; copy it from there")
  if pathlib.Path(folder).resolve() == found.folder.resolve():
    raise InputError(f"{folder}: is the folder to be like; write to another")
  shapes = {path: x.shape for path, x in abstract(network, family.INPUTS, None)[0].items()}
  flat = unboxed(params, shapes)
  matched = tables.match(family.table(network), shapes)
  plan = writing.plan(found, matched, flat, family.inert, dtype, shard_bytes)
  with files.atomic(folder) as place:
    temporary = pathlib.Path(place)
    temporary.mkdir()
    plan.write(temporary)
    for file in found.tokenizer_files():
      (temporary / file.name).write_bytes(file.read_bytes())
    (temporary / CONFIG).write_bytes(writing.config(found, dtype))


def family_of(network: nn.Module) -> ModuleType:
  """The family of a network."""
  for family in FAMILIES.values():
    if isinstance(network, family.NETWORK):
      return family
  raise InputError(f"{type(network).__name__}: no family of {', '.join(FAMILIES)} has this network")


def _family(config: Config) -> ModuleType:
  kind = config.model_type
  if kind not in FAMILIES:
    raise InputError(
      f"{config.file}: model_type {kind!r} is not supported; it may be {', '.join(FAMILIES)}"
    )
  return FAMILIES[kind]


def _settings(family: ModuleType, found: Source) -> dict[str, Any]:
  return family.settings(found.config, found.tensors if found.has_weights else None)


def _check_settings(network: nn.Module, wanted: Mapping[str, Any], where: str) -> None:
  for name, value in wanted.items():
    mine = getattr(network, name, None)
    mine = tuple(mine) if isinstance(mine, list) else mine
    if name not in _FREE and mine != value:
      raise InputError(
        f"{where}: asks for {name} = {value!r}, the network has {mine!r}; give the network that "
        "belongs to these weights"
      )


def _stored_names(
  stored: tensors.Tensors, matched: Mapping[str, list[tables.Entry]], family: ModuleType
) -> dict[str, list[str]]:
  """Under which names each entry's tensor is stored; all are there and nothing else is."""
  names, used = {}, set()
  for entry in (entry for entries in matched.values() for entry in entries):
    there = [name for name in entry.names if name in stored]
    if not there:
      raise InputError(f"{stored.folder}: no tensor {entry.name}, which the architecture needs")
    for copy in there[1:]:
      if copy not in used and not stored.same(there[0], copy):
        raise InputError(
          f"{stored[copy].file}: {copy} and {there[0]} differ, and must be one table in this "
          "architecture"
        )
    names[entry.name] = there
    used.update(there)
  if extra := [name for name in stored if name not in used and not family.inert(name)]:
    more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
    raise InputError(
      f"{stored[extra[0]].file}: has a tensor {extra[0]}{more} that the architecture in {CONFIG} "
      "does not; is it another model's?"
    )
  return names


def _check_shapes(
  stored: tensors.Tensors,
  matched: Mapping[str, list[tables.Entry]],
  shapes: Mapping[str, jax.ShapeDtypeStruct],
  names: Mapping[str, list[str]],
) -> None:
  for path, entries in matched.items():
    one = tables.layer_shape(path, entries, shapes[path].shape)
    for entry in entries:
      want = entry.layout.stored_shape(one)
      tensor = stored[names[entry.name][0]]
      if tensor.dtype not in tensors.WEIGHTS.values():
        raise InputError(
          f"{tensor.file}: {names[entry.name][0]} has elements of type {tensor.dtype}; weights are "
          "float32, float16 or bfloat16 (give the model before quantisation)"
        )
      if tensor.shape != want:
        raise InputError(
          f"{tensor.file}: {names[entry.name][0]} has shape {list(tensor.shape)}, and by {CONFIG} "
          f"it is {list(want)}"
        )
