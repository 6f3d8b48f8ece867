"""Where arrays live: one place builds the mesh and maps logical axis names to its axes.

Modules name the axes of their arrays (`batch length embed heads kv mlp vocab`); a hardware gin file
says which mesh axes each is split over. Nothing else knows how many devices there are.

The mesh has three axes, any of which may be 1:

  data    Each index has the whole network and a part of the batch. Gradients are summed over it
          once a step, so it may cross the slowest links.
  fsdp    Each index has a part of the batch, and keeps a part of every parameter and of the
          optimiser's statistics; a layer's parameters are gathered just before they are used.
  tensor  Each index computes a part of every layer: some heads, some hidden units, some of the
          vocabulary. Activations are summed over it twice a layer, so it wants the fastest links.

The rules are a table of (logical axis, mesh axes) that is read from the top, and a mesh axis serves
an array once. That is how one name has two meanings, as in T5X's tables: with

  batch  data, fsdp
  vocab  tensor
  heads  tensor
  mlp    tensor
  embed  fsdp

an activation `(batch, length, embed)` is split by its batch alone, since `batch` has taken fsdp by
the time `embed` is read, while a kernel `(embed, mlp)` is split over fsdp and tensor.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from kard_jax.core.files import InputError

Names = str | tuple[str, ...] | None  # of the mesh axes that one axis of an array is split over
Rules = Sequence[tuple[str, Names]]


@dataclasses.dataclass(frozen=True)
class Partitioner:
  """A mesh, and the rules from logical to mesh axes.

  Attributes:
    axes: mesh axis name -> number of devices along it; one may be -1 (all that are left).
    rules: (logical axis, mesh axes or None) pairs; the first that fits wins, see above.
    microbatches: a batch is split into so many parts, whose gradients are summed, to save memory.
    cpu_devices: how many devices a CPU shall pretend to be; 0 leaves it alone.
    devices: use the first so many devices only; 0 uses all.
  """

  axes: Mapping[str, int]
  rules: Rules
  microbatches: int = 1
  cpu_devices: int = 0
  devices: int = 0

  @functools.cached_property
  def mesh(self) -> Mesh:
    """The mesh, built at first use, so that importing and configuring query no device.

    Raises:
      InputError: the axes do not multiply to the number of devices.
    """
    if self.cpu_devices:
      with contextlib.suppress(RuntimeError):  # the backend runs already; the check below tells
        jax.config.update("jax_num_cpu_devices", self.cpu_devices)
    return self._over(jax.devices()[: self.devices or None])

  def on(self, devices: Sequence[jax.Device]) -> Partitioner:
    """The same partitioner on given devices, such as those of a machine that is not here."""
    placed = dataclasses.replace(self, cpu_devices=0, devices=0)
    placed.__dict__["mesh"] = placed._over(devices)  # where `cached_property` looks for it
    return placed

  def sizes(self, count: int) -> dict[str, int]:
    """How many of so many devices lie along each axis; their product may be another number."""
    sizes = dict(self.axes)
    for axis, size in self.axes.items():
      if size == -1:
        known = -math.prod(sizes.values()) or 1  # an axis of 0 is told by `mesh`
        sizes[axis] = max(1, count // known)
        break
    return sizes

  def _over(self, devices: Sequence[jax.Device]) -> Mesh:
    sizes = tuple(self.sizes(len(devices)).values())
    if math.prod(sizes) != len(devices):
      raise InputError(
        f"partitioning.Partitioner.axes = {dict(self.axes)} needs {math.prod(sizes)} devices, here "
        f"are {len(devices)} ({devices[0].platform}); include another gin_configs/hardware/ file"
      )
    return _mesh(dict(zip(self.axes, sizes, strict=True)), devices)

  def of_this_host(self) -> Partitioner:
    """The same over this process's devices alone, for what hosts do apart; see `of_host`."""
    return self if jax.process_count() == 1 else self.of_host(jax.local_devices())

  def of_host(self, devices: Sequence[jax.Device]) -> Partitioner:
    """The same over some of the mesh's devices, those of one host.

    The data axis shrinks, and then fsdp where there is one; the others must fit a host.

    Raises:
      InputError: they do not.
    """
    sizes = dict(self.mesh.shape)
    for axis in ("data", "fsdp"):
      if axis in sizes:
        sizes[axis] = max(1, len(devices) * sizes[axis] // math.prod(sizes.values()))
    here = dataclasses.replace(self, axes=sizes, cpu_devices=0, devices=0)
    if math.prod(sizes.values()) != len(devices):
      raise InputError(
        f"partitioning.Partitioner.axes = {dict(self.axes)}: a host answers by itself, and its "
        f"{len(devices)} devices do not hold the axes beside 'data'; lower TENSOR_AXIS"
      )
    here.__dict__["mesh"] = _mesh(sizes, devices)  # where `cached_property` looks for it
    return here

  def shardings(self, boxed: Any) -> Any:
    """Shardings for a tree of (abstract) arrays boxed with logical axis names.

    What has no box, fewer axes than its box names (Adafactor's row and column statistics), or a
    single element (its placeholders), is replicated. So is an axis that the mesh does not divide,
    such as GPT-2's vocabulary of 50,257.
    """
    specs = nn.get_partition_spec(boxed)
    specs = jax.tree.map(
      lambda spec, leaf: spec if len(spec) <= leaf.ndim and leaf.size > 1 else PartitionSpec(),
      specs,
      nn.meta.unbox(boxed),
      is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
    )
    shardings = nn.logical_to_mesh_sharding(specs, self.mesh, list(self.rules))
    return jax.tree.map(
      lambda sharding, leaf: NamedSharding(
        self.mesh, _divided(sharding.spec, leaf.shape, self.mesh.shape)
      ),
      shardings,
      nn.meta.unbox(boxed),
    )

  @property
  def batch_sharding(self) -> NamedSharding:
    """How the leading axis of a batch is split."""
    axis = dict(self.rules).get("batch")
    return NamedSharding(self.mesh, PartitionSpec(axis))

  @property
  def replicated(self) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(self.mesh, PartitionSpec())

  def rows(self, batch_size: int) -> slice:
    """The rows of a global batch that this process must supply.

    Raises:
      InputError: the batch cannot be split evenly over devices and microbatches.
    """
    ways = self.batch_sharding.shard_shape((batch_size,)) if self._divides(batch_size) else None
    if ways is None or batch_size % self.microbatches:
      raise InputError(
        f"BATCH_SIZE = {batch_size} cannot be split over the batch axis of the mesh "
        f"{dict(self.axes)} and {self.microbatches} microbatches"
      )
    indices = self.batch_sharding.addressable_devices_indices_map((batch_size,)).values()
    bounds = [(index[0] if index else slice(None)).indices(batch_size) for index in indices]
    if not bounds:
      raise InputError(
        f"partitioning.Partitioner.devices = {self.devices}: process {jax.process_index()} of "
        f"{jax.process_count()} has none of them; set it to 0, which takes all"
      )
    return slice(min(b[0] for b in bounds), max(b[1] for b in bounds))

  def shards(self, batch_size: int) -> int:
    """Into how many parts the rows of a batch are split."""
    return batch_size // self.batch_sharding.shard_shape((batch_size,))[0]

  def _divides(self, batch_size: int) -> bool:
    axis = dict(self.rules).get("batch")
    names = (axis,) if isinstance(axis, str) else axis or ()
    return batch_size % math.prod(self.mesh.shape[name] for name in names) == 0

  def put(self, batch: Mapping[str, np.ndarray], batch_size: int) -> dict[str, jax.Array]:
    """Global arrays of a batch, split over the mesh.

    Args:
      batch: the rows that `rows` names: of them, and no others, this process's devices get theirs.
      batch_size: rows over all processes.
    """
    first = self.rows(batch_size).start

    def array(rows: np.ndarray) -> jax.Array:
      def part(index: tuple[slice, ...] | None) -> np.ndarray:
        start, stop, _ = (index[0] if index else slice(None)).indices(batch_size)
        return rows[start - first : stop - first]

      shape = (batch_size, *rows.shape[1:])
      return jax.make_array_from_callback(shape, self.batch_sharding, part)

    return {name: array(np.asarray(rows)) for name, rows in batch.items()}

  def place(self, leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
    """An array that every process has, or that is on the mesh already, where the mesh wants it."""
    if sharding.is_fully_addressable or not leaf.is_fully_addressable:
      return jax.device_put(leaf, sharding)
    here = np.asarray(leaf)
    return jax.make_array_from_callback(here.shape, sharding, lambda index: here[index])

  @contextlib.contextmanager
  def active(self) -> Iterator[None]:
    """Makes logical axis names in modules mean this mesh while functions are traced."""
    with jax.set_mesh(self.mesh), nn.logical_axis_rules(list(self.rules)):
      yield

  def lower(
    self, function: Callable[..., Any], *arguments: Any, **options: Any
  ) -> jax.stages.Lowered:
    """A function made ready to be compiled, from shapes with shardings; `options` are jit's."""
    with self.active():
      return jax.jit(function, **options).lower(*arguments)

  def jit(self, function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`jax.jit` under `active`."""
    jitted = jax.jit(function, **options)

    def call(*arguments: Any) -> Any:
      with self.active():
        return jitted(*arguments)

    return call


def _mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device]) -> Mesh:
  """Devices in the order that suits their links, which for TPUs is that of the torus.

  `jax.make_mesh` refuses axes that are no product of the torus's own on all TPUs but v5e: 4 x 16 on
  the 8 x 8 chips of a v6e-64, or TENSOR_AXIS=2 on a v5p-128.
  """
  shape = tuple(sizes.values())
  placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
  # Linen's logical constraints need Auto axes; newer JAX makes Explicit ones by default.
  return Mesh(placed, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def constrain(x: jax.Array, names: Sequence[str | None]) -> jax.Array:
  """Splits an activation by its axes' logical names, as `nn.with_logical_constraint` does.

  An axis that the mesh does not divide stays whole, so that any network runs on any mesh.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:  # none, or one that other loops set in Flax's older way
    constrained: jax.Array = nn.with_logical_constraint(x, tuple(names))
    return constrained
  spec = nn.logical_to_mesh_axes(tuple(names))
  if spec is None:
    return x
  return jax.lax.with_sharding_constraint(x, _divided(spec, x.shape, mesh.shape))


def _divided(
  spec: PartitionSpec, shape: Sequence[int], mesh_shape: Mapping[str, int]
) -> PartitionSpec:
  """A spec without the mesh axes that do not divide an array's axis."""

  def ways(names: Names) -> int:
    return math.prod(
      mesh_shape[name] for name in ((names,) if isinstance(names, str) else names or ())
    )

  return PartitionSpec(
    *(names if size % ways(names) == 0 else None for names, size in zip(spec, shape, strict=False))
  )
