"""Writes bert_plain.npz and bert_scorer.npz: tiny BERTs with random weights and what they give.

Hugging Face's PyTorch BERT is the oracle. Not part of the tests: it needs torch, which they do not.

  python -m venv /tmp/hf && /tmp/hf/bin/pip install torch==2.13.0 transformers==5.24.0 numpy
  /tmp/hf/bin/python tests/golden/write_bert.py

The shapes are chosen to tell mistakes apart: depth, heads, widths and tables all differ, rows have
different lengths and both segments. Every parameter is random, norms and biases too, so that each
of them matters. `bert_scorer` is a cross-encoder: its weights have the prefix and the head that
sequence classifiers have.
"""

import pathlib

import numpy as np
import torch
import transformers

ROWS, LENGTH = 3, 21
COMMON = {
  "vocab_size": 50,
  "hidden_size": 24,
  "num_attention_heads": 3,
  "intermediate_size": 40,
  "max_position_embeddings": 32,
  "pad_token_id": 0,
  "hidden_dropout_prob": 0.0,
  "attention_probs_dropout_prob": 0.0,
}
MODELS = {
  "bert_plain": {"num_hidden_layers": 3, "hidden_act": "gelu", "layer_norm_eps": 1e-12},
  "bert_scorer": {"num_hidden_layers": 2, "hidden_act": "relu", "layer_norm_eps": 1e-5},
}


def write(name: str, seed: int) -> None:
  rng = np.random.default_rng(seed)
  config = transformers.BertConfig(**COMMON, **MODELS[name], num_labels=1)
  kind = (
    transformers.BertForSequenceClassification if name == "bert_scorer" else transformers.BertModel
  )
  model = kind(config).eval()
  weights = {}
  with torch.no_grad():
    for key, parameter in model.named_parameters():
      noise = rng.standard_normal(tuple(parameter.shape))
      if "LayerNorm.weight" in key:
        value = 1 + 0.2 * noise
      elif key.endswith("bias") or "embeddings" in key:
        value = 0.5 * noise
      else:
        value = 1.5 * noise * parameter.shape[1] ** -0.5
      weights[key] = value.astype(np.float32)
      parameter.copy_(torch.from_numpy(weights[key]))
  tokens = rng.integers(1, COMMON["vocab_size"], (ROWS, LENGTH))
  segments = np.zeros_like(tokens)
  for row, (first, length) in enumerate([(8, 21), (3, 12), (5, 6)]):
    tokens[row, length:] = 0
    segments[row, first:length] = 1
  given = {
    "input_ids": torch.from_numpy(tokens),
    "attention_mask": torch.from_numpy((tokens != 0).astype(np.int64)),
    "token_type_ids": torch.from_numpy(segments),
  }
  arrays = {}
  with torch.no_grad():
    base = model.bert if name == "bert_scorer" else model
    arrays["hidden"] = base(**given).last_hidden_state.numpy()
    if name == "bert_scorer":
      arrays["scores"] = model(**given).logits[:, 0].numpy()
  np.savez_compressed(
    pathlib.Path(__file__).parent / f"{name}.npz",
    tokens=tokens.astype(np.int32),
    segments=segments.astype(np.int32),
    **arrays,
    **{f"weights/{key}": value for key, value in weights.items()},
  )
  print(name, arrays["hidden"].std(), transformers.__version__, torch.__version__)


if __name__ == "__main__":
  for number, model_name in enumerate(MODELS):
    write(model_name, number)
