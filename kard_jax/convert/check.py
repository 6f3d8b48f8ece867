"""Whether a folder means here what it means in transformers: logits, and tokens written greedily.

transformers and torch are needed for this alone, and imported in no other place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from kard_jax.convert import huggingface
from kard_jax.convert.source import Source
from kard_jax.core import decode
from kard_jax.core.files import InputError, PathLike
from kard_jax.core.objective import Params

TOLERANCE = 1e-5  # of the largest logit, in float32
_ROWS = 4


@dataclasses.dataclass(frozen=True)
class Report:
  """What was compared, and how far apart the two are.

  Attributes:
    parameters: how many.
    logits: how many were compared; of an encoder alone, elements of its output.
    largest: the largest absolute logit of transformers.
    absolute: the largest difference.
    prompts: how many were continued greedily.
    tokens: how many tokens were written for each.
    differing: prompts with other tokens, not counting those where the two choices of transformers'
      are closer than the tolerance.
    ties: prompts where they are.
  """

  parameters: int
  logits: int
  largest: float
  absolute: float
  prompts: int
  tokens: int
  differing: int
  ties: int

  @property
  def relative(self) -> float:
    """The largest difference over the largest logit."""
    return self.absolute / max(self.largest, 1e-30)

  @property
  def equal(self) -> bool:
    """Whether logits are within the tolerance and all tokens the same."""
    return bool(self.relative <= TOLERANCE) and not self.differing

  def __str__(self) -> str:
    """Lines for a reader."""
    ties = f", {self.ties} ties" if self.ties else ""
    return "\n".join(
      [
        f"{self.parameters:,} parameters; {self.logits:,} logits compared",
        f"largest logit       {self.largest:.6g}",
        f"largest difference  {self.absolute:.3g} absolute, {self.relative:.3g} relative "
        f"(at most {TOLERANCE:g} is equal)",
        f"greedy tokens       {self.prompts - self.differing} of {self.prompts} prompts the same, "
        f"{self.tokens} tokens each{ties}",
        "equal" if self.equal else "DIFFERENT",
      ]
    )


def check(source: PathLike, *, prompts: int = 4, seed: int = 0) -> Report:
  """Loads a folder here and in transformers, and compares the two in float32.

  Args:
    source: a folder, or a name on the Hub.
    prompts: how many random ones are continued greedily, 16 tokens each.
    seed: of the random tokens.

  Raises:
    InputError: torch or transformers is not installed, or the folder cannot be loaded.
  """
  torch, transformers = _libraries()
  found = Source(source)
  network = huggingface.network(found.folder)
  params = huggingface.load(found.folder, network)
  if network.pad_id < 0:  # type: ignore[attr-defined]
    network = network.clone(pad_id=0)  # some token to pad prompts with; none of them holds it
  writes = hasattr(network, "start")  # an encoder alone does not
  encodes = writes and huggingface.family_of(network).INPUTS == 2
  kind = "ForSeq2SeqLM" if encodes else "ForCausalLM" if writes else ""
  transformers.utils.logging.set_verbosity_error()
  transformers.utils.logging.disable_progress_bar()
  model = getattr(transformers, f"AutoModel{kind}").from_pretrained(
    found.folder, dtype=torch.float32
  )
  pair = _Pair(network, params, model.eval(), encodes, torch, transformers)
  rng = np.random.default_rng(seed)
  vocab_size, length = int(network.vocab_size), min(160, _longest(network))  # type: ignore[attr-defined]
  ours, theirs = pair.logits(rng, vocab_size, length)
  tokens = max(1, min(16, length // 2))
  prompts = prompts if writes else 0
  outcomes = list(pair.outcomes(rng, vocab_size, min(24, length - tokens), tokens, prompts))
  return Report(
    parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
    logits=theirs.size,
    largest=float(np.max(np.abs(theirs))),
    absolute=float(np.max(np.abs(ours - theirs))),
    prompts=prompts,
    tokens=tokens,
    differing=outcomes.count("differs"),
    ties=outcomes.count("tie"),
  )


def _libraries() -> tuple[Any, Any]:
  try:
    import torch
    import transformers
  except ImportError as error:
    raise InputError(
      f"`check` compares with transformers, which is not installed here ({error}); pip install "
      "torch transformers (nothing else needs them)"
    ) from None
  return torch, transformers


def _longest(network: nn.Module) -> int:
  """Positions that a network has; no limit where they are relative."""
  return int(getattr(network, "max_length", None) or 1 << 30)


@dataclasses.dataclass(frozen=True)
class _Pair:
  """The same model twice."""

  network: nn.Module
  params: Params
  model: Any
  encodes: bool  # an encoder-decoder
  torch: Any
  transformers: Any

  def logits(
    self, rng: np.random.Generator, vocab_size: int, length: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Logits of both at the real positions of random rows, padded at their end."""
    lengths_B = np.linspace(length, max(1, length // 3), _ROWS).astype(int)
    real_BxL = np.arange(length) < lengths_B[:, None]
    tokens_BxL = self._tokens(rng, (_ROWS, length), vocab_size)
    padded_BxL = np.where(real_BxL, tokens_BxL, self._pad)
    apply = jax.jit(self.network.apply)
    inputs = {"input_ids": padded_BxL, "attention_mask": real_BxL.astype(np.int64)}
    if self.encodes:
      targets_BxT = self._tokens(rng, (_ROWS, length), vocab_size)
      targets_BxT[:, 0] = self._pad
      ours: Any = apply({"params": self.params}, padded_BxL, targets_BxT)
      theirs = self._forward(**inputs, decoder_input_ids=targets_BxT)
      return np.asarray(ours), theirs
    ours = apply({"params": self.params}, padded_BxL)
    return np.asarray(ours)[real_BxL], self._forward(**inputs)[real_BxL]

  def outcomes(
    self, rng: np.random.Generator, vocab_size: int, length: int, tokens: int, prompts: int
  ) -> Iterator[str]:
    """For each of random prompts whether greedy tokens are the "same", "differ" or are a "tie"."""
    sampler = decode.Sampler(greedy=True, eos_id=-1, pad_id=self._pad)
    for start in range(0, prompts, 32):
      count = min(32, prompts - start)
      lengths_B = rng.integers(1, max(1, length) + 1, count)
      prompts_BxL = self._tokens(rng, (count, length), vocab_size)
      prompts_BxL[np.arange(length) >= lengths_B[:, None]] = self._pad
      decoded = decode.decode(
        self.network, self.params, prompts_BxL, sampler=sampler, max_length=tokens
      )
      ours_BxT = np.asarray(decoded.tokens_BxSxT)[:, 0]
      rows = [row[:size] for row, size in zip(prompts_BxL, lengths_B, strict=True)]
      # An encoder's padding is masked and read by nothing; a decoder's prompts go one by one, as
      # padding would have to stand before them.
      theirs = self._generate(rows, tokens) if self.encodes else None
      for i, (prompt, mine) in enumerate(zip(rows, ours_BxT, strict=True)):
        yield self._outcome(
          prompt, mine, self._generate([prompt], tokens)[0] if theirs is None else theirs[i]
        )

  def _generate(self, prompts: list[np.ndarray], tokens: int) -> np.ndarray:
    """What transformers writes greedily for prompts: [B, T]."""
    settings = self.transformers.GenerationConfig(
      do_sample=False,
      num_beams=1,
      max_new_tokens=tokens,
      # An encoder-decoder's cache has as many layers as the encoder, however deep the decoder is.
      use_cache=not self.encodes,
      pad_token_id=max(self._pad, 0),
      decoder_start_token_id=self._pad if self.encodes else None,
    )
    self.model.generation_config = settings
    if not self.encodes:  # dynamic rotary positions remember the longest text until a short one
      self._forward(input_ids=prompts[0][None, :1])
    longest = max(map(len, prompts))
    padded = [np.pad(row, (0, longest - len(row)), constant_values=self._pad) for row in prompts]
    ids = self.torch.tensor(np.stack(padded).astype(np.int64))
    lengths = self.torch.tensor([[len(row)] for row in prompts])
    mask = (self.torch.arange(longest) < lengths).long()
    with self.torch.no_grad():
      written = self.model.generate(ids, attention_mask=mask, generation_config=settings)
    return np.asarray(written.numpy()[:, 1 if self.encodes else longest :])

  def _outcome(self, prompt: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> str:
    differs = np.flatnonzero(ours != theirs)
    if not differs.size:
      return "same"
    at = differs[0]
    if self.encodes:
      prefix = np.concatenate([[self._pad], theirs[:at]])[None]
      logits = self._forward(input_ids=prompt[None], decoder_input_ids=prefix)[0, -1]
    else:
      logits = self._forward(input_ids=np.concatenate([prompt, theirs[:at]])[None])[0, -1]
    gap = abs(float(logits[ours[at]] - logits[theirs[at]]))
    return "tie" if gap <= TOLERANCE * np.max(np.abs(logits)) else "differs"

  def _forward(self, **arrays: np.ndarray) -> np.ndarray:
    with self.torch.no_grad():
      known = {k: np.maximum(v, 0) for k, v in arrays.items()}  # it has no pad token of -1
      tensors = {k: self.torch.tensor(v.astype(np.int64)) for k, v in known.items()}
      output = self.model(**tensors)
    return (output.logits if "logits" in output else output.last_hidden_state).numpy()

  def _tokens(
    self, rng: np.random.Generator, shape: tuple[int, ...], vocab_size: int
  ) -> np.ndarray:
    """Random tokens without the pad token."""
    tokens = rng.integers(0, vocab_size, shape, np.int32)
    if 0 <= self._pad < vocab_size and vocab_size > 1:
      tokens = np.where(tokens == self._pad, (self._pad + 1) % vocab_size, tokens)
    return tokens.astype(np.int32)

  @property
  def _pad(self) -> int:
    return int(self.network.pad_id)  # type: ignore[attr-defined]
