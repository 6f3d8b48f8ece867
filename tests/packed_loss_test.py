"""Packed rows mean what single ones mean: the same loss and weight, for both kinds of student."""

import dataclasses

import jax
import numpy as np
import pytest

from kard_jax.core import rope
from kard_jax.student import gpt, t5
from kard_jax.student.objective import TokenCrossEntropy
from tasks import features, registry
from tasks.batches import Batches
from tests.tasks import tiny

_GPT = gpt.GPT(
  vocab_size=256, pad_id=0, num_layers=2, embed_dim=16, num_heads=2, mlp_dim=16, rope=rope.Rope(),
  dropout_rate=0.0,
)  # fmt: skip
_LEARNED = _GPT.clone(rope=None, max_positions=512)
_T5 = t5.T5(
  vocab_size=256, embed_dim=16, num_heads=2, head_dim=8, mlp_dim=16, num_encoder_layers=2,
  num_decoder_layers=2, dropout_rate=0.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def task(tmp_path_factory):
  files = tiny.write(tmp_path_factory.mktemp("packed"), train=4, validation=1)
  registry.register("packed", questions="-", passages="-.jsonl", workdir=files.path)
  yield "packed_kard"
  registry.unregister("packed")


@pytest.mark.parametrize("network", [_T5, _GPT, _LEARNED], ids=["t5", "rotary", "learned"])
def test_packing_changes_no_loss(network, task):
  lengths = {"inputs": 200, "targets": 90}
  packed = Batches(
    task,
    "train",
    lengths=lengths,
    batch_size=8,
    decoder_only=features.is_decoder_only(network),
    pack=True,
  )
  alone = dataclasses.replace(packed, pack=False)
  objective = TokenCrossEntropy(network, z_loss=1e-3)
  (rows,), (single,) = packed.epoch(), alone.epoch()
  assert packed.rows < alone.rows == 8
  params = jax.tree.map(
    lambda box: 4 * box.value + 0.1,  # no bias is 0, and attention is far from even
    objective.init(jax.random.key(0), single),
    is_leaf=lambda leaf: hasattr(leaf, "names"),
  )
  loss = jax.jit(lambda params, batch: objective.loss(params, batch, None))
  losses = [loss(params, batch) for batch in (rows, single)]
  assert losses[0].weight == losses[1].weight > 0
  np.testing.assert_allclose(losses[0].total, losses[1].total, rtol=1e-5)
  names = [name for name in rows if name.endswith("segment_ids")]
  assert names
  blind = {name: array for name, array in rows.items() if "segment" not in name}
  other = loss(params, blind)
  assert abs(other.total - losses[1].total) > 1e-4 * abs(losses[1].total)
