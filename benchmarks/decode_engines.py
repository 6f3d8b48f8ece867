"""The engines of `decode.py`, each in a process of its own, told what to do over a pipe.

`python decode_engines.py ENGINE` reads a JSON object a line from standard input and answers each
with one on standard output, as `train_step_engines.py` does. All read the same Hugging Face folder
and write greedily; texts end only at the length asked for, or at their end token.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import worker


def prompts(
  rows: int, longest: int, shortest: int, vocab_size: int, seed: int = 0
) -> list[list[int]]:
  """Random tokens; the logarithm of the lengths is uniform, and one row has the longest."""
  rng = np.random.default_rng(seed)
  lengths = np.exp(rng.uniform(np.log(shortest), np.log(longest + 1), rows)).astype(int)
  lengths[rng.integers(rows)] = longest
  return [[*rng.integers(3, vocab_size, length - 1).tolist(), 1] for length in lengths]


class Engine:
  """What all have in common; `begin` and `_write` are each engine's own."""

  _prompts: list[list[int]]
  _length: int

  def begin(self, *, folder: str, threads: int) -> dict[str, Any]:
    """Loads the folder's model; gives versions."""
    raise NotImplementedError

  def _write(self, samples: int) -> list[list[int]]:
    """The tokens of each text, its end included, without pads."""
    raise NotImplementedError

  def give(self, *, tokens: list[list[int]], length: int) -> dict[str, Any]:
    """What is to be read and written at `run`."""
    self._prompts, self._length = tokens, length
    return {}

  def run(self, *, samples: int = 1) -> dict[str, Any]:
    """Writes once."""
    start = time.perf_counter()
    texts = self._write(samples)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "tokens": sum(map(len, texts)), "texts": texts}

  def _padded(self) -> np.ndarray:
    padded = np.zeros((len(self._prompts), max(map(len, self._prompts))), np.int64)
    for row, tokens in zip(padded, self._prompts, strict=True):
      row[: len(tokens)] = tokens
    return padded


def ended(tokens: np.ndarray) -> list[list[int]]:
  """Rows up to and with their first end token."""
  return [row[: row.index(1) + 1] if 1 in row else row for row in tokens.tolist()]


class Ours(Engine):
  """This project: greedy, or samples of top-k and top-p."""

  def begin(self, *, folder: str, threads: int) -> dict[str, Any]:
    """Loads with `kard_jax.convert`; XLA takes all cores that the process may use."""
    del threads
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import jax

    from kard_jax.convert import huggingface
    from kard_jax.core import decode, streaming

    self._jax, self._decode, self._streaming = jax, decode, streaming
    self._network = huggingface.network(folder)
    self._params = huggingface.load(folder, self._network)
    return {"jax": jax.__version__}

  def _write(self, samples: int) -> list[list[int]]:
    if samples == 1 and not self._drawn:
      sampler = self._decode.Sampler(greedy=True)
    else:
      sampler = self._decode.Sampler(top_k=50, top_p=0.95)
    found = self._streaming.write(
      self._network,
      self._params,
      self._padded().astype(np.int32),
      sampler=sampler,
      max_length=self._length,
      samples=samples,
      rng=self._jax.random.key(0),
      batch_size=max(8, len(self._prompts)),
    )
    flat = found.tokens_BxSxT.reshape(-1, self._length).tolist()
    return [row[:n] for row, n in zip(flat, found.lengths_BxS.ravel().tolist(), strict=True)]

  _drawn = False

  def draw(self, *, samples: int) -> dict[str, Any]:
    """Writes samples, one too, by drawing."""
    self._drawn = True
    try:
      return self.run(samples=samples) | {"texts": []}
    finally:
      self._drawn = False

  def bandwidth(self) -> dict[str, Any]:
    """Bytes of memory that are read in a second, by a sum of 1 GiB."""
    import jax.numpy as jnp

    x = jnp.ones((256, 1 << 20), jnp.float32)
    total = self._jax.jit(lambda x: jnp.sum(x))
    total(x).block_until_ready()
    seconds = []
    for _ in range(5):
      start = time.perf_counter()
      total(x).block_until_ready()
      seconds.append(time.perf_counter() - start)
    return {"bytes_per_s": x.nbytes / min(seconds)}


class HuggingFace(Engine):
  """`generate` of transformers on PyTorch: rows padded to the longest, as its users do."""

  def begin(self, *, folder: str, threads: int) -> dict[str, Any]:
    """Loads in float32."""
    import torch
    import transformers

    torch.set_num_threads(threads)
    self._torch = torch
    self._model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32)
    self._model.eval()
    return {"torch": torch.__version__, "transformers": transformers.__version__}

  def _write(self, samples: int) -> list[list[int]]:
    padded = self._torch.from_numpy(self._padded())
    with self._torch.inference_mode():
      found = self._model.generate(
        padded,
        attention_mask=(padded != 0).long(),
        max_new_tokens=self._length,
        do_sample=False,
        num_beams=1,
      )
    return ended(found[:, 1:].numpy())


class CTranslate2(Engine):
  """CTranslate2's greedy search in float32; it sorts nothing when the batch is given whole."""

  def begin(self, *, folder: str, threads: int) -> dict[str, Any]:
    """Converts the folder, then loads it."""
    import ctranslate2
    import transformers

    vocab_size = json.loads((Path(folder) / "config.json").read_text())["vocab_size"]

    class Tokenizer:  # stands in for one: the folder has none, and ids are all we need
      pad_token, eos_token, unk_token, bos_token = "t0", "t1", "t2", None

      def get_vocab(self) -> dict[str, int]:
        return {f"t{i}": i for i in range(vocab_size)}

      def convert_ids_to_tokens(self, ids: int | list[int]) -> str | list[str]:
        return f"t{ids}" if isinstance(ids, int) else [f"t{i}" for i in ids]

    class Converter(ctranslate2.converters.TransformersConverter):
      def load_tokenizer(self, *_: Any, **__: Any) -> Tokenizer:
        return Tokenizer()

    del transformers  # has to be there for the converter
    converted = Path(folder) / "ctranslate2"
    Converter(folder).convert(str(converted), quantization="float32", force=True)
    self._translator = ctranslate2.Translator(
      str(converted), device="cpu", compute_type="float32", inter_threads=1, intra_threads=threads
    )
    return {"ctranslate2": importlib.metadata.version("ctranslate2")}

  def _write(self, samples: int) -> list[list[int]]:
    found = self._translator.translate_batch(
      [[f"t{token}" for token in tokens] for tokens in self._prompts],
      beam_size=1,
      max_decoding_length=self._length,
      return_end_token=True,
      max_input_length=0,
    )
    return [[int(token[1:]) for token in text.hypotheses[0]] for text in found]


ENGINES: dict[str, type[Engine]] = {
  "ours": Ours,
  "hf_torch": HuggingFace,
  "ctranslate2": CTranslate2,
}


if __name__ == "__main__":
  worker.serve(ENGINES)
