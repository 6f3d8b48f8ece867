"""T5X itself restores what we write; only where it can be imported (it is no requirement)."""

import tarfile

import jax
import numpy as np
import pytest
from flax import traverse_util

from kard_jax.convert import t5x
from tests.convert.t5x_test import GOLDEN

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["unrolled", "tied", "scanned", "shared"])
def test_t5x_restores_what_we_write(name, tmp_path):
  checkpoints = pytest.importorskip("t5x.checkpoints", reason="T5X's sources are not on the path")
  with tarfile.open(GOLDEN) as packed:
    packed.extractall(tmp_path, filter="data")
  network = t5x.network(tmp_path / name, scan_layers=name in ("scanned", "shared"))
  params = t5x.load(tmp_path / name, network)
  out = t5x.export(params, network, tmp_path / "out", like=tmp_path / name)
  ours = checkpoints.load_t5x_checkpoint(str(out))
  theirs = checkpoints.load_t5x_checkpoint(str(tmp_path / name / "checkpoint_7"))
  assert ours["state"]["step"] == theirs["state"]["step"] == 7
  jax.tree.map(np.testing.assert_array_equal, ours["target"], theirs["target"])
  restored = restore(checkpoints, ours["target"], out)
  jax.tree.map(np.testing.assert_array_equal, restored, theirs["target"])


def restore(checkpoints, target, folder):
  """By T5X's Checkpointer, as its inference and evaluation do."""
  from flax.core import freeze, unfreeze
  from flax.linen import partitioning as flax_partitioning
  from t5x import partitioning, train_state

  zeros = jax.tree.map(np.zeros_like, target)
  axes = jax.tree.map(
    lambda x: flax_partitioning.AxisMetadata(
      names=(*("embed",) * (np.ndim(x) > 0),) + (None,) * max(0, np.ndim(x) - 1)
    ),
    zeros,
  )
  flat = traverse_util.flatten_dict(axes)
  named = traverse_util.unflatten_dict({(*k[:-1], f"{k[-1]}_axes"): v for k, v in flat.items()})
  state = train_state.InferenceState.create(freeze({"params": zeros, "params_axes": named}))
  partitioner = partitioning.PjitPartitioner(num_partitions=1)
  checkpointer = checkpoints.Checkpointer(state, partitioner, str(folder.parent))
  return jax.tree.map(np.asarray, unfreeze(checkpointer.restore(path=str(folder)).params))
