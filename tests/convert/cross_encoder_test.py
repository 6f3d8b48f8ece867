"""A cross-encoder's scores are transformers' (tests/golden/write_bert.py), but for one number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kard_jax.convert import cross_encoder
from kard_jax.core.files import InputError
from tests.convert import bert_test, folders


def test_scores_are_those_of_hugging_face(tmp_path):
  folder = bert_test.folder_of(tmp_path, "bert_scorer")
  network, params = cross_encoder.load(folder)
  arrays, weights = folders.golden("bert_scorer")
  tokens, segments = arrays["tokens"], arrays["segments"]
  scores = []
  for row, side in zip(tokens, segments, strict=True):
    query, passage = row[(side == 0) & (row > 0)], row[side == 1]
    # the passage as a text of its own has a first token that the pair leaves out
    listed = np.concatenate([[7], passage, np.zeros(4, int)])[None, None]
    scores.append(
      jax.jit(network.apply)(
        {"params": params}, jnp.asarray(query[None]), jnp.asarray(listed, jnp.int32)
      )[0, 0]
    )
  want = arrays["scores"] - weights["classifier.bias"]
  assert np.std(want) > 0.1
  np.testing.assert_allclose(scores, want, atol=1e-5)


def test_an_encoder_without_a_head_is_told(tmp_path):
  folder = bert_test.folder_of(tmp_path, "bert_plain")
  with pytest.raises(InputError, match=r"no tensor bert\.pooler\.dense\.weight: not a cross"):
    cross_encoder.load(folder)


def test_a_classifier_of_several_labels_is_told(tmp_path):
  _, weights = folders.golden("bert_scorer")
  several = weights | {"classifier.weight": np.repeat(weights["classifier.weight"], 2, 0)}
  folder = folders.write(tmp_path / "hf", bert_test.BERTS["bert_scorer"], several)
  with pytest.raises(InputError, match=r"classifier\.weight gives 2 scores; one is needed"):
    cross_encoder.load(folder)
