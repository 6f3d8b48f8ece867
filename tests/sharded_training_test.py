"""Eight fake devices (data 2 x fsdp 2 x tensor 2) train to the loss of one device."""

import json
import math

import jax
import numpy as np
import pytest

from kard_jax.core import train as loop
from kard_jax.core.optimizers import AdamW, Schedule
from kard_jax.core.partitioning import Partitioner
from kard_jax.reranker.network import LateInteraction, T5Encoder
from kard_jax.reranker.objective import ListwiseKL
from kard_jax.student.gpt import GPT
from kard_jax.student.objective import TokenCrossEntropy
from kard_jax.student.t5 import T5
from tests import meshes

STUDENT = TokenCrossEntropy(
  T5(
    vocab_size=64,
    embed_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=32,
    num_encoder_layers=1,
    num_decoder_layers=1,
    dropout_rate=0.0,
  )
)
DECODER_ONLY = TokenCrossEntropy(
  GPT(
    vocab_size=64,
    embed_dim=16,
    num_layers=1,
    num_heads=2,
    mlp_dim=32,
    max_positions=8,
    dropout_rate=0.0,
    scan_layers=True,
  )
)
RERANKER = ListwiseKL(
  LateInteraction(
    T5Encoder(vocab_size=64, embed_dim=16, num_layers=1, num_heads=2, head_dim=8, mlp_dim=32),
    projection_dim=8,
  )
)


def tokens(rng, *shape):
  """Rows of tokens of various lengths, padded with 0."""
  rows = rng.integers(2, 64, shape).astype(np.int32)
  lengths = rng.integers(2, shape[-1] + 1, (*shape[:-1], 1))
  return np.where(np.arange(shape[-1]) < lengths, rows, 0).astype(np.int32)


def student_batch(rng):
  target = tokens(rng, 8, 5)
  return {
    "encoder_input_tokens": tokens(rng, 8, 6),
    "decoder_input_tokens": np.pad(target[:, :-1], ((0, 0), (1, 0))),
    "decoder_target_tokens": target,
    "decoder_loss_weights": (target > 0).astype(np.int32),
  }


def decoder_only_batch(rng):
  text = tokens(rng, 8, 6)
  return {
    "decoder_input_tokens": np.pad(text[:, :-1], ((0, 0), (1, 0))),
    "decoder_target_tokens": text,
    "decoder_loss_weights": (text > 0).astype(np.int32),
  }


def reranker_batch(rng):
  return {
    "query_tokens": tokens(rng, 8, 5),
    "passage_tokens": tokens(rng, 8, 3, 6),
    "passage_scores": rng.uniform(0, 9, (8, 3)).astype(np.float32),
    "passage_mask": np.ones((8, 3), np.int32),
  }


class Batches:
  batch_size = 8

  def __init__(self, make):
    self._make = make

  def __call__(self, step, rows=None):
    return {k: v[rows or slice(None)] for k, v in self._make(np.random.default_rng(step)).items()}

  def names(self, step):
    return [str(row) for row in range(8)]


def train(folder, objective, make, axes):
  trainer = loop.Trainer(
    steps=6,
    optimizer=AdamW(Schedule(1e-2)),
    partitioner=Partitioner(axes, meshes.RULES, devices=math.prod(axes.values())),
    log_every=1,
    evaluate_every=6,
    save_every=6,
  )
  run = loop.train(
    objective,
    Batches(make),
    folder,
    trainer=trainer,
    validation=[make(np.random.default_rng(99))],
  )
  rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  losses = [row["train/loss"] for row in rows if "train/loss" in row]
  return run, np.array([*losses, run.metrics["loss"]])


@pytest.mark.parametrize(
  ("objective", "make"),
  [(STUDENT, student_batch), (DECODER_ONLY, decoder_only_batch), (RERANKER, reranker_batch)],
  ids=["student", "decoder_only", "reranker"],
)
def test_eight_devices_train_to_the_loss_of_one(tmp_path, objective, make):
  _, one = train(tmp_path / "one", objective, make, {"data": 1, "fsdp": 1, "tensor": 1})
  run, eight = train(tmp_path / "eight", objective, make, meshes.AXES)
  assert len(np.unique(one)) == 7  # it does train
  params = run.state.params
  owner = params if "token_embedder" in params else params["encoder"]  # the reranker's encoder
  table = owner["token_embedder"]["embedding"]
  assert table.sharding.num_devices == 8
  assert table.addressable_shards[0].data.shape == (32, 8)  # vocabulary: tensor, width: fsdp
  moments = [leaf for leaf in jax.tree.leaves(run.state.opt_state) if leaf.shape == table.shape]
  assert len(moments) >= 2
  for moment in moments:  # the optimiser's state lies as the parameters do
    assert moment.addressable_shards[0].data.shape == (32, 8)
  np.testing.assert_allclose(eight, one, rtol=1e-5)
