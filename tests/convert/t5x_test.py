"""Checkpoints that T5X wrote (tests/golden/write_t5x.py) in, and out again as they were."""

import json
import pathlib
import shutil
import tarfile

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import serialization

from kard_jax.convert import huggingface, t5x, zarr_store
from kard_jax.core import partitioning
from kard_jax.core.files import InputError
from tests.convert import folders

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "t5x.tar.xz"
KERNEL = "target.encoder.layers_0.mlp.wo.kernel"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  """The folder of all golden checkpoints; not to be changed."""
  place = tmp_path_factory.mktemp("t5x")
  with tarfile.open(GOLDEN) as packed:
    packed.extractall(place, filter="data")
  return place


@pytest.fixture
def damaged(written, tmp_path):
  """A checkpoint to spoil."""
  return pathlib.Path(shutil.copytree(written / "unrolled" / "checkpoint_7", tmp_path / "copy"))


def check_logits(network, params, folder):
  with np.load(folder / "arrays.npz") as arrays:
    logits = jax.jit(network.apply)(
      {"params": params}, arrays["encoder_input_tokens"], arrays["decoder_input_tokens"]
    )
    want = arrays["logits"]
  assert want.std() > 0.3
  assert np.max(np.abs(logits - want)) <= 1e-5 * np.max(np.abs(want))


def assert_same(one, other):
  assert one.shapes == other.shapes
  assert one.dtypes == other.dtypes
  for path in one.shapes:
    assert one.read(path).tobytes() == other.read(path).tobytes(), path


@pytest.mark.parametrize("name", ["unrolled", "tied", "scanned", "shared"])
@pytest.mark.parametrize("scan_layers", [False, True], ids=["unrolled network", "scanned network"])
def test_checkpoints_come_in_and_go_out_as_they_were(name, scan_layers, written, tmp_path):
  folder = written / name
  network = t5x.network(folder, scan_layers=scan_layers)
  assert network.tied_embeddings == (name == "tied")
  params = t5x.load(folder, network)
  if not scan_layers:
    check_logits(network, params, folder)
  out = t5x.export(params, network, tmp_path, like=folder)
  assert out == tmp_path / "checkpoint_7"
  assert_same(zarr_store.Store(tmp_path), zarr_store.Store(folder))


def test_the_msgpack_file_is_what_t5x_writes_but_for_the_optimizer(written, tmp_path):
  network = t5x.network(written / "unrolled")
  t5x.export(t5x.load(written / "unrolled", network), network, tmp_path, written / "unrolled")

  def content(folder):
    return serialization.msgpack_restore((folder / "checkpoint_7" / "checkpoint").read_bytes())

  ours, theirs = content(tmp_path), content(written / "unrolled")
  assert theirs["optimizer"]["state"].pop("param_states")
  assert ours == theirs
  step = ours["optimizer"]["state"]["step"]
  assert (type(step), step) == (np.int32, 7)  # T5X asks for its dtype
  header = json.loads((tmp_path / "checkpoint_7" / KERNEL / ".zarray").read_text())
  assert header == json.loads((written / "unrolled/checkpoint_7" / KERNEL / ".zarray").read_text())


def test_from_one_form_to_the_other(written, tmp_path):
  """A scanned checkpoint goes out unrolled, with heads joined, and means the same."""
  network = t5x.network(written / "shared")
  t5x.export(t5x.load(written / "shared", network), network, tmp_path, written / "unrolled")
  assert zarr_store.Store(tmp_path).shapes == zarr_store.Store(written / "unrolled").shapes
  check_logits(network, t5x.load(tmp_path, network), written / "shared")


def test_to_hugging_face_and_back(tmp_path):
  folder = folders.t5(tmp_path / "hf")
  network = huggingface.network(folder)
  t5x.export(huggingface.load(folder, network), network, tmp_path / "t5x", step=3)
  again = t5x.network(tmp_path / "t5x")
  assert again == network
  params = t5x.load(tmp_path / "t5x", again)
  huggingface.export(params, again, tmp_path / "out", like=folder)
  for name in ("config.json", "model.safetensors"):
    assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()


def test_bfloat16_goes_out_and_comes_in(written, tmp_path):
  network = t5x.network(written / "tied")
  params = t5x.load(written / "tied", network)
  t5x.export(params, network, tmp_path, dtype="bfloat16")
  store = zarr_store.Store(tmp_path)
  assert set(store.dtypes.values()) == {np.dtype(ml_dtypes.bfloat16)}
  expected = jax.tree.map(lambda x: np.asarray(x).astype(ml_dtypes.bfloat16).astype("f4"), params)
  jax.tree.map(np.testing.assert_array_equal, t5x.load(tmp_path, network), expected)


def test_sharded_loading_equals_unsharded(written):
  rules = (("vocab", "tensor"), ("heads", "tensor"), ("mlp", "tensor"))
  partitioner = partitioning.Partitioner({"data": 4, "tensor": 2}, rules)
  network = t5x.network(written / "shared", scan_layers=True)
  parts = t5x.load(written / "shared", network, partitioner)
  kernel = parts["encoder"]["layers"]["attention"]["query"]["kernel"]
  assert kernel.addressable_shards[0].data.shape == (2, 10, 1, 3)
  jax.tree.map(np.testing.assert_array_equal, parts, t5x.load(written / "shared", network))


def test_the_latest_step_is_taken(written, tmp_path):
  for step in (9, 10):
    shutil.copytree(written / "unrolled" / "checkpoint_7", tmp_path / f"checkpoint_{step}")
  (tmp_path / "checkpoint_11.tmp-1700000000").mkdir()
  assert zarr_store.Store(tmp_path).folder.name == "checkpoint_10"
  assert zarr_store.is_checkpoint(tmp_path)
  assert not zarr_store.is_checkpoint(tmp_path / "elsewhere")


def test_chunks_are_small_and_zeros_are_written(tmp_path, monkeypatch):
  monkeypatch.setattr(zarr_store, "_CHUNK_BYTES", 100)
  array = np.zeros((7, 11), np.float32)
  zarr_store.write(tmp_path, [("a/b", array)], 0)
  sizes = json.loads((tmp_path / "target.a.b" / ".zarray").read_text())["chunks"]
  assert np.prod(sizes) * 4 <= 100
  np.testing.assert_array_equal(zarr_store.Store(tmp_path).read("a/b"), array)


def spoil_nothing_there(folder):
  shutil.rmtree(folder)


def spoil_half_a_file(folder):
  file = folder / "checkpoint"
  file.write_bytes(file.read_bytes()[:500])


def spoil_no_array(folder):
  shutil.rmtree(folder / KERNEL)


def spoil_no_chunk(folder):
  (folder / KERNEL / "0.0").unlink()


def spoil_half_a_chunk(folder):
  file = folder / KERNEL / "0.0"
  file.write_bytes(file.read_bytes()[:30])


def spoil_a_shape(folder):
  edit(folder / KERNEL / ".zarray", shape=[14, 9], chunks=[14, 9])


def spoil_an_element_type(folder):
  edit(folder / KERNEL / ".zarray", dtype="<u2")


def edit(file, **changes):
  file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
  ("spoil", "complaint"),
  [
    (spoil_nothing_there, "copy: no T5X checkpoint"),
    (spoil_half_a_file, "copy/checkpoint: not a T5X checkpoint's .*; copy the checkpoint again"),
    (spoil_no_array, f"{KERNEL}: no whole zarr array .*; copy the checkpoint again"),
    (spoil_no_chunk, f"{KERNEL}/0.0: is missing; copy the checkpoint again"),
    (spoil_half_a_chunk, f"{KERNEL}: cannot be read .*; copy the checkpoint again"),
    (spoil_a_shape, r"encoder/layers_0/mlp/wo/kernel has shape \[14, 9\], .* \[14, 10\]"),
    (spoil_an_element_type, "encoder/layers_0/mlp/wo/kernel has elements of type uint16"),
  ],
)
def test_what_is_not_whole_is_told(spoil, complaint, damaged, written):
  network = t5x.network(written / "unrolled")
  spoil(damaged)
  with pytest.raises(InputError, match=complaint):
    t5x.load(damaged, network)


def test_a_checkpoint_of_another_network_is_refused(written):
  network = t5x.network(written / "unrolled")
  with pytest.raises(InputError, match="decoder/logits_dense/kernel, which the network has"):
    t5x.load(written / "tied", network.clone(mlp_activations=("relu",)))
  with pytest.raises(InputError, match="has a parameter decoder/logits_dense/kernel that the netw"):
    t5x.load(written / "unrolled", network.clone(tied_embeddings=True))


def test_layers_with_biases_of_their_own_need_a_network_that_has_them(written):
  assert not t5x.network(written / "shared").relpos_per_layer
  network = t5x.network(written / "scanned")
  assert network.relpos_per_layer
  with pytest.raises(InputError, match=r"biases of their own .*; set relpos_per_layer = True"):
    t5x.load(written / "scanned", network.clone(relpos_per_layer=False))
