"""Where arrays live: meshes, rules, rows of a batch, and what is said of those that do not fit."""

from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from kard_jax.core.files import InputError
from kard_jax.core.partitioning import Partitioner, constrain

RULES = [("batch", "data"), ("mlp", "tensor"), ("vocab", "tensor"), ("heads", ("tensor",))]


def partitioner(data=4, tensor=2, rules=RULES, **settings):
  return Partitioner({"data": data, "tensor": tensor}, rules, **settings)


def boxed(shape, *names):
  return nn.LogicallyPartitioned(jnp.zeros(shape), names)


def specs(tree, **settings):
  return jax.tree.map(lambda sharding: sharding.spec, partitioner(**settings).shardings(tree))


@pytest.mark.parametrize(
  ("data", "tensor", "shape"), [(4, 2, (4, 2)), (-1, 2, (4, 2)), (1, -1, (1, 8)), (8, 1, (8, 1))]
)
def test_the_axis_minus_one_takes_the_devices_that_are_left(data, tensor, shape):
  mesh = partitioner(data, tensor).mesh
  assert mesh.devices.shape == shape
  assert mesh.axis_names == ("data", "tensor")


def test_the_first_devices_alone():
  mesh = partitioner(-1, 1, devices=2).mesh
  assert list(mesh.devices.flat) == jax.devices()[:2]


@pytest.mark.parametrize(("data", "tensor"), [(2, 2), (16, 1), (-1, 3), (-1, -1), (-1, 0), (0, 8)])
def test_axes_that_do_not_fit_the_devices(data, tensor):
  with pytest.raises(InputError, match=r"devices, here are 8 \(cpu\); include another"):
    _ = partitioner(data, tensor).mesh


def test_nothing_is_asked_of_devices_until_the_mesh_is_used(monkeypatch):
  monkeypatch.setattr(jax, "devices", lambda: pytest.fail("a device was queried"))
  made = partitioner(3, 7)
  assert made.microbatches == 1
  assert made.axes == {"data": 3, "tensor": 7}


def test_rules_map_names_to_mesh_axes():
  tree = {
    "wide": boxed((8, 16), "embed", "mlp"),
    "table": boxed((16, 8), "vocab", "embed"),
    "kernel": boxed((8, 4, 2), "embed", "heads", "kv"),
    "scale": boxed((8,), "embed"),
    "bare": jnp.zeros((4, 4)),
  }
  assert specs(tree) == {
    "wide": P(None, "tensor"),
    "table": P("tensor", None),
    "kernel": P(None, ("tensor",), None),
    "scale": P(None),
    "bare": P(),
  }
  assert specs(tree, rules=[])["wide"] == P(None, None)


def test_statistics_of_fewer_axes_than_their_box_names_are_replicated():
  tx = optax.adafactor(1e-3, min_dim_size_to_factor=4)
  rules = [*RULES, ("embed", "data")]
  params = {"wide": boxed((8, 16), "embed", "mlp"), "scale": boxed((8,), "embed")}
  abstract = jax.eval_shape(tx.init, params)
  factored = partitioner(rules=rules).shardings(abstract)[0]
  shapes = nn.meta.unbox(abstract)[0]
  assert shapes.v_row["wide"].shape == (8,)
  assert shapes.v_row["scale"].shape == (1,)
  assert factored.v_row["wide"].spec == factored.v_col["wide"].spec == P()
  assert factored.v_row["scale"].spec == P()  # a placeholder: one element cannot be split
  assert factored.v["scale"].spec == P("data")
  for name in ("v_row", "v_col", "v"):
    for param in params:
      getattr(factored, name)[param].shard_shape(getattr(shapes, name)[param].shape)


def test_one_process_supplies_every_row():
  assert partitioner().rows(8) == slice(0, 8)
  assert partitioner(microbatches=2).rows(8) == slice(0, 8)
  assert partitioner(1, 8).rows(3) == slice(0, 3)
  assert partitioner(rules=[]).rows(3) == slice(0, 3)
  assert partitioner(rules=[("batch", ("data", "tensor"))]).rows(16) == slice(0, 16)


@pytest.mark.parametrize(
  ("batch_size", "settings"),
  [
    (6, {}),
    (8, {"microbatches": 3}),
    (12, {"rules": [("batch", ("data", "tensor"))]}),
  ],
)
def test_a_batch_that_cannot_be_split_evenly(batch_size, settings):
  with pytest.raises(InputError, match=f"BATCH_SIZE = {batch_size} cannot be split") as caught:
    partitioner(**settings).rows(batch_size)
  assert f"{settings.get('microbatches', 1)} microbatches" in str(caught.value)


def test_rows_of_a_batch_lie_on_their_devices():
  batch = {"x": np.arange(16).reshape(8, 2), "y": np.arange(8)}
  put = partitioner().put(batch, 8)
  assert put["x"].sharding.spec == P("data")
  np.testing.assert_array_equal(put["x"], batch["x"])
  for shard in put["y"].addressable_shards:
    np.testing.assert_array_equal(shard.data, batch["y"][shard.index])
    assert shard.data.shape == (2,)
  assert partitioner().replicated.spec == P()


def test_logical_names_mean_the_mesh_while_a_function_is_traced():
  ours = partitioner()
  constrained = ours.jit(lambda x: nn.with_logical_constraint(x, ("batch", "mlp")))
  assert constrained(jnp.zeros((8, 4))).sharding.spec == P("data", "tensor")


def test_axes_that_the_mesh_does_not_divide_stay_whole():
  tree = {"table": boxed((50, 8), "vocab", "embed"), "odd": boxed((51, 8), "vocab", "embed")}
  assert specs(tree) == {"table": P("tensor", None), "odd": P(None, None)}
  ours = partitioner()
  constrained = ours.jit(lambda x: constrain(x, ("batch", "vocab")))
  assert constrained(jnp.zeros((8, 4))).sharding.spec == P("data", "tensor")
  assert constrained(jnp.zeros((8, 5))).sharding.spec in (P("data"), P("data", None))
  assert constrain(jnp.zeros((8, 5)), ("batch", "vocab")).shape == (8, 5)  # and without any mesh


@pytest.mark.parametrize(
  ("count", "sizes"), [(8, (2, 2, 2)), (4, (1, 2, 2)), (2, (1, 1, 2)), (1, None)], ids=str
)
def test_a_hosts_mesh_gives_up_data_then_fsdp(count, sizes):
  whole = Partitioner({"data": 2, "fsdp": 2, "tensor": 2}, RULES)
  devices = jax.devices()[:count]
  if sizes is None:
    with pytest.raises(InputError, match=r"its 1 devices do not hold .* lower TENSOR_AXIS"):
      whole.of_host(devices)
    return
  mesh = whole.of_host(devices).mesh
  assert tuple(mesh.shape.items()) == tuple(zip(("data", "fsdp", "tensor"), sizes, strict=True))
  assert list(mesh.devices.flat) == devices


def chip(kind, coords):
  """A TPU that is not here: what a mesh asks of it."""
  made = mock.Mock(spec=jax.Device, device_kind=kind, coords=coords, platform="tpu")
  made.core_on_chip = made.slice_index = made.process_index = 0
  made.id = coords[0] + 8 * coords[1] + 64 * coords[2]
  return made


@pytest.mark.parametrize(
  ("kind", "torus", "axes"),
  [
    ("TPU v6 lite", (8, 8, 1), (4, 16, 1)),  # neither is a product of the torus's sides
    ("TPU v6 lite", (8, 8, 1), (8, 8, 1)),
    ("TPU v5 lite", (4, 4, 1), (1, 8, 2)),
    ("TPU v5p", (4, 4, 4), (1, 32, 2)),
    ("TPU v4", (2, 2, 1), (1, 1, 4)),
    ("TPU v4", (2, 2, 2), (2, 4, 1)),
  ],
)
def test_any_axes_are_laid_over_a_torus(kind, torus, axes):
  chips = [chip(kind, coords[::-1]) for coords in np.ndindex(*torus[::-1])]
  names = ("data", "fsdp", "tensor")
  mesh = Partitioner(dict(zip(names, axes, strict=True)), RULES).on(chips).mesh
  assert mesh.devices.shape == axes
  assert {one.coords for one in mesh.devices.flat} == {one.coords for one in chips}


def test_a_ring_of_the_mesh_is_one_of_the_torus_where_it_can_be():
  chips = [chip("TPU v6 lite", (x, y, 0)) for y in range(8) for x in range(8)]
  mesh = Partitioner({"data": 8, "fsdp": 8, "tensor": 1}, RULES).on(chips).mesh
  for ring in mesh.devices[:, :, 0]:
    assert any(len({one.coords[side] for one in ring}) == 1 for side in (0, 1))
