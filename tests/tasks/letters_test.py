"""Letters' scores: the same as the full forward gives, batched, by both families of students."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seqio

from kard_jax.core import next_token
from kard_jax.core.files import InputError
from kard_jax.student.gpt import GPT
from kard_jax.student.t5 import T5
from tasks import letters
from tasks.letters import LetterTokens

TINY = {"vocab_size": 60, "embed_dim": 16, "num_heads": 2, "mlp_dim": 32}
T5_NET = T5(**TINY, head_dim=8, num_encoder_layers=1, num_decoder_layers=1)
GPT_NET = GPT(**TINY, num_layers=1, max_positions=64, pad_id=0)


def params_of(network, *shapes):
  inputs = [jnp.zeros(shape, jnp.int32) for shape in shapes]
  boxed = jax.jit(network.init)(jax.random.key(0), *inputs)["params"]
  return jax.tree.map(
    lambda box: getattr(box, "value", box) * 3.0, boxed, is_leaf=lambda x: hasattr(x, "value")
  )


class Words(seqio.Vocabulary):
  """A vocabulary of words, and of letters after a piece that stands for a space."""

  bos_id, eos_id, unk_id, prefix, _base_vocab_size = 3, 1, 2, (3,), 60
  _decode = _encode_tf = _decode_tf = None

  def __init__(self, split=False, known="ABCD"):
    super().__init__()
    self.split, self.known = split, known

  def __eq__(self, other):
    return self is other

  def _encode(self, text):
    ids = []
    for word in text.split():
      if len(word) == 1 and word.isupper():
        ids += [4] if self.split else []
        ids.append(10 + self.known.index(word) if word in self.known else 2)
      else:
        ids.append(20 + len(word))
    return ids


def test_t5s_scores_are_those_of_the_full_forward():
  forced = (4,)
  params = params_of(T5_NET, (1, 4), (1, 2))
  draws = np.random.default_rng(0)
  prompts = [draws.integers(5, 60, size).tolist() for size in (3, 7, 5)]
  found = next_token.log_probs(T5_NET, params, prompts, [10, 11, 12], forced=forced, batch_size=2)
  for prompt, row in zip(prompts, found, strict=True):
    logits = T5_NET.apply(
      {"params": params}, jnp.asarray([prompt]), jnp.asarray([[0, *forced]]), deterministic=True
    )
    want = jax.nn.log_softmax(logits[0, -1])[jnp.asarray([10, 11, 12])]
    np.testing.assert_allclose(row, want, atol=2e-5)
  assert np.ptp(found[:, 0]) > 1e-3  # prompts matter


def test_gpts_scores_are_those_of_the_full_forward():
  forced = (4,)
  params = params_of(GPT_NET, (1, 4))
  prompts = [[3, 9, 8], [3, 7, 6, 5, 9, 9], [5]]
  found = next_token.log_probs(GPT_NET, params, prompts, [10, 11], forced=forced)
  for prompt, row in zip(prompts, found, strict=True):
    logits = GPT_NET.apply({"params": params}, jnp.asarray([[*prompt, *forced]]))
    want = jax.nn.log_softmax(logits[0, -1])[jnp.asarray([10, 11])]
    np.testing.assert_allclose(row, want, atol=2e-5)
  assert np.ptp(found[:, 0]) > 1e-3


def test_no_prompts_have_no_scores():
  assert next_token.log_probs(T5_NET, {}, [], [10]).shape == (0, 1)


@pytest.mark.parametrize("decoder_only", [True, False])
def test_the_tokens_that_tell_letters_apart(decoder_only):
  assert LetterTokens.of(Words(), decoder_only) == ((), (10, 11, 12, 13))
  assert LetterTokens.of(Words(split=True), decoder_only) == ((4,), (10, 11, 12, 13))
  with pytest.raises(InputError, match="no tokens that tell the letters"):
    LetterTokens.of(Words(known="A"), decoder_only)


@pytest.mark.parametrize("network", [T5_NET, GPT_NET], ids=["t5", "gpt"])
def test_a_prompt_that_is_too_long_loses_its_beginning(network, monkeypatch):
  monkeypatch.setattr(
    letters.vocabularies,
    "tokens",
    lambda vocabulary, texts, end: [
      np.array([*vocabulary.prefix, *vocabulary.encode(text), *([1] if end else [])])
      for text in texts
    ],
  )
  params = params_of(network, (1, 4), *([(1, 2)] if network is T5_NET else []))
  scores = letters.scorer(Words(), network, params, input_length=5)
  ending = "cc dddd So, the "  # after the BOS, with T5's EOS: what is left at least
  short, long = scores([f"aaaaaa {ending}", f"bb bb aaaaaa {ending}"])
  other = scores([f"aaaaaa {ending} z"])[0]
  assert len(short) == 4
  np.testing.assert_allclose(short, long, atol=1e-5)
  assert np.abs(np.subtract(short, other)).max() > 1e-4
