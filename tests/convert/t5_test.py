"""Every option of T5Config that changes numbers (tests/golden/write_t5_options.py)."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kard_jax.convert import huggingface
from kard_jax.core import decode
from tests.convert import folders

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "t5_options.npz"
OPTIONS = {  # what each must come out as
  "flan": {"tied_embeddings": False, "scale_logits": None, "mlp_activations": ("gelu", "linear")},
  "own_head_scaled": {"tied_embeddings": False, "scale_logits": True, "mlp_activations": ("relu",)},
  "tied_unscaled": {"tied_embeddings": True, "scale_logits": False},
  "buckets": {"num_buckets": 10, "max_distance": 20},
  "epsilon": {"norm_epsilon": 0.05},
  "gated_silu": {"mlp_activations": ("silu", "linear")},
  "gelu": {"mlp_activations": ("gelu_erf",), "tied_embeddings": True, "scale_logits": None},
  "deep_decoder": {"num_encoder_layers": 1, "num_decoder_layers": 3, "num_heads": 1},
  "umt5": {"tied_embeddings": False, "scale_logits": True, "relpos_per_layer": True},
  "mt5": {"tied_embeddings": False, "scale_logits": None, "mlp_activations": ("gelu", "linear")},
}
FAST = ("tied_unscaled", "own_head_scaled", "deep_decoder", "umt5")


def folder_of(name, place):
  with np.load(GOLDEN, allow_pickle=False) as file:
    arrays = {k.partition("/")[2]: file[k] for k in file.files if k.partition("/")[0] == name}
  weights = {k.removeprefix("weights/"): v for k, v in arrays.items() if k.startswith("weights/")}
  config = json.loads(arrays["config"].tobytes())
  return folders.write(place, config, weights), arrays


@pytest.mark.parametrize("name", OPTIONS)
def test_logits_are_those_of_hugging_face(name, tmp_path):
  folder, arrays = folder_of(name, tmp_path / name)
  network = huggingface.network(folder)
  assert {key: getattr(network, key) for key in OPTIONS[name]} == OPTIONS[name]
  params = huggingface.load(folder, network)
  logits = jax.jit(network.apply)(
    {"params": params}, arrays["encoder_input_tokens"], arrays["decoder_input_tokens"]
  )
  want = arrays["logits"]
  assert want.std() > 0.3
  assert np.max(np.abs(logits - want)) <= 1e-5 * np.max(np.abs(want))


@pytest.mark.parametrize(
  "name",
  [
    name if name in FAST else pytest.param(name, marks=pytest.mark.slow)  # a compilation each
    for name in OPTIONS
  ],
)
def test_greedy_tokens_are_those_of_generate(name, tmp_path):
  folder, arrays = folder_of(name, tmp_path / name)
  network = huggingface.network(folder)
  params = huggingface.load(folder, network)
  written = arrays["written"]
  sampler = decode.Sampler(greedy=True, eos_id=-1)
  decoded = decode.decode(
    network, params, jnp.asarray(arrays["prompts"]), sampler=sampler, max_length=written.shape[1]
  )
  assert len(np.unique(written)) > 2
  np.testing.assert_array_equal(decoded.tokens_BxSxT[:, 0], written)


def test_all_options_differ(tmp_path):
  networks = {huggingface.network(folder_of(name, tmp_path / name)[0]) for name in OPTIONS}
  assert len(networks) == len(OPTIONS) - 1  # mT5 is Flan's network


def test_a_round_trip_of_each_gives_the_same_weights(tmp_path):
  for name in OPTIONS:
    folder, _ = folder_of(name, tmp_path / name)
    network = huggingface.network(folder)
    out = tmp_path / "out" / name
    huggingface.export(huggingface.load(folder, network), network, out, like=folder)
    for file in folder.iterdir():
      assert (out / file.name).read_bytes() == file.read_bytes(), name
