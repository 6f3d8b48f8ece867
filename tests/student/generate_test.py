"""Texts equal those of Hugging Face's `generate` (tests/golden/write_generate.py wrote them)."""

import functools

import numpy as np
import pytest

from kard_jax.core import decode
from tests.student import parity_test

STEEPER = 3.0  # as in write_generate.py
SETTINGS = {
  "greedy": ({"greedy": True}, 1),
  "beams_2": ({"beams": 2}, 1),
  "beams_4": ({"beams": 4}, 3),
  "beams_4_short": ({"beams": 4, "length_penalty": -1.0}, 4),
  "beams_4_no_penalty": ({"beams": 4, "length_penalty": 0.0}, 2),
  "beams_4_long": ({"beams": 4, "length_penalty": 2.5}, 2),
  "beams_3_early": ({"beams": 3, "early_stopping": True}, 3),
  "beams_3_never": ({"beams": 3, "early_stopping": "never"}, 3),
}
# One case with tied embeddings is enough; each compiles for seconds.
CASES = [("t5_1_1", name) for name in SETTINGS] + [("t5_1_0", "greedy")]


@functools.cache
def _golden():
  with np.load(parity_test.GOLDEN / "generate.npz", allow_pickle=False) as file:
    return dict(file)


def _model(name):
  params = parity_test._golden(name)[1]
  decoder = {key: value for key, value in params["decoder"].items() if key != "layers_2"}
  decoder["decoder_norm"] = {"scale": STEEPER * decoder["decoder_norm"]["scale"]}
  return parity_test.NETWORKS[name].clone(num_decoder_layers=2), params | {"decoder": decoder}


@pytest.mark.parametrize(("model", "setting"), CASES)
def test_texts_are_those_of_generate(model, setting):
  network, params = _model(model)
  options, samples = SETTINGS[setting]
  want = _golden()[f"{model}/{setting}/tokens"]
  found = decode.decode(
    network,
    params,
    _golden()["inputs"],
    sampler=decode.Sampler(**options),
    max_length=want.shape[-1],
    samples=samples,
  )
  np.testing.assert_array_equal(found.tokens_BxSxT, want)
  ends = np.where((want == 1).any(-1), (want == 1).argmax(-1) + 1, want.shape[-1])
  np.testing.assert_array_equal(found.lengths_BxS, ends)
  if "beams" in options:
    penalty = options.get("length_penalty", 1.0)
    scores = found.log_probs_BxS / found.lengths_BxS.astype(np.float64) ** penalty
    np.testing.assert_allclose(scores, _golden()[f"{model}/{setting}/scores"], rtol=1e-4)


def test_the_settings_of_beams_tell_apart():
  texts = {
    name: _golden()[f"t5_1_1/{name}/tokens"][:, :2].tobytes()
    for name in SETTINGS
    if SETTINGS[name][1] >= 2
  }
  assert len(set(texts.values())) == len(texts)
