"""TensorFlow takes no accelerator's memory: GPUs and TPUs are hidden before anything starts it.

It takes a GPU, nearly all of its memory, when its context starts; hidden ones it leaves alone.
"""

import gc

import pytest
import tensorflow as tf
from tensorflow.python.eager import context

from kard_jax.core import monitor
from tasks import vocabularies
from tasks.batches import Batches

LENGTHS, LISTS = {"inputs": 64, "targets": 32}, {"query": 48, "passages": 24}


@pytest.fixture
def hidden_first(monkeypatch):
  """Fails where TensorFlow worked before both kinds were hidden, or did not work at all."""
  hidden, starts = set(), []
  hide, start = tf.config.set_visible_devices, context.Context.ensure_initialized

  def hiding(devices, kind=None):
    assert devices == []
    hidden.add(kind)
    return hide(devices, kind)

  def starting(self):
    starts.append(set(hidden))
    return start(self)

  monkeypatch.setattr(tf.config, "set_visible_devices", hiding)
  gc.collect()  # what other tests have left would be deleted by TensorFlow, which is work too
  monkeypatch.setattr(context.Context, "ensure_initialized", starting)
  yield
  assert starts
  assert starts[0] == {"GPU", "TPU"}


def test_a_vocabulary(tiny_files, hidden_first):
  assert vocabularies.Vocabulary(next(tiny_files.path.glob("vocabulary/*.model"))).vocab_size > 10


@pytest.mark.parametrize("kind", ["ft", "kard", "rerank", "dapt"])
def test_batches(kind, tiny_files, register, hidden_first):
  lengths = LISTS if kind == "rerank" else LENGTHS
  task = register(tiny_files, extra_ids=100).task(kind)
  assert Batches(task, "train", lengths=lengths, batch_size=2, seed=1)(0)


def test_a_runs_figures(tmp_path, hidden_first):
  # For a user's own batches, which may read nothing by TensorFlow.
  with monitor.Monitor(tmp_path / "run", 3, 1) as seen:
    seen.begin(0, None)
  assert any((tmp_path / "run" / "tensorboard").iterdir())
