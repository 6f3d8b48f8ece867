import collections
import functools

import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kard_jax.core import decode, sampling
from kard_jax.core.files import InputError

V = 12
EOS = 1


class Chain(nn.Module):
  """A network that `decode` can drive: logits come from the last token and the row's first.

  Its state counts the steps and holds the sum of tokens so far, which takes part in the logits: a
  step left out or fed twice would show.
  """

  def start(self, input_tokens_BxL, *, samples, max_length):
    rows = (input_tokens_BxL.shape[0], samples)
    kind_BxS = jnp.broadcast_to(input_tokens_BxL[:, :1], rows)
    return jnp.zeros(rows, jnp.int32), (kind_BxS, jnp.zeros(rows, jnp.int32))

  @nn.compact
  def step(self, tokens_BxS, position, state):
    table = self.param("table", nn.initializers.normal(2.0), (V, V, V))
    kind_BxS, total_BxS = state
    total_BxS = total_BxS + tokens_BxS
    return table[kind_BxS, (total_BxS + position) % V], (kind_BxS, total_BxS)


def _params(seed=0, end=0.0):
  """Logits of a chain; `end` is added to those of the end token."""
  table = np.random.default_rng(seed).standard_normal((V, V, V)) * 2
  table[..., EOS] += end
  return {"table": jnp.asarray(table, jnp.float32)}


def _inputs(*kinds):
  return np.array([[kind, 3, 4] for kind in kinds], np.int32)


def _walk(params, kind, tokens):
  """Logits at each step of a text, written without JAX."""
  table, total, last = np.asarray(params["table"], np.float64), 0, 0
  logits = []
  for position, token in enumerate(tokens):
    total += last
    logits.append(table[kind, (total + position) % V])
    last = token
  return np.array(logits)


def _log_prob(params, kind, tokens):
  """Log-probability of a text with its end, and how many tokens it has."""
  tokens = list(tokens)
  length = tokens.index(EOS) + 1 if EOS in tokens else len(tokens)
  logits = _walk(params, kind, tokens[:length])
  log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  return log_probs[np.arange(length), tokens[:length]].sum(), length


_run = functools.partial(decode.decode, Chain())
SAMPLING = {"max_length": 9, "samples": 4, "rng": jax.random.key(7)}


def test_greedy_takes_the_best_token_until_the_end():
  params = _params(end=2.0)
  tokens, log_probs, _ = _run(
    params, _inputs(2, 5, 8, 9), sampler=decode.Sampler(greedy=True), max_length=30
  )
  lengths = []
  for row, kind in enumerate((2, 5, 8, 9)):
    text = np.asarray(tokens[row, 0])
    log_prob, length = _log_prob(params, kind, text)
    np.testing.assert_array_equal(_walk(params, kind, text[:length]).argmax(-1), text[:length])
    np.testing.assert_array_equal(text[length:], 0)
    np.testing.assert_allclose(log_probs[row, 0], log_prob, rtol=1e-5)
    lengths.append(length)
  assert min(lengths) < 30  # an end was met
  assert len(set(lengths)) > 1


def test_samples_differ_end_with_pads_and_carry_their_log_probability():
  params = _params(end=1.0)
  sampler = decode.Sampler(temperature=1.5, top_k=7, top_p=0.9)
  tokens, log_probs, _ = _run(params, _inputs(2, 5), sampler=sampler, **SAMPLING)
  assert tokens.shape == (2, 4, 9)
  assert len({tuple(text) for text in np.asarray(tokens).reshape(8, 9).tolist()}) > 5
  lengths = set()
  for row, kind in enumerate((2, 5)):
    for sample in range(4):
      text = np.asarray(tokens[row, sample])
      log_prob, length = _log_prob(params, kind, text)  # the network's own: no temperature, no cut
      np.testing.assert_allclose(log_probs[row, sample], log_prob, rtol=1e-5)
      np.testing.assert_array_equal(text[length:], 0)
      lengths.add(length)
  assert len(lengths) > 1


@pytest.mark.parametrize(
  "sampler",
  [decode.Sampler(temperature=0.7), decode.Sampler(top_k=3), decode.Sampler(top_p=0.6)],
  ids=["temperature", "top_k", "top_p"],
)
def test_draws_have_the_probabilities_of_the_rule(sampler):
  logits = np.log([0.02, 0.4, 0.08, 0.3, 0.15, 0.05])
  keys = jax.random.split(jax.random.key(0), 20_000)
  drawn = decode.draw(jnp.tile(jnp.asarray(logits, jnp.float32), (20_000, 1)), keys, sampler)
  want = np.exp(logits / sampler.temperature)
  want /= want.sum()
  order = np.argsort(-want)
  if sampler.top_k:
    want[order[sampler.top_k :]] = 0
  if sampler.top_p < 1:
    assert sampler.top_p == 0.6  # 0.4 does not reach it, 0.4 + 0.3 does
    want[order[2:]] = 0
  want /= want.sum()
  counts = np.bincount(drawn, minlength=6) / 20_000
  np.testing.assert_array_equal(counts[want == 0], 0)
  np.testing.assert_allclose(counts, want, atol=0.015)


def _allowed(logits, top_k, top_p):
  """Which tokens may be drawn, by the definition, one row at a time."""
  order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[: top_k or None]
  weights = np.exp(logits[order] - logits.max())
  weights /= weights.sum()
  allowed, mass = [], 0.0
  for token, weight in zip(order, weights, strict=True):
    if mass >= top_p:
      break
    allowed.append(token)
    mass += weight
  return allowed


@hypothesis.given(
  seed=st.integers(0, 2**31),
  top_k=st.sampled_from([0, 1, 3, 7, 50]),
  top_p=st.sampled_from([1e-6, 0.31, 0.77, 0.999, 1.0]),
  ties=st.booleans(),
)
@hypothesis.settings(max_examples=40, deadline=None)
def test_candidates_are_those_of_the_definition(seed, top_k, top_p, ties):
  logits = np.random.default_rng(seed).standard_normal((2, 9)) * 2
  logits = (np.round(logits) + 0.0 if ties else logits).astype(np.float32)
  _, tokens, kept = decode.candidates(jnp.asarray(logits), top_k=top_k, top_p=top_p)
  for row in range(2):
    got = np.asarray(tokens[row])[np.asarray(kept[row])].tolist()
    want = _allowed(logits[row].astype(np.float64), top_k, top_p)
    mass = np.sort(np.exp(logits[row] - logits[row].max()).astype(np.float64))[::-1][: top_k or 9]
    near = np.abs(np.cumsum(mass) / mass.sum() - top_p) < 1e-6  # rounding may decide there
    if not near.any():
      assert got == want


def test_the_most_probable_token_is_that_of_argmax():
  logits = np.random.default_rng(0).integers(-2, 3, (2, 50, 40)).astype(np.float32)  # many ties
  logits[0, 0, :] = -np.inf
  logits[0, 1, 7:] = np.inf
  np.testing.assert_array_equal(jax.jit(sampling.most_probable)(logits), logits.argmax(-1))
  assert sampling.most_probable(jnp.full((1, 5), np.nan))[0] < 5


def test_draws_do_not_depend_on_the_rest_of_the_batch():
  params, sampler = _params(), decode.Sampler(top_k=8, top_p=0.95)
  kinds, ids = np.array([2, 5, 8, 9, 3]), np.array([40, 41, 42, 43, 44])
  want = _run(params, _inputs(*kinds), sampler=sampler, row_ids_B=ids, **SAMPLING)
  order = np.array([3, 0, 4])
  padded = np.concatenate([_inputs(*kinds[order]), np.zeros((2, 3), np.int32)])
  padded_ids = np.concatenate([ids[order], [0, 0]])
  more = _run(params, padded, sampler=sampler, row_ids_B=padded_ids, **SAMPLING)
  np.testing.assert_array_equal(more.tokens_BxSxT[:3], want.tokens_BxSxT[order])
  np.testing.assert_array_equal(more.tokens_BxSxT[3:], 0)
  np.testing.assert_array_equal(more.log_probs_BxS[3:], 0)
  fewer = _run(params, _inputs(*kinds), sampler=sampler, row_ids_B=ids, **SAMPLING | {"samples": 2})
  np.testing.assert_array_equal(fewer.tokens_BxSxT, want.tokens_BxSxT[:, :2])
  longer = _run(
    params, _inputs(*kinds), sampler=sampler, row_ids_B=ids, **SAMPLING | {"max_length": 14}
  )
  np.testing.assert_array_equal(longer.tokens_BxSxT[..., :9], want.tokens_BxSxT)


def test_seed_id_sample_and_position_each_change_the_draws():
  flat = {"table": jnp.zeros((V, V, V)).at[..., :2].set(-100.0)}  # all texts equally likely
  sampler = decode.Sampler()

  def texts(seed, ids):
    settings = SAMPLING | {"rng": jax.random.key(seed)}
    tokens = _run(flat, _inputs(2, 2), sampler=sampler, row_ids_B=np.array(ids), **settings)
    return np.asarray(tokens.tokens_BxSxT)

  one = texts(0, [10, 11])
  np.testing.assert_array_equal(one, texts(0, [10, 11]))
  np.testing.assert_array_equal(one[0], texts(0, [12, 10])[1])
  every = np.concatenate([one.reshape(8, 9), texts(1, [10, 11]).reshape(8, 9)])
  assert len(np.unique(every, axis=0)) == 16
  common = [collections.Counter(text).most_common(1)[0][1] for text in every.tolist()]
  assert max(common) < 9  # nor is a text one draw repeated


def test_it_stops_when_all_texts_have_ended():
  params = _params(end=100.0)
  steps = []

  class Counting(Chain):
    @nn.nowrap
    def note(self, position):
      steps.append(int(position))

    @nn.compact
    def step(self, tokens_BxS, position, state):
      jax.debug.callback(self.note, position)
      table = self.param("table", nn.initializers.normal(2.0), (V, V, V))
      return table[state[0], position % V], state

  tokens, *_ = decode.decode(
    Counting(), params, _inputs(2, 5), sampler=decode.Sampler(greedy=True), max_length=500
  )
  jax.effects_barrier()
  np.testing.assert_array_equal(tokens[:, 0, 0], EOS)
  np.testing.assert_array_equal(tokens[:, 0, 1:], 0)
  assert steps == [0]


def test_one_compilation_serves_equal_networks_and_settings():
  params, sampler = _params(), {"top_k": 5, "top_p": 0.5}
  _run(params, _inputs(2, 5), sampler=decode.Sampler(**sampler), **SAMPLING)
  before = decode._advance._cache_size()
  again = decode.decode(
    Chain(), params, _inputs(3, 9), sampler=decode.Sampler(**sampler), **SAMPLING
  )
  assert again.tokens_BxSxT.shape == (2, 4, 9)
  assert decode._advance._cache_size() == before


@pytest.mark.parametrize(
  "settings",
  [
    {"temperature": 0.0},
    {"temperature": -1.0},
    {"temperature": float("nan")},
    {"temperature": float("inf")},
    {"top_k": -1},
    {"top_p": 0.0},
    {"top_p": 1.01},
  ],
)
def test_settings_that_cannot_be_are_refused(settings):
  with pytest.raises(InputError, match=f"decode.Sampler.{next(iter(settings))}"):
    decode.Sampler(**settings)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"samples": 0}, "samples = 0"),
    ({"max_length": 0}, "max_length = 0"),
    ({"rng": None}, "needs a seed"),
    ({"sampler": decode.Sampler(greedy=True)}, "would all be the same"),
  ],
)
def test_calls_that_cannot_be_are_refused(change, message):
  settings = {"sampler": decode.Sampler()} | SAMPLING | change
  with pytest.raises(InputError, match=message):
    _run(_params(), _inputs(2), **settings)
