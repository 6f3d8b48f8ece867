import flax.linen as nn
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kard_jax.core.files import InputError
from kard_jax.student import objective, t5


class Table(nn.Module):
  """Gives back fixed logits, whatever the tokens are; dropout doubles them."""

  logits: tuple

  @nn.compact
  def __call__(self, encoder_input_tokens, decoder_input_tokens, *, deterministic=True):
    scale = self.param("scale", nn.initializers.ones, ())
    return jnp.array(self.logits) * scale * (1.0 if deterministic else 2.0)


def _batch(targets, weights):
  targets = np.asarray(targets, np.int32)
  return {
    "encoder_input_tokens": np.ones_like(targets),
    "decoder_input_tokens": np.pad(targets[:, :-1], ((0, 0), (1, 0))),
    "decoder_target_tokens": targets,
    "decoder_loss_weights": np.asarray(weights),
  }


def _loss(logits, targets, weights, rng=None, **settings):
  network = Table(tuple(tuple(map(tuple, row)) for row in np.asarray(logits).tolist()))
  loss = objective.TokenCrossEntropy(network, **settings)
  return loss.loss({"scale": jnp.ones(())}, _batch(targets, weights), rng)


@hypothesis.given(
  seed=st.integers(0, 2**31),
  z_loss=st.sampled_from([0.0, 1e-4, 0.5]),
  label_smoothing=st.sampled_from([0.0, 0.1]),
)
@hypothesis.settings(max_examples=15, deadline=None)
def test_losses_are_those_of_the_formula(seed, z_loss, label_smoothing):
  rng = np.random.default_rng(seed)
  logits, targets = rng.standard_normal((2, 3, 5)) * 4, rng.integers(0, 5, (2, 3))
  entropy, z = objective.token_losses(
    jnp.asarray(logits, jnp.float32),
    jnp.asarray(targets, jnp.int32),
    z_loss=z_loss,
    label_smoothing=label_smoothing,
  )
  log_z = np.log(np.exp(logits).sum(-1))
  wanted = np.full((2, 3, 5), label_smoothing / 4)
  np.put_along_axis(wanted, targets[..., None], 1 - label_smoothing, axis=-1)
  ratio = np.log(np.where(wanted > 0, wanted, 1)) - (logits - log_z[..., None])
  np.testing.assert_allclose(entropy, (wanted * ratio).sum(-1), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(z, z_loss * log_z**2, rtol=1e-4, atol=1e-5)


def test_sums_and_metrics_count_weighted_tokens_and_rows_that_have_any():
  sure = np.eye(4)[[[2, 3, 1], [2, 0, 1], [3, 3, 3]]] * 5.0  # what is predicted
  targets = [[2, 3, 2], [2, 3, 1], [3, 3, 3]]
  weights = [[1, 1, 0], [1, 1, 1], [0, 0, 0]]  # row 0 errs only where nothing is counted
  loss = _loss(sure, targets, weights, z_loss=0.1)
  right, wrong = np.log(np.exp(5) + 3) - 5, np.log(np.exp(5) + 3)
  z = 0.1 * np.log(np.exp(5) + 3) ** 2
  assert loss.weight == 5
  np.testing.assert_allclose(loss.total, 4 * right + wrong + 5 * z, rtol=1e-5)
  got = {name: tuple(map(float, mean)) for name, mean in loss.metrics.items()}
  assert got == {
    "loss": (float(loss.total), 5),
    "cross_entropy": (pytest.approx(4 * right + wrong, rel=1e-5), 5),
    "z_loss": (pytest.approx(5 * z, rel=1e-5), 5),
    "accuracy": (4, 5),
    "sequence_accuracy": (1, 2),
  }


def test_a_batch_of_padding_has_no_weight_and_no_loss():
  loss = _loss(np.ones((2, 3, 4)), np.zeros((2, 3)), np.zeros((2, 3), np.int32))
  assert (loss.total, loss.weight) == (0, 0)
  assert all(np.isfinite(mean.total) for mean in loss.metrics.values())


def test_an_rng_means_dropout():
  logits = np.random.default_rng(0).standard_normal((1, 2, 4))
  targets, weights = [[1, 2]], [[1, 1]]
  plain = _loss(logits, targets, weights)
  dropped = _loss(logits, targets, weights, rng=jax.random.key(0))
  np.testing.assert_allclose(_loss(2 * logits, targets, weights).total, dropped.total, rtol=1e-6)
  assert plain.total != dropped.total


def test_a_t5_learns_a_batch_and_init_gives_boxes():
  network = t5.T5(
    vocab_size=16,
    embed_dim=8,
    num_heads=2,
    head_dim=4,
    mlp_dim=16,
    num_encoder_layers=1,
    num_decoder_layers=1,
  )
  loss = objective.TokenCrossEntropy(network)
  batch = _batch([[3, 4, 5, 1], [6, 7, 1, 0]], [[1, 1, 1, 1], [1, 1, 1, 0]])
  boxed = jax.eval_shape(loss.init, jax.random.key(0), batch)
  assert isinstance(boxed["token_embedder"]["embedding"], nn.LogicallyPartitioned)
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: jnp.asarray(rng.standard_normal(x.shape) * 0.4, x.dtype), nn.meta.unbox(boxed)
  )

  @jax.jit
  def step(params):
    def mean(params):
      value = loss.loss(params, batch, None)
      return value.total / value.weight

    value, gradient = jax.value_and_grad(mean)(params)
    return jax.tree.map(lambda p, g: p - 0.3 * g, params, gradient), value

  values = []
  for _ in range(60):
    params, value = step(params)
    values.append(value)
  assert values[-1] < 0.5 * values[0]


@pytest.mark.parametrize("settings", [{"z_loss": -1.0}, {"label_smoothing": 1.0}])
def test_settings_that_cannot_be_are_refused(settings):
  with pytest.raises(InputError, match=next(iter(settings))):
    objective.TokenCrossEntropy(Table(()), **settings)
