"""Writes t5_1_1.npz and t5_1_0.npz: tiny T5 models with random weights and their logits.

Hugging Face's PyTorch T5 is the oracle. Not part of the tests: it needs torch, which they do not.

  python -m venv /tmp/hf && /tmp/hf/bin/pip install torch==2.13.0 transformers==5.23.0 numpy
  /tmp/hf/bin/python tests/golden/write_t5.py

The shapes are chosen to tell mistakes apart: heads times head_dim is not the width, encoder and
decoder differ in depth, rows have different lengths, and distances go beyond the last bucket.
Every parameter is random, norms and position biases too, so that each of them matters.
"""

import pathlib

import numpy as np
import torch
import transformers

VOCAB, ROWS, INPUT, TARGET = 40, 2, 150, 135
COMMON = {
  "vocab_size": VOCAB,
  "d_model": 20,
  "d_kv": 8,
  "d_ff": 28,
  "num_layers": 2,
  "num_decoder_layers": 3,
  "num_heads": 3,
}
MODELS = {
  "t5_1_1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
  "t5_1_0": {"feed_forward_proj": "relu", "tie_word_embeddings": True},
}


def write(name: str, seed: int) -> None:
  rng = np.random.default_rng(seed)
  config = transformers.T5Config(**COMMON, **MODELS[name], dropout_rate=0.0)
  model = transformers.T5ForConditionalGeneration(config).eval()
  if not MODELS[name]["tie_word_embeddings"]:
    # Transformers 5 builds every T5 tied and unties what a checkpoint brings along; the flag still
    # decides whether the decoder's output is scaled.
    model.lm_head.weight = torch.nn.Parameter(torch.empty(VOCAB, COMMON["d_model"]))
  weights = {}
  with torch.no_grad():
    for key, parameter in model.named_parameters():  # a tied table is listed once
      noise = rng.standard_normal(tuple(parameter.shape))
      if "norm" in key:
        value = 1 + 0.2 * noise
      elif key == "shared.weight" or "relative" in key:
        value = noise
      else:
        value = noise * parameter.shape[1] ** -0.5
      weights[key] = value.astype(np.float32)
      parameter.copy_(torch.from_numpy(weights[key]))
  inputs = rng.integers(2, VOCAB, (ROWS, INPUT))
  inputs[1, 90:] = 0
  targets = rng.integers(2, VOCAB, (ROWS, TARGET))
  targets[:, 0] = 0
  with torch.no_grad():
    logits = model(
      input_ids=torch.from_numpy(inputs),
      attention_mask=torch.from_numpy((inputs != 0).astype(np.int64)),
      decoder_input_ids=torch.from_numpy(targets),
    ).logits.numpy()
  np.savez_compressed(
    pathlib.Path(__file__).parent / f"{name}.npz",
    encoder_input_tokens=inputs.astype(np.int32),
    decoder_input_tokens=targets.astype(np.int32),
    logits=logits,
    **{f"weights/{key}": value for key, value in weights.items()},
  )
  print(name, logits.std(), transformers.__version__, torch.__version__)


if __name__ == "__main__":
  for number, model_name in enumerate(MODELS):
    write(model_name, number)
