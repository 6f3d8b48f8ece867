"""Scanned stacks compute what unrolled ones do, from trees that turn into one another."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kard_jax.core import decode, scanning
from kard_jax.core.files import InputError
from kard_jax.student import t5

UNROLLED = t5.T5(
  vocab_size=24,
  embed_dim=12,
  num_heads=2,
  head_dim=5,
  mlp_dim=16,
  num_encoder_layers=1,
  num_decoder_layers=2,
  dropout_rate=0.2,
)
SCANNED = UNROLLED.clone(scan_layers=True)


@functools.cache
def _case():
  rng = np.random.default_rng(0)
  inputs, targets = rng.integers(2, 24, (2, 3, 7)).astype(np.int32)
  inputs[1, 4:] = 0
  shapes = jax.eval_shape(UNROLLED.init, jax.random.key(0), inputs, targets)["params"]
  params = jax.tree.map(
    lambda leaf: (rng.standard_normal(leaf.shape) * 0.4).astype(np.float32), nn.meta.unbox(shapes)
  )
  return params, jnp.asarray(inputs), jnp.asarray(targets)


@functools.cache
def _plain(network):
  params, *_ = _case()
  return _run(network, scanning.stack(params) if network.scan_layers else params)


def _run(network, params, **kwargs):
  _, inputs, targets = _case()

  def loss(params):
    logits = network.apply({"params": params}, inputs, targets, **kwargs)
    return jnp.mean(jnp.square(logits)), logits

  return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)


def _assert_close(got, want, rtol=1e-5, atol=1e-6):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), got, want)


def test_scanned_equals_unrolled_in_values_and_gradients():
  want, want_gradient = _plain(UNROLLED)
  got, gradient = _plain(SCANNED)
  _assert_close(got, want)
  _assert_close(scanning.unstack(gradient), want_gradient)


def _products(program):
  """Matrix products in a program and in what it calls; its print shows what is shared once."""
  inner = [part for e in program.eqns for part in jax.tree.leaves(list(e.params.values()))]
  called = [getattr(part, "jaxpr", part) for part in inner]
  own = sum(e.primitive.name == "dot_general" for e in program.eqns)
  return own + sum(_products(part) for part in called if hasattr(part, "eqns"))


@pytest.mark.parametrize("scanned", [False, True], ids=["unrolled", "scanned"])
def test_remat_computes_products_again_in_the_backward_pass(scanned):
  params, inputs, targets = _case()
  params = scanning.stack(params) if scanned else params
  products = {}
  for remat in scanning.REMAT:
    network = UNROLLED.clone(scan_layers=scanned, remat=remat)

    def total(params, network=network):
      return network.apply({"params": params}, inputs, targets).sum()

    products[remat] = _products(jax.make_jaxpr(jax.grad(total))(params).jaxpr)
  assert products["none"] == products["dots"] < products["minimal"] < products["full"]


def test_remat_changes_neither_values_nor_gradients():
  stacked = scanning.stack(_case()[0])
  rngs = {"rngs": {"dropout": jax.random.key(3)}, "deterministic": False}
  want = _run(SCANNED, stacked, **rngs)
  _assert_close(_run(SCANNED.clone(remat="minimal"), stacked, **rngs), want)
  assert not np.allclose(want[0][1], _plain(SCANNED)[0][1])  # dropout was drawn


def test_an_unknown_remat_is_refused():
  params, inputs, targets = _case()
  with pytest.raises(InputError, match="remat = 'some': choose from none, dots, minimal, full"):
    UNROLLED.clone(remat="some").apply({"params": params}, inputs, targets)


class Dropping(nn.Module):
  """Gives on what it keeps of x; what it drops shows where it stood."""

  @nn.compact
  def __call__(self, x):
    kept = nn.Dropout(0.5)(jnp.ones_like(x), deterministic=False) > 0
    return 2 * x + kept  # a binary digit for each layer


class Stack(nn.Module):
  @nn.compact
  def __call__(self, x):
    layer = Dropping(name=scanning.LAYERS)
    return scanning.scan(layer, lambda layer, x: layer(x), x, length=3)


def test_scanned_layers_draw_dropout_of_their_own():
  digits = Stack().apply({}, jnp.zeros((4, 64)), rngs={"dropout": jax.random.key(0)})
  assert set(np.unique(digits)) == set(range(8))


def test_scanned_decoding_equals_unrolled():
  params, inputs, _ = _case()
  sampler = decode.Sampler(top_k=5, eos_id=-1)
  options = {"sampler": sampler, "max_length": 6, "samples": 2, "rng": jax.random.key(0)}
  want = decode.decode(UNROLLED, params, inputs, **options)
  got = decode.decode(SCANNED, scanning.stack(params), inputs, **options)
  assert len(np.unique(want.tokens_BxSxT)) > 5
  np.testing.assert_array_equal(got.tokens_BxSxT, want.tokens_BxSxT)
  np.testing.assert_allclose(got.log_probs_BxS, want.log_probs_BxS, rtol=1e-5)


@pytest.mark.parametrize("boxed", [True, False])
def test_stacking_gives_the_tree_that_a_scanned_network_makes(boxed):
  _, inputs, targets = _case()
  trees = []
  for network in (UNROLLED, SCANNED):
    tree = jax.eval_shape(network.init, jax.random.key(0), inputs, targets)["params"]
    trees.append(tree if boxed else nn.meta.unbox(tree))
  unrolled, scanned = trees
  assert _shapes(scanning.stack(unrolled)) == _shapes(scanned)
  assert _shapes(scanning.unstack(scanned)) == _shapes(unrolled)
  names = nn.get_partition_spec(trees[1])["decoder"]["layers"]["mlp"]["wo"]["kernel"]
  assert tuple(names) == (("layers", "mlp", "embed") if boxed else ())


def _shapes(tree):
  return jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree)


def test_unstacking_undoes_stacking_bit_for_bit():
  params, *_ = _case()
  for tree in (params, jax.tree.map(jnp.asarray, params)):
    back = scanning.unstack(scanning.stack(tree))
    jax.tree.map(np.testing.assert_array_equal, back, tree)
    assert isinstance(jax.tree.leaves(back)[0], type(jax.tree.leaves(tree)[0]))


def test_trees_that_do_not_stack_are_refused():
  params, *_ = _case()
  stack = dict(params["decoder"])
  first = stack.pop("layers_0")
  with pytest.raises(InputError, match=r"layers \[1\] cannot be stacked: one is missing"):
    scanning.stack({"decoder": stack})
  wrong = stack["layers_1"] | {"mlp": {}}
  with pytest.raises(InputError, match="layers_1 cannot be stacked"):
    scanning.stack({"decoder": stack | {"layers_0": first, "layers_1": wrong}})
