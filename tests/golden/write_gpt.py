"""Writes gpt2.npz, opt.npz and llama.npz: tiny decoders' configurations, logits and greedy tokens.

Hugging Face's PyTorch models are the oracle. Not part of the tests: it needs torch, which they do
not. Weights are drawn by `gpt_weights.py`; of them, names and shapes alone are in the files.

  python -m venv /tmp/hf && /tmp/hf/bin/pip install torch==2.13.0 transformers==5.24.0 numpy
  /tmp/hf/bin/python tests/golden/write_gpt.py

The shapes are chosen to tell mistakes apart: heads times head_dim need not be the width, rows have
different lengths, texts go beyond windows and beyond the lengths that rotary positions are scaled
from.
"""

import json
import pathlib

import gpt_weights
import numpy as np
import torch
import transformers

VOCAB, ROWS, LENGTH, NEW = 31, 2, 20, 8
PROMPTS = (12, 5)  # lengths of prompts that are continued greedily
GPT2 = {"vocab_size": VOCAB, "n_positions": 24, "n_embd": 20, "n_layer": 2, "n_head": 4}
OPT = {
  "vocab_size": VOCAB,
  "max_position_embeddings": 24,
  "hidden_size": 20,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "ffn_dim": 28,
}
LLAMA = {
  "vocab_size": VOCAB,
  "hidden_size": 24,
  "intermediate_size": 28,
  "num_hidden_layers": 2,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "max_position_embeddings": 64,
}
SCALED = {"factor": 4.0, "original_max_position_embeddings": 8}
LLAMA3 = SCALED | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 3.0}
YARN = SCALED | {"rope_type": "yarn"}
THREE = {"num_hidden_layers": 3}
SLIDING = {"use_sliding_window": True, "sliding_window": 5}
MODELS = {  # file: name: model_type and settings
  "gpt2": {
    "gpt2": ("gpt2", GPT2),
    "by_layer": (
      "gpt2",
      GPT2
      | {"n_inner": 28, "scale_attn_by_inverse_layer_idx": True, "activation_function": "gelu"},
    ),
    "unscaled": (
      "gpt2",
      GPT2
      | {
        "scale_attn_weights": False,
        "activation_function": "silu",
        "tie_word_embeddings": False,
        "layer_norm_epsilon": 0.1,
      },
    ),
  },
  "opt": {
    "opt": ("opt", OPT),
    "350m": ("opt", OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 12}),
    "bare": (
      "opt",
      OPT
      | {
        "enable_bias": False,
        "layer_norm_elementwise_affine": False,
        "activation_function": "gelu",
      },
    ),
    "no_final_norm": (
      "opt",
      OPT
      | {
        "_remove_final_layer_norm": True,
        "word_embed_proj_dim": 32,
        "tie_word_embeddings": False,
      },
    ),
  },
  "llama": {
    "llama": ("llama", LLAMA),
    "biases": (
      "llama",
      LLAMA
      | {
        "attention_bias": True,
        "mlp_bias": True,
        "head_dim": 10,
        "tie_word_embeddings": True,
        "rms_norm_eps": 0.1,
        "hidden_act": "gelu",
        "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"},
      },
    ),
    "linear": ("llama", LLAMA | {"rope_parameters": {"rope_type": "linear", "factor": 4.0}}),
    "dynamic": (
      "llama",
      LLAMA
      | {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}, "max_position_embeddings": 8},
    ),
    "llama3": ("llama", LLAMA | {"head_dim": 16, "rope_parameters": LLAMA3}),
    "yarn": ("llama", LLAMA | {"head_dim": 16, "rope_parameters": YARN}),
    "yarn_options": (
      "llama",
      LLAMA
      | {
        "head_dim": 16,
        "rope_parameters": YARN
        | {"mscale": 2.0, "mscale_all_dim": 0.5, "truncate": False, "beta_fast": 8, "beta_slow": 2},
      },
    ),
    "mistral": ("mistral", LLAMA | {"sliding_window": 5, "head_dim": 8}),
    "mistral_full": ("mistral", LLAMA | {"sliding_window": None, "num_key_value_heads": 1}),
    "qwen2": ("qwen2", LLAMA),
    "qwen2_sliding": ("qwen2", LLAMA | THREE | SLIDING | {"max_window_layers": 1}),
    "qwen3": ("qwen3", LLAMA | {"head_dim": 8, "tie_word_embeddings": True}),
    "qwen3_sliding": (
      "qwen3",
      LLAMA
      | THREE
      | SLIDING
      | {
        "attention_bias": True,
        "head_dim": 6,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
      },
    ),
    "smollm3": (
      "smollm3",
      LLAMA
      | THREE
      | {"no_rope_layer_interval": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "smollm3_sliding": (
      "smollm3",
      LLAMA
      | THREE
      | SLIDING
      | {
        "no_rope_layers": [1, 1, 0],
        "mlp_bias": True,
        "attention_bias": True,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 100.0}
        | {"original_max_position_embeddings": 8},
      },
    ),
  },
}


def arrays_of(model_type, settings):
  """Everything the tests need of a model: configuration, tensors, logits, greedy tokens."""
  config = transformers.AutoConfig.for_model(model_type, **settings)
  model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
  tied = set(model.all_tied_weights_keys)
  state = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
  shapes = {name: list(tensor.shape) for name, tensor in state.items()}
  for name, array in gpt_weights.draw(shapes).items():
    state[name].copy_(torch.from_numpy(array))
  rng = np.random.default_rng(0)
  tokens = rng.integers(3, VOCAB, (ROWS, LENGTH))
  prompts = [rng.integers(3, VOCAB, length) for length in PROMPTS]
  greedy = transformers.GenerationConfig(do_sample=False, max_new_tokens=NEW, pad_token_id=0)
  model.generation_config = greedy
  written = []
  with torch.no_grad():
    logits = model(input_ids=torch.from_numpy(tokens)).logits.numpy()
    for prompt in prompts:
      ids = torch.from_numpy(prompt[None])
      text = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=greedy)
      written.append(text.numpy()[0, len(prompt) :])
  kept = json.loads(config.to_json_string()) | {"architectures": [type(model).__name__]}
  return {
    "config": json.dumps(kept),
    "shapes": json.dumps(shapes),
    "tokens": tokens.astype(np.int32),
    "logits": logits,
    "prompts": np.concatenate(prompts).astype(np.int32),
    "written": np.stack(written).astype(np.int32),
  }


def main():
  for file, models in MODELS.items():
    arrays = {}
    for name, (model_type, settings) in models.items():
      found = arrays_of(model_type, settings)
      print(file, name, found["logits"].std(), found["written"].tolist())
      arrays |= {f"{name}/{key}": value for key, value in found.items()}
    np.savez_compressed(pathlib.Path(__file__).parent / f"{file}.npz", **arrays)
  print(transformers.__version__, torch.__version__)


if __name__ == "__main__":
  main()
