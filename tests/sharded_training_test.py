"""Eight fake devices (data 4 x model 2) train student and reranker to the loss of one device."""

import json

import numpy as np
import pytest

from kard_jax.core import train as loop
from kard_jax.core.optimizers import AdamW, Schedule
from kard_jax.core.partitioning import Partitioner
from kard_jax.reranker.network import LateInteraction, T5Encoder
from kard_jax.reranker.objective import ListwiseKL
from kard_jax.student.objective import TokenCrossEntropy
from kard_jax.student.t5 import T5

RULES = [("batch", "data"), ("vocab", "model"), ("heads", "model"), ("mlp", "model")]
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


def train(folder, objective, make, data, model):
  trainer = loop.Trainer(
    steps=6,
    optimizer=AdamW(Schedule(1e-2)),
    partitioner=Partitioner({"data": data, "model": model}, RULES, devices=data * model),
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
  [(STUDENT, student_batch), (RERANKER, reranker_batch)],
  ids=["student", "reranker"],
)
def test_eight_devices_train_to_the_loss_of_one(tmp_path, objective, make):
  _, one = train(tmp_path / "one", objective, make, 1, 1)
  run, eight = train(tmp_path / "eight", objective, make, 4, 2)
  assert len(np.unique(one)) == 7  # it does train
  params = run.state.params
  owner = params if "token_embedder" in params else params["encoder"]  # the reranker's encoder
  table = owner["token_embedder"]["embedding"]
  assert table.sharding.num_devices == 8
  assert table.addressable_shards[0].data.shape == (32, 16)  # the vocabulary over "model"
  np.testing.assert_allclose(eight, one, rtol=1e-5)
