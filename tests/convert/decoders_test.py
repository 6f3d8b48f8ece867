"""GPT-2, OPT, Llama and its relatives: names, options and numbers (tests/golden/write_gpt.py)."""

import functools

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from kard_jax.convert import huggingface
from kard_jax.core import decode
from kard_jax.core.files import InputError
from tests.convert import folders

MODELS = folders.decoders()
SHOWN = ["-".join(model) for model in MODELS]


FAST = {"by_layer", "350m", "dynamic", "qwen3_sliding", "smollm3_sliding"}  # each option in one
SOME_FAST = [m if m[1] in FAST else pytest.param(m, marks=pytest.mark.slow) for m in MODELS]


@functools.cache
def _loaded(root, model):
  folder, golden = folders.decoder(root / "-".join(model), *model)
  network = huggingface.network(folder)
  return network, huggingface.load(folder, network), golden, folder


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  return tmp_path_factory.mktemp("decoders")


@pytest.mark.parametrize("model", MODELS, ids=SHOWN)
def test_logits_are_those_of_hugging_face(model, root):
  network, params, golden, _ = _loaded(root, model)
  logits = jax.jit(network.apply)({"params": params}, golden["tokens"])
  want = golden["logits"]
  assert want.std() > 0.5
  assert np.max(np.abs(logits - want)) <= 1e-5 * np.max(np.abs(want))


@pytest.mark.parametrize("model", SOME_FAST, ids=SHOWN)
def test_greedy_tokens_are_those_of_hugging_face(model, root):
  network, params, golden, _ = _loaded(root, model)
  prompts_BxL = np.full((2, 12), -1, np.int32)
  prompts_BxL[0], prompts_BxL[1, :5] = golden["prompts"][:12], golden["prompts"][12:]
  sampler = decode.Sampler(greedy=True, eos_id=-1, pad_id=network.pad_id)
  prompts_BxL = np.where(prompts_BxL < 0, network.pad_id, prompts_BxL)
  decoded = decode.decode(network, params, prompts_BxL, sampler=sampler, max_length=8)
  np.testing.assert_array_equal(decoded.tokens_BxSxT[:, 0], golden["written"])


def content(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("model", MODELS, ids=SHOWN)
def test_a_round_trip_gives_the_same_bytes(model, root, tmp_path):
  """Through a network with one array for all layers, whose layers are gathered and spread."""
  network, params, _, folder = _loaded(root, model)
  scanned = huggingface.network(folder, scan_layers=True)
  stacked = huggingface.load(folder, scanned)
  kernel = stacked["decoder"]["layers"]["attention"]["query"]["kernel"]
  np.testing.assert_array_equal(
    kernel[1], params["decoder"]["layers_1"]["attention"]["query"]["kernel"]
  )
  huggingface.export(stacked, scanned, tmp_path / "out", folder)
  assert content(tmp_path / "out") == content(folder)
  huggingface.export(params, network, tmp_path / "again", folder)
  assert content(tmp_path / "again") == content(folder)


@pytest.mark.parametrize("model", [("gpt2", "by_layer"), ("llama", "smollm3_sliding")])
def test_scanned_layers_say_what_unrolled_ones_say(model, root):
  network, _, golden, folder = _loaded(root, model)
  scanned = huggingface.network(folder, scan_layers=True)
  params = huggingface.load(folder, scanned)
  logits = jax.jit(scanned.apply)({"params": params}, golden["tokens"])
  want = golden["logits"]
  assert np.max(np.abs(logits - want)) <= 1e-5 * np.max(np.abs(want))
  prompt = golden["prompts"][None, :12]
  sampler = decode.Sampler(greedy=True, eos_id=-1, pad_id=network.pad_id)
  decoded = decode.decode(scanned, params, prompt, sampler=sampler, max_length=8)
  np.testing.assert_array_equal(decoded.tokens_BxSxT[0, 0], golden["written"][0])


def renamed(folder, change, extra=None):
  """Writes a folder's weights again under other names."""
  weights = load_file(folder / "model.safetensors")
  renamed = {change(name): array for name, array in weights.items()} | (extra or {})
  save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
  ("model", "prefix", "table", "inert"),
  [
    (("gpt2", "gpt2"), "transformer.", "wte.weight", "h.1.attn.bias"),
    (("opt", "350m"), "model.", "decoder.embed_tokens.weight", None),
    (
      ("llama", "qwen3"),
      "model.",
      "embed_tokens.weight",
      "model.layers.0.self_attn.rotary_emb.inv_freq",
    ),
  ],
)
def test_older_names_mean_the_same(model, prefix, table, inert, root, tmp_path):
  """No prefix, a tied head stored as well, and tensors that say nothing; all come out again."""
  _, params, _, _ = _loaded(root, model)
  folder, _ = folders.decoder(tmp_path / "old", *model)
  head = load_file(folder / "model.safetensors")[prefix + table]
  extra = {"lm_head.weight": head}
  if inert is not None:
    extra[inert] = np.ones((1, 1, 3, 3), np.uint8)
  renamed(folder, lambda name: name.removeprefix(prefix), extra)
  network = huggingface.network(folder)
  assert network.tied_embeddings
  loaded = huggingface.load(folder, network)
  jax.tree.map(np.testing.assert_array_equal, loaded, params)
  huggingface.export(loaded, network, tmp_path / "out", folder)
  assert content(tmp_path / "out") == content(folder)


@pytest.mark.parametrize("model", [("gpt2", "gpt2"), ("opt", "350m"), ("llama", "qwen3")])
def test_a_head_of_its_own_is_told_by_the_weights(model, root, tmp_path):
  folder, golden = folders.decoder(tmp_path / "own", *model)
  table = next(
    array for name, array in load_file(folder / "model.safetensors").items()
    if name.endswith(("wte.weight", "embed_tokens.weight"))
  )  # fmt: skip
  renamed(folder, lambda name: name, {"lm_head.weight": 2 * table})
  network = huggingface.network(folder)
  assert not network.tied_embeddings
  params = huggingface.load(folder, network)
  logits = jax.jit(network.apply)({"params": params}, golden["tokens"])
  np.testing.assert_allclose(logits, 2 * golden["logits"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  ("model", "changed", "complaint"),
  [
    (("gpt2", "gpt2"), {"add_cross_attention": True}, "add_cross_attention = True is not supp"),
    (("gpt2", "gpt2"), {"activation_function": "prelu"}, "activation 'prelu'; known are gelu"),
    (("gpt2", "gpt2"), {"n_head": 3}, "n_embd = 20 is no multiple of n_head = 3"),
    (("gpt2", "gpt2"), {"n_layer": 0}, "n_layer = 0 must be at least 1"),
    (("gpt2", "gpt2"), {"quantization_config": {"bits": 4}}, "before quantisation"),
    (("opt", "opt"), {"hidden_size": 21}, "21 is no multiple of num_attention_heads = 4"),
    (("opt", "opt"), {"enable_bias": "yes"}, "enable_bias = 'yes' should be of type bool"),
    (("llama", "llama"), {"num_key_value_heads": 3}, "no multiple of num_key_value_heads = 3"),
    (("llama", "llama"), {"head_dim": 7}, "head_dim = 7: rotary positions need an even one"),
    (("llama", "llama"), {"rope_scaling": {"type": "longrope"}}, "type may be default, linear"),
    (("llama", "llama"), {"rope_scaling": {"rope_type": "linear"}}, "type linear lacks factor"),
    (("llama", "llama"), {"partial_rotary_factor": 0.5}, "0.5: whole heads are turned here"),
    (
      ("llama", "llama"),
      {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}},
      "one for all layers is needed",
    ),
    (("llama", "qwen2"), {"layer_types": ["full_attention"]}, "has 1 entries for 2 layers"),
    (("llama", "qwen2"), {"layer_types": ["linear_attention"] * 2}, "'linear_attention'.* not kno"),
    (("llama", "qwen2"), {"layer_types": ["sliding_attention"] * 2}, "sliding, without use_sl"),
  ],
)
def test_what_would_change_the_numbers_is_refused(model, changed, complaint, tmp_path):
  folder, _ = folders.decoder(tmp_path / "changed", *model, changed=changed)
  with pytest.raises(InputError, match=complaint) as caught:
    huggingface.network(folder)
  assert str(folder) in str(caught.value)


def test_weights_of_whole_numbers_are_refused(tmp_path):
  folder, _ = folders.decoder(tmp_path / "whole", "gpt2", "gpt2")
  weights = load_file(folder / "model.safetensors")
  name = "transformer.h.1.mlp.c_fc.weight"
  weights[name] = weights[name].astype(np.uint8)
  save_file(weights, folder / "model.safetensors")
  with pytest.raises(InputError, match=r"c_fc.weight has elements of type uint8; weights are"):
    huggingface.load(folder, huggingface.network(folder))


def test_older_words_for_rotary_positions(root, tmp_path):
  network, *_ = _loaded(root, ("llama", "llama3"))
  old = {"rope_parameters": None, "rope_theta": 10_000, "rope_scaling": {
    "type": "llama3", "factor": 4, "original_max_position_embeddings": 8,
    "low_freq_factor": 1, "high_freq_factor": 3,
  }}  # fmt: skip
  folder, _ = folders.decoder(tmp_path / "old", "llama", "llama3", changed=old)
  assert huggingface.network(folder).rope == network.rope
