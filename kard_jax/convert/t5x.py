"""T5X checkpoints of T5 to networks and parameters, and parameters to T5X checkpoints.

Unrolled ones (`t5x.examples.t5`) have our names, and heads and head dimension as one axis. Scanned
ones (`t5x.examples.scalable_t5`) have the layers of a stack in one array, as its second axis.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from kard_jax.convert import huggingface, tables, writing, zarr_store
from kard_jax.convert.tables import Entry, Layout, Table
from kard_jax.core import files
from kard_jax.core.files import InputError, PathLike
from kard_jax.core.objective import Params
from kard_jax.core.partitioning import Partitioner
from kard_jax.student import t5

NETWORK = t5.T5

_STACKS = ("encoder", "decoder")
_JOINED = {"query": "d (h k) -> d h k", "out": "(h k) d -> h k d"}
_JOINED |= dict.fromkeys(("key", "value"), _JOINED["query"])
_RELPOS = "relpos_bias/rel_embedding"


@dataclasses.dataclass(frozen=True)
class Form:
  """How a checkpoint lies.

  Attributes:
    scanned: a stack is one subtree, with the layers as its arrays' second axis.
    joined: kernels of attention have heads and head dimension as one axis.
  """

  scanned: bool = False
  joined: bool = True


def network(source: PathLike, **overrides: Any) -> t5.T5:
  """The network that a checkpoint's shapes tell of.

  They do not tell activations: gelu is taken where there is a gate, else relu, as in T5 1.1 and
  the first T5; override `mlp_activations` where that is wrong.

  Raises:
    InputError: no checkpoint, or not one of T5.
  """
  store = zarr_store.Store(source)
  form = _form(store)
  table_VxD = _shape(store, "token_embedder/embedding")
  vocab_size, embed_dim = table_VxD
  layers = {stack: _count(store, stack, form) for stack in _STACKS}
  first = "encoder/encoder" if form.scanned else "encoder/layers_0"
  per_layer = form.scanned or f"{first}/{_RELPOS}" in store.shapes
  relpos = _shape(store, f"{first if per_layer else 'encoder'}/{_RELPOS}")
  query = _shape(store, f"{first}/attention/query/kernel")
  num_heads = relpos[0]
  gated = f"{first}/mlp/wi_0/kernel" in store.shapes
  mlp = _shape(store, f"{first}/mlp/{'wi_0' if gated else 'wi'}/kernel")
  settings: dict[str, Any] = {
    "vocab_size": vocab_size,
    "embed_dim": embed_dim,
    "num_heads": num_heads,
    "head_dim": query[-1] // num_heads if form.joined else query[-1],
    "mlp_dim": mlp[-1],
    "num_encoder_layers": layers["encoder"],
    "num_decoder_layers": layers["decoder"],
    "mlp_activations": ("gelu", "linear") if gated else ("relu",),
    "tied_embeddings": not any(path.endswith("logits_dense/kernel") for path in store.shapes),
    "num_buckets": relpos[-1],
    "relpos_per_layer": per_layer and not (form.scanned and _is_one_bias(store)),
  }
  return t5.T5(**settings | overrides)


def load(source: PathLike, network: t5.T5, partitioner: Partitioner | None = None) -> Params:
  """A checkpoint's parameters: unboxed, float32, each already where the mesh wants it.

  Args:
    source: the folder of a checkpoint, or of several, of which the latest is taken.
    network: from `network`, or an equal one from gin; scanned or not, as the checkpoint may be.
    partitioner: mesh and rules; None puts all on the first device.

  Raises:
    InputError: the files are not whole or hold other parameters than the network's.
  """
  store = zarr_store.Store(source)
  form = _form(store)
  shapes, shardings = huggingface.abstract(network, 2, partitioner)
  matched = tables.match(_table(network, form), {path: x.shape for path, x in shapes.items()})
  used = _check(store, matched, shapes)
  if form.scanned and not network.relpos_per_layer and not _is_one_bias(store):
    raise InputError(
      f"{store.folder}: the layers have position biases of their own (as t5x.examples.scalable_t5 "
      "trains them); set relpos_per_layer = True"
    )

  def parameter(path: str) -> jax.Array:
    shape, entries = shapes[path].shape, matched[path]

    def tensor(entry: Entry, part: tables.Slices) -> np.ndarray:
      return store.read(used[entry.name], part)

    return huggingface.place(
      shape, shardings[path], lambda index: tables.read(path, entries, shape, index, tensor)
    )

  return huggingface.tree({path: parameter(path) for path in matched})


def export(
  params: Params,
  network: t5.T5,
  folder: PathLike,
  like: PathLike | None = None,
  *,
  step: int | None = None,
  dtype: str | None = None,
) -> pathlib.Path:
  """Writes a checkpoint that T5X restores, without optimizer state; whole or not at all.

  Args:
    params: unboxed, as `load` gives them.
    network: theirs.
    folder: gets `checkpoint_<step>`.
    like: a T5X checkpoint, whose form, element types and step are taken; None: unrolled, float32,
      step 0.
    step: instead of like's.
    dtype: "float32", "float16" or "bfloat16" instead of like's.

  Returns:
    The checkpoint's folder.

  Raises:
    InputError: `like` is another network's, or an element type is unknown.
  """
  theirs = None if like is None else zarr_store.Store(like)
  form = Form() if theirs is None else _form(theirs)
  step = step if step is not None else theirs.step if theirs else 0
  shapes = {path: x.shape for path, x in huggingface.abstract(network, 2, None)[0].items()}
  flat = huggingface.unboxed(params, shapes)
  matched = tables.match(_table(network, form), shapes)
  used = None if theirs is None else _check(theirs, matched, flat)
  forced = writing.dtype_named(dtype) if dtype else None
  default = writing.DTYPES["float32"]

  def arrays() -> Iterator[tuple[str, np.ndarray]]:
    for group in writing.grouped(matched).values():
      parts = [np.asarray(flat[path] if i is None else flat[path][i]) for _, path, i in group]
      entry = group[0][0]
      if len(parts) < entry.layout.part[1]:  # the one position bias, for each layer
        parts *= entry.layout.part[1]
      name = used[entry.name] if used else entry.name
      kind = forced or (theirs.dtypes[name] if theirs else default)
      yield name, writing.cast(name, entry.layout.write(parts), kind)

  final = pathlib.Path(folder) / f"{zarr_store.FILE}_{step}"
  with files.atomic(final) as place:
    pathlib.Path(place).mkdir()
    zarr_store.write(pathlib.Path(place), arrays(), step)
  return final


def _form(store: zarr_store.Store) -> Form:
  scanned = any(path.startswith("encoder/encoder/") for path in store.shapes)
  first = "encoder/encoder" if scanned else "encoder/layers_0"
  kernel = _shape(store, f"{first}/attention/query/kernel")
  return Form(scanned, joined=len(kernel) == 2 + scanned)


def _shape(store: zarr_store.Store, path: str) -> tuple[int, ...]:
  if path not in store.shapes:
    raise InputError(f"{store.folder}: has no parameter {path}; T5's encoder-decoders can be read")
  return store.shapes[path]


def _count(store: zarr_store.Store, stack: str, form: Form) -> int:
  if form.scanned:
    return _shape(store, f"{stack}/{stack}/mlp/wo/kernel")[1]
  starts = {path.split("/")[1] for path in store.shapes if path.startswith(f"{stack}/layers_")}
  return len(starts)


def _table(network: t5.T5, form: Form) -> Table:
  """Which of the checkpoint's arrays is which parameter."""
  found = []
  for path, kernel_axes in _paths(network):
    stack, *rest = path.split("/")
    if path == "logits_dense/kernel":
      found.append(Entry(path, "decoder/logits_dense/kernel", aliases=(path,)))
    elif rest[0].startswith("layers_") or (form.scanned and "/".join(rest) == _RELPOS):
      found.append(_of_layer(network, form, stack, rest, kernel_axes))
    else:
      found.append(Entry(path, path))
  return found


def _of_layer(network: t5.T5, form: Form, stack: str, rest: list[str], axes: int) -> Entry:
  path = "/".join([stack, *rest])
  joined = _JOINED.get(rest[-2], "") if form.joined and axes == 3 else ""
  if not form.scanned:
    return Entry(path, path, Layout(joined))
  layers = getattr(network, f"num_{stack}_layers")
  at = 0 if rest[0] == "relpos_bias" else int(rest[0].removeprefix("layers_"))
  inside = rest if rest[0] == "relpos_bias" else rest[1:]
  plain = {1: "a -> a", 2: "a b -> a b", 3: "a b c -> a b c"}[axes]
  first, arrow, ours = (joined or plain).partition(" ->")
  head = first[: first.index(")") + 1] if first.startswith("(") else first.split()[0]
  equation = f"{head} {tables.PARTS}{first[len(head) :]}{arrow}{ours}"
  return Entry(path, "/".join([stack, stack, *inside]), Layout(equation, (at, layers)))


def _paths(network: t5.T5) -> list[tuple[str, int]]:
  """Our parameters of an unrolled network, with how many axes each has."""
  unrolled = dataclasses.replace(network, scan_layers=False)
  shapes, _ = huggingface.abstract(unrolled, 2, None)
  return [(path, len(x.shape)) for path, x in shapes.items()]


def _check(
  store: zarr_store.Store, matched: Mapping[str, list[Entry]], shapes: Mapping[str, Any]
) -> dict[str, str]:
  """Where each entry is stored; all are there, in their shapes, and nothing else is."""
  names = {}
  for path, entries in matched.items():
    one = tables.layer_shape(path, entries, shapes[path].shape)
    for entry in entries:
      name = next((name for name in entry.names if name in store.shapes), None)
      if name is None:
        raise InputError(f"{store.folder}: no parameter {entry.name}, which the network has")
      want = entry.layout.stored_shape(one)
      if store.shapes[name] != want:
        raise InputError(
          f"{store.folder}: {name} has shape {list(store.shapes[name])}, and in the network "
          f"{list(want)}; give the network that belongs to the checkpoint"
        )
      names[entry.name] = name
  if extra := [name for name in store.shapes if name not in names.values()]:
    raise InputError(f"{store.folder}: has a parameter {extra[0]} that the network does not")
  return names


def _is_one_bias(store: zarr_store.Store) -> bool:
  """Whether the layers of each scanned stack have the same position bias."""
  tables_HxNxU = [store.read(f"{stack}/{stack}/{_RELPOS}") for stack in _STACKS]
  return all(np.array_equal(x, np.broadcast_to(x[:, :1], x.shape)) for x in tables_HxNxU)
