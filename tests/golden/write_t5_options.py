"""Writes t5_options.npz: tiny T5 models, one an option of T5Config that changes numbers.

Each with config.json and weights as transformers saves them, logits, and tokens that `generate`
writes greedily. Not part of the tests: it needs torch, which they do not.

  python -m venv /tmp/hf && /tmp/hf/bin/pip install torch==2.13.0 transformers==5.24.0 numpy
  /tmp/hf/bin/python tests/golden/write_t5_options.py
"""

import json
import pathlib
import tempfile

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file

ROWS, INPUT, TARGET, PROMPTS, PROMPT, WRITTEN = 2, 40, 30, 6, 12, 10
COMMON = {
  "vocab_size": 26,
  "d_model": 10,
  "d_kv": 3,
  "d_ff": 14,
  "num_layers": 2,
  "num_decoder_layers": 1,
  "num_heads": 2,
}
GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
MODELS = {
  "flan": GATED,  # a head of its own, unscaled
  "own_head_scaled": {},  # of its own although config.json ties: transformers keeps both
  "tied_unscaled": GATED,
  "buckets": GATED | {"relative_attention_num_buckets": 10, "relative_attention_max_distance": 20},
  "epsilon": GATED | {"layer_norm_epsilon": 0.05},
  "gated_silu": GATED | {"feed_forward_proj": "gated-silu"},
  "gelu": {"feed_forward_proj": "gelu"},  # the exact one, without a gate
  "deep_decoder": {"num_layers": 1, "num_decoder_layers": 3, "num_heads": 1},
  "mt5": {"model_type": "mt5"},
  "umt5": {"model_type": "umt5"},  # a position bias in each layer
}
OWN_HEAD = ("flan", "own_head_scaled", "buckets", "epsilon", "gated_silu", "mt5", "umt5")


def write(name, rng, folder):
  """One model's arrays."""
  options = dict(MODELS[name])
  config = transformers.AutoConfig.for_model(
    options.pop("model_type", "t5"), **COMMON | options, dropout_rate=0.0
  )
  model = transformers.AutoModelForSeq2SeqLM.from_config(config).eval()
  if name in OWN_HEAD:
    shape = (COMMON["vocab_size"], COMMON["d_model"])
    model.lm_head.weight = torch.nn.Parameter(torch.empty(shape))
  with torch.no_grad():
    for key, parameter in model.named_parameters():
      noise = rng.standard_normal(tuple(parameter.shape)).astype(np.float32)
      if "norm" in key:
        noise = 1 + 0.2 * noise
      elif key != "shared.weight" and "relative" not in key:
        noise = noise * parameter.shape[1] ** -0.5
      # Half of a float32's bits zero: the file is half as large.
      parameter.copy_(torch.from_numpy(noise).bfloat16().float())
  model.save_pretrained(folder)
  inputs = rng.integers(2, COMMON["vocab_size"], (ROWS, INPUT))
  inputs[1, 25:] = 0
  targets = rng.integers(2, COMMON["vocab_size"], (ROWS, TARGET))
  targets[:, 0] = 0
  prompts = rng.integers(2, COMMON["vocab_size"], (PROMPTS, PROMPT))
  prompts[np.arange(PROMPT) >= rng.integers(1, PROMPT + 1, PROMPTS)[:, None]] = 0
  settings = transformers.GenerationConfig(
    max_new_tokens=WRITTEN, use_cache=False, pad_token_id=0, decoder_start_token_id=0
  )
  model.generation_config = settings
  with torch.no_grad():
    logits = model(
      input_ids=torch.from_numpy(inputs),
      attention_mask=torch.from_numpy((inputs != 0).astype(np.int64)),
      decoder_input_ids=torch.from_numpy(targets),
    ).logits.numpy()
    ids = torch.from_numpy(prompts)
    tokens = model.generate(ids, attention_mask=(ids != 0).long(), generation_config=settings)
  config = json.dumps(json.loads((folder / "config.json").read_text()))
  weights = load_file(folder / "model.safetensors")
  return {
    "config": np.frombuffer(config.encode(), np.uint8),
    "encoder_input_tokens": inputs.astype(np.int32),
    "decoder_input_tokens": targets.astype(np.int32),
    "logits": logits,
    "prompts": prompts.astype(np.int32),
    "written": tokens.numpy()[:, 1:].astype(np.int32),
  } | {f"weights/{key}": value for key, value in weights.items()}


def main():
  arrays = {}
  for number, name in enumerate(MODELS):
    for seed in range(1_000 * number, 1_000 * (number + 1)):  # until it writes more than one word
      with tempfile.TemporaryDirectory() as folder:
        found = write(name, np.random.default_rng(seed), pathlib.Path(folder))
      if len(np.unique(found["written"])) > 3:
        break
    arrays |= {f"{name}/{key}": value for key, value in found.items()}
    print(name, found["logits"].std(), len({*found["written"].ravel().tolist()}))
  np.savez_compressed(pathlib.Path(__file__).parent / "t5_options.npz", **arrays)
  print(transformers.__version__, torch.__version__)


if __name__ == "__main__":
  main()
