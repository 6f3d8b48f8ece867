"""Hugging Face folders of tiny models, made of the weights in tests/golden (no torch needed)."""

import json
import pathlib

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from tests.golden import gpt_weights

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
T5 = {  # as transformers 5.24 writes them
  "t5_1_1": {
    "architectures": ["T5ForConditionalGeneration"],
    "classifier_dropout": 0.0,
    "d_ff": 28,
    "d_kv": 8,
    "d_model": 20,
    "dense_act_fn": "gelu_new",
    "dropout_rate": 0.0,
    "dtype": "float32",
    "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": True,
    "is_gated_act": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "num_decoder_layers": 3,
    "num_heads": 3,
    "num_layers": 2,
    "pad_token_id": 0,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "scale_decoder_outputs": False,
    "tie_word_embeddings": True,
    "vocab_size": 40,
  }
}
T5["t5_1_0"] = T5["t5_1_1"] | {
  "dense_act_fn": "relu",
  "feed_forward_proj": "relu",
  "is_gated_act": False,
  "scale_decoder_outputs": True,
}


def golden(name):
  """The arrays of a golden file, and the weights among them by name."""
  with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as file:
    arrays = dict(file)
  weights = {k.removeprefix("weights/"): v for k, v in arrays.items() if k.startswith("weights/")}
  return arrays, weights


def write(folder, config, weights, *, dtype=np.float32, shards=1, metadata=True):
  """A folder with config.json and weights, in one file or several with an index."""
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
  weights = {name: np.ascontiguousarray(array.astype(dtype)) for name, array in weights.items()}
  kept = {"format": "pt"} if metadata else None
  if shards == 1:
    save_file(weights, folder / "model.safetensors", metadata=kept)
    return folder
  names = sorted(weights)
  weight_map = {}
  for i in range(shards):
    file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
    some = names[i::shards]
    save_file({name: weights[name] for name in some}, folder / file, metadata=kept)
    weight_map |= dict.fromkeys(some, file)
  total = sum(array.nbytes for array in weights.values())
  count = sum(array.size for array in weights.values())
  index = {
    "metadata": {"total_parameters": count, "total_size": total},
    "weight_map": dict(sorted(weight_map.items())),
  }
  (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
  return folder


def t5(folder, name="t5_1_1", **options):
  """One of the golden T5 models as a folder."""
  return write(folder, T5[name], golden(name)[1], **options)


def decoders():
  """The golden decoders, (file, name) each."""
  found = []
  for file in ("gpt2", "opt", "llama"):
    with np.load(GOLDEN / f"{file}.npz", allow_pickle=False) as arrays:
      found += [(file, key.split("/")[0]) for key in arrays if key.endswith("/config")]
  return found


def decoder(folder, file, name, *, changed=None, **options):
  """A golden decoder as a folder, with settings of config.json changed, and what is known of it."""
  with np.load(GOLDEN / f"{file}.npz", allow_pickle=False) as arrays:
    of_it = {key.split("/")[1]: arrays[key] for key in arrays if key.startswith(f"{name}/")}
  config = json.loads(str(of_it["config"])) | (changed or {})
  weights = gpt_weights.draw(json.loads(str(of_it["shapes"])))
  return write(folder, config, weights, **options), of_it


def tokenizer(folder, ids=40):
  """Tokenizer files whose greatest id is `ids - 1`, with bytes that a rewriting would change."""
  vocab = [[f"p{i}", -float(i)] for i in range(ids - 1)]
  added = [{"id": ids - 1, "content": "<extra>"}]
  text = json.dumps({"model": {"type": "Unigram", "vocab": vocab}, "added_tokens": added})
  (folder / "tokenizer.json").write_bytes(text.encode() + b"  \r\n")
  (folder / "tokenizer_config.json").write_bytes(b'{"b": 1,\n\t"a": "\\u00e9"}')
  (folder / "generation_config.json").write_bytes(b'{ "eos_token_id" : 1 }')
  return folder


BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
