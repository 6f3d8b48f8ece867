"""Writes generate.npz: what Hugging Face's `generate` writes with the models of write_t5.py.

Needs torch and transformers as write_t5.py does, whose files it reads.

  /tmp/hf/bin/python tests/golden/write_generate.py

The third decoder layer is left out: transformers cannot generate with more layers in the decoder
than in the encoder. The head is made steeper, so that texts end at various lengths and no two
tokens are nearly equal. Pads are put after each end: `generate` takes a pad id of 0 for none.
"""

import pathlib

import numpy as np
import torch
import transformers
import write_t5

HERE = pathlib.Path(__file__).parent
ROWS, INPUT, LENGTH = 12, 20, 40
STEEPER = 3.0
SETTINGS = {
  "greedy": {"num_beams": 1},
  "beams_2": {"num_beams": 2},
  "beams_4": {"num_beams": 4, "num_return_sequences": 3},
  "beams_4_short": {"num_beams": 4, "length_penalty": -1.0, "num_return_sequences": 4},
  "beams_4_no_penalty": {"num_beams": 4, "length_penalty": 0.0, "num_return_sequences": 2},
  "beams_4_long": {"num_beams": 4, "length_penalty": 2.5, "num_return_sequences": 2},
  "beams_3_early": {"num_beams": 3, "early_stopping": True, "num_return_sequences": 3},
  "beams_3_never": {"num_beams": 3, "early_stopping": "never", "num_return_sequences": 3},
}


def write() -> None:
  rng = np.random.default_rng(0)
  inputs = rng.integers(2, write_t5.VOCAB, (ROWS, INPUT))
  inputs[np.arange(INPUT) >= rng.integers(3, INPUT + 1, (ROWS, 1))] = 0
  found = {"inputs": inputs.astype(np.int32)}
  for name, options in write_t5.MODELS.items():
    config = transformers.T5Config(
      **write_t5.COMMON | {"num_decoder_layers": 2},
      **options,
      decoder_start_token_id=0,
      pad_token_id=0,
      eos_token_id=1,
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    if not options["tie_word_embeddings"]:
      shape = (write_t5.VOCAB, write_t5.COMMON["d_model"])
      model.lm_head.weight = torch.nn.Parameter(torch.empty(shape))
    with np.load(HERE / f"{name}.npz", allow_pickle=False) as file, torch.no_grad():
      for key, parameter in model.named_parameters():
        parameter.copy_(torch.from_numpy(file[f"weights/{key}"]))
      model.decoder.final_layer_norm.weight *= STEEPER
    for setting, arguments in SETTINGS.items():
      written = model.generate(
        torch.from_numpy(inputs),
        attention_mask=torch.from_numpy((inputs != 0).astype(np.int64)),
        do_sample=False,
        max_new_tokens=LENGTH,
        return_dict_in_generate=True,
        output_scores=True,
        **arguments,
      )
      count = arguments.get("num_return_sequences", 1)
      tokens = np.zeros((ROWS, count, LENGTH), np.int32)
      sequences = written.sequences[:, 1:].numpy().reshape(ROWS, count, -1)
      tokens[..., : sequences.shape[-1]] = sequences
      tokens[np.cumsum(tokens == 1, axis=-1) - (tokens == 1) > 0] = 0
      found[f"{name}/{setting}/tokens"] = tokens
      if arguments["num_beams"] > 1:
        scores = written.sequences_scores.numpy().reshape(ROWS, count)
        found[f"{name}/{setting}/scores"] = scores
      ends = np.where((tokens == 1).any(-1), (tokens == 1).argmax(-1) + 1, LENGTH)
      print(name, setting, "lengths", sorted(set(ends.ravel().tolist())))
  np.savez_compressed(HERE / "generate.npz", **found)
  print(transformers.__version__, torch.__version__)


if __name__ == "__main__":
  write()
