"""Adapters as PEFT keeps them: out and in again, and what PEFT itself makes of them."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from kard_jax.convert import huggingface, initial, peft
from kard_jax.core import lora as lora_lib
from kard_jax.core import selection
from kard_jax.core.files import InputError
from kard_jax.core.lora import Lora
from tests.convert import folders

LORA = Lora(rank=2, alpha=6.0, dropout=0.1, targets=("query", "self_attention/out", "mlp/wi_0"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """A model's folder, its network, and random adapters."""
  folder = folders.t5(tmp_path_factory.mktemp("models") / "t5")
  network = huggingface.network(folder, dropout_rate=0.0)
  tokens = [jax.ShapeDtypeStruct((1, 8), np.int32)] * 2
  with LORA.active():
    shapes = jax.eval_shape(network.init, jax.random.key(0), *tokens)["params"]
  rng = np.random.default_rng(0)
  leaves = {
    path: jax.numpy.asarray(rng.normal(scale=0.2, size=leaf.value.shape).astype(np.float32))
    for path, leaf in selection.flatten(shapes).items()
    if lora_lib.is_adapter(path)
  }
  return folder, network, selection.unflatten(leaves)


def merged(adapter, base, adapters):
  return adapter.merge(selection.join(base, adapters))


def test_out_and_in_again(made, tmp_path):
  folder, network, adapters = made
  peft.export(adapters, LORA, network, tmp_path / "out", str(folder))
  settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
  wanted = [f"decoder.block.{i}.layer.0.SelfAttention.o" for i in range(3)]  # and no other "o"
  assert settings["target_modules"] == [*wanted, "q", "wi_0"]
  assert settings["task_type"] == "SEQ_2_SEQ_LM"
  stored = safetensors.numpy.load_file(tmp_path / "out" / "adapter_model.safetensors")
  name = "base_model.model.decoder.block.0.layer.0.SelfAttention.o.lora_A.weight"
  assert stored[name].shape == (2, 24)  # rank, heads x head width
  adapter, again = peft.load(tmp_path / "out", network)
  assert (adapter.rank, adapter.alpha, adapter.dropout) == (2, 6.0, 0.1)
  jax.tree.map(np.testing.assert_array_equal, again, adapters)
  # A run may begin from the folder, scanned or not.
  base = huggingface.load(folder, network)
  whole = merged(LORA, base, adapters)
  place = initial.find(tmp_path / "out")
  jax.tree.map(np.testing.assert_array_equal, initial.load(place, network), whole)
  scanned = initial.load(place, network.clone(scan_layers=True))
  query = scanned["encoder"]["layers"]["attention"]["query"]["kernel"]
  wanted = whole["encoder"]["layers_1"]["attention"]["query"]["kernel"]
  np.testing.assert_allclose(query[1], wanted, rtol=1e-6)


def test_what_is_not_these(made, tmp_path):
  folder, network, adapters = made
  peft.export(adapters, LORA, network, tmp_path / "out", str(folder))
  file = tmp_path / "out" / "adapter_config.json"
  settings = json.loads(file.read_text())
  file.write_text(json.dumps(settings | {"use_dora": True}))
  with pytest.raises(InputError, match="use_dora = True is not supported"):
    peft.load(tmp_path / "out", network)
  file.write_text(json.dumps({"peft_type": "LORA"}))
  with pytest.raises(InputError, match="not PEFT's settings"):
    peft.load(tmp_path / "out", network)
  file.write_text(json.dumps(settings))
  weights = tmp_path / "out" / "adapter_model.safetensors"
  safetensors.numpy.save_file({"x.lora_A.weight": np.ones((2, 3), np.float32)}, weights)
  with pytest.raises(InputError, match=r"has x.lora_A.weight, for which the network has no kernel"):
    peft.load(tmp_path / "out", network)
  weights.unlink()
  with pytest.raises(InputError, match="holds no adapter_model"):
    peft.load(tmp_path / "out", network)


def test_peft_opens_them(made, tmp_path):
  library = pytest.importorskip("peft")
  torch = pytest.importorskip("torch")
  transformers = pytest.importorskip("transformers")
  folder, network, adapters = made
  peft.export(adapters, LORA, network, tmp_path / "out", str(folder))
  base = transformers.T5ForConditionalGeneration.from_pretrained(folder)
  model = library.PeftModel.from_pretrained(base, tmp_path / "out").eval()
  tokens = np.random.default_rng(1).integers(2, 40, (2, 3, 8)).astype(np.int32)
  with torch.no_grad():
    inputs, outputs = (torch.tensor(rows.astype(np.int64)) for rows in tokens)
    theirs = model(input_ids=inputs, decoder_input_ids=outputs).logits.numpy()
  params = merged(LORA, huggingface.load(folder, network), adapters)
  ours = jax.jit(network.apply)({"params": params}, *tokens)
  assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()
