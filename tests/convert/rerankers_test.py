"""A reranker's encoder begins as a model's: BERT's, or the encoder half of a T5."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kard_jax.convert import huggingface
from kard_jax.core.files import InputError
from kard_jax.reranker import network
from tests.convert import bert_test, folders


def test_berts_encoder(tmp_path):
  folder = bert_test.folder_of(tmp_path, "bert_plain")
  encoder = huggingface.network(folder)
  for scorer in (network.LateInteraction(encoder, 8), network.CrossEncoder(encoder)):
    params = huggingface.load(folder, scorer)
    assert set(params) == {"encoder"}  # the rest begins fresh
    whole = huggingface.load(folder, encoder)
    jax.tree.map(np.testing.assert_array_equal, params["encoder"], whole)


T5 = {"vocab_size": 40, "embed_dim": 20, "num_layers": 2, "num_heads": 3, "head_dim": 8}


@pytest.mark.parametrize("scan_layers", [False, True])
def test_the_encoder_half_of_t5(tmp_path, scan_layers):
  folder = folders.t5(tmp_path / "hf", "t5_1_1")
  encoder = network.T5Encoder(**T5, mlp_dim=28, scan_layers=scan_layers)
  scorer = network.LateInteraction(encoder)
  params = huggingface.load(folder, scorer)
  fresh = jax.eval_shape(
    scorer.init, jax.random.key(0), jnp.ones((1, 4), jnp.int32), jnp.ones((1, 1, 4), jnp.int32)
  )["params"]
  shapes = jax.tree.map(jnp.shape, network.nn.meta.unbox(fresh))
  assert jax.tree.map(jnp.shape, params) == shapes
  _, weights = folders.golden("t5_1_1")
  table = params["encoder"]["token_embedder"]["embedding"]
  np.testing.assert_array_equal(table, weights["shared.weight"])


def test_another_shape_or_family_is_told(tmp_path):
  folder = folders.t5(tmp_path / "hf", "t5_1_1")
  other = network.LateInteraction(network.T5Encoder(**T5 | {"num_layers": 3}, mlp_dim=28))
  with pytest.raises(InputError, match=r"asks for network\.T5Encoder\.num_layers = 2, .* has 3"):
    huggingface.load(folder, other)
  bert = bert_test.folder_of(tmp_path / "bert", "bert_plain")
  with pytest.raises(InputError, match="not a T5"):
    huggingface.load(bert, other)
