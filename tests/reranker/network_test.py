"""Late interaction and the cross-encoder: what they compute, ignore and can learn."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from kard_jax.core.files import InputError
from kard_jax.core.partitioning import Partitioner
from kard_jax.reranker import bert, network, objective
from tests import meshes

SIZES = {
  "vocab_size": 64,
  "embed_dim": 16,
  "num_layers": 1,
  "num_heads": 2,
  "head_dim": 8,
  "mlp_dim": 32,
}
AXES = {"batch", "length", "embed", "heads", "kv", "mlp", "vocab", "relpos_buckets"}


BERT = {**{k: v for k, v in SIZES.items() if k != "head_dim"}, "max_positions": 32}
SCORERS = ("normalize", "projection_dim", "pool", "pooler", "passage_start", "mean", "trained")


def encoder(changes):
  kind, sizes = (bert.Bert, BERT) if changes.pop("bert", False) else (network.T5Encoder, SIZES)
  return kind(**{**sizes, **{k: v for k, v in changes.items() if k not in SCORERS}})


def late(**changes):
  mine = {k: v for k, v in changes.items() if k in SCORERS}
  return network.LateInteraction(encoder(changes), **{"projection_dim": 8, **mine})


def cross(**changes):
  mine = {k: v for k, v in changes.items() if k in SCORERS}
  return network.CrossEncoder(encoder(changes), **mine)


ALL = {
  "late": late(),
  "late_cosine_0_layers": late(normalize=True, num_layers=0),
  "cross": cross(),
  "cross_first": cross(pool="first"),
  "late_bert": late(bert=True, num_layers=2),
  "cross_bert": cross(bert=True, pool="first", pooler=True),
}
# Compiling is nearly all the time these tests take, and their arrays are tiny.
fast_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
every_network = pytest.mark.parametrize("net", ALL.values(), ids=ALL.keys())


def some_tokens(seed=0):
  """Three questions of 2 to 5 tokens with four candidates of 3 to 7, padded to 5 and 7."""
  rng = np.random.default_rng(seed)
  query_BxL = rng.integers(2, 64, (3, 5), dtype=np.int32)
  passage_BxCxM = rng.integers(2, 64, (3, 4, 7), dtype=np.int32)
  for b, length in enumerate([5, 2, 4]):
    query_BxL[b, length:] = 0
  for row, length in zip(
    passage_BxCxM.reshape(-1, 7), rng.permutation([3, 4, 5, 6, 7, 7] * 2), strict=True
  ):
    row[length:] = 0
  return jnp.asarray(query_BxL), jnp.asarray(passage_BxCxM)


@functools.cache
def params_of(net):
  return nn.unbox(fast_jit(net.init)(jax.random.key(0), *some_tokens()))["params"]


@functools.partial(fast_jit, static_argnums=0)
def scores_of(net, params, query_BxL, passage_BxCxM):
  return net.apply({"params": params}, query_BxL, passage_BxCxM)


def encoded(net, tokens, method):
  return fast_jit(functools.partial(net.apply, method=method))({"params": params_of(net)}, tokens)


@functools.partial(fast_jit, static_argnums=0)
def scores_and_gradient(net, params, query_BxL, passage_BxCxM):
  def loss(params):
    scores_BxC = net.apply({"params": params}, query_BxL, passage_BxCxM)
    return jax.nn.log_softmax(scores_BxC)[:, 0].sum(), scores_BxC

  (_, scores_BxC), gradient = jax.value_and_grad(loss, has_aux=True)(params)
  return scores_BxC, gradient


@every_network
def test_scores_are_float32_moderate_and_not_all_alike(net):
  scores_BxC = scores_of(net, params_of(net), *some_tokens())
  assert scores_BxC.shape == (3, 4)
  assert scores_BxC.dtype == jnp.float32
  assert np.std(scores_BxC, axis=1).min() > 1e-3
  assert np.abs(scores_BxC).max() < 15  # a softmax of these is not saturated


def test_bfloat16_runs_and_is_near():
  for name in ("late", "cross"):
    exact_BxC = scores_of(ALL[name], params_of(ALL[name]), *some_tokens())
    half = {"late": late, "cross": cross}[name](dtype=jnp.bfloat16)
    scores_BxC = scores_of(half, params_of(ALL[name]), *some_tokens())
    assert scores_BxC.dtype == jnp.float32
    assert not np.array_equal(scores_BxC, exact_BxC)
    np.testing.assert_allclose(scores_BxC, exact_BxC, atol=0.15)


@pytest.mark.parametrize("name", ["late", "late_cosine_0_layers"])
def test_late_interaction_is_the_sum_of_the_best_matches(name):
  net, (query_BxL, passage_BxCxM) = ALL[name], some_tokens()
  q = encoded(net, query_BxL, "encode_query")
  p = encoded(net, passage_BxCxM, "encode_passages")
  expected_BxC = np.zeros((3, 4))
  for b in range(3):
    for c in range(4):
      for query_P, real in zip(np.asarray(q.vectors[b]), query_BxL[b] > 0, strict=True):
        if real:
          expected_BxC[b, c] += max(
            float(query_P @ passage_P)
            for passage_P, token in zip(
              np.asarray(p.vectors[b, c]), passage_BxCxM[b, c], strict=True
            )
            if token > 0
          )
  np.testing.assert_allclose(
    scores_of(net, params_of(net), query_BxL, passage_BxCxM), expected_BxC, rtol=1e-5, atol=1e-5
  )
  if net.normalize:
    np.testing.assert_allclose(np.linalg.norm(p.vectors, axis=-1), 1.0, rtol=1e-5)


def test_passages_encoded_once_serve_any_question():
  net, (query_BxL, passage_BxCxM) = ALL["late"], some_tokens()
  flat = encoded(net, passage_BxCxM.reshape(12, 7), "encode_passages")
  shared = network.TokenVectors(*(jnp.broadcast_to(x, (3, *x.shape)) for x in flat))
  query = encoded(net, query_BxL, "encode_query")
  all_3x12 = net.apply({"params": params_of(net)}, query, shared, method="compare")
  expected_BxC = scores_of(net, params_of(net), query_BxL, passage_BxCxM)
  for b in range(3):
    np.testing.assert_allclose(all_3x12[b, 4 * b : 4 * b + 4], expected_BxC[b], rtol=1e-5)


def pad(x, axis, *, before=0, after=0):
  widths = [(0, 0)] * x.ndim
  widths[axis] = (before, after)
  return jnp.pad(x, widths)


@every_network
def test_padding_does_not_change_scores(net):
  query_BxL, passage_BxCxM = some_tokens()
  params = params_of(net)
  scores_BxC = scores_of(net, params, query_BxL, passage_BxCxM)
  wider_BxC = scores_of(
    net, params, pad(query_BxL, 1, after=6), pad(pad(passage_BxCxM, 2, after=9), 1, after=2)
  )
  np.testing.assert_allclose(wider_BxC[:, :4], scores_BxC, rtol=1e-5, atol=1e-5)
  for token in (1, 63):  # as a check of the check: a real token does change them
    moved_BxC = scores_of(
      net, params, query_BxL, jnp.where(passage_BxCxM == 0, token, passage_BxCxM)
    )
    assert not np.allclose(moved_BxC, scores_BxC, atol=1e-3)


@every_network
def test_lists_and_candidates_are_scored_on_their_own(net):
  query_BxL, passage_BxCxM = some_tokens()
  params = params_of(net)
  scores_BxC = scores_of(net, params, query_BxL, passage_BxCxM)
  turned_BxC = scores_of(net, params, query_BxL[::-1], passage_BxCxM[::-1, ::-1])
  np.testing.assert_allclose(turned_BxC[::-1, ::-1], scores_BxC, rtol=1e-5, atol=1e-5)
  changed = passage_BxCxM.at[0, 1].set(9)
  changed_BxC = scores_of(net, params, query_BxL, changed)
  assert abs(changed_BxC[0, 1] - scores_BxC[0, 1]) > 1e-3
  same = np.ones((3, 4), bool)
  same[0, 1] = False
  np.testing.assert_allclose(changed_BxC[same], scores_BxC[same], rtol=1e-5, atol=1e-5)


@every_network
def test_nothing_but_padding_gives_finite_scores_and_gradients(net):
  query_BxL, passage_BxCxM = some_tokens()
  query_BxL = query_BxL.at[0].set(0)
  passage_BxCxM = passage_BxCxM.at[0, 1].set(0).at[1, 2].set(0)
  scores_BxC, gradient = scores_and_gradient(net, params_of(net), query_BxL, passage_BxCxM)
  assert np.isfinite(scores_BxC).all()
  jax.tree.map(lambda g: np.testing.assert_array_equal(np.isfinite(g), True), gradient)
  if isinstance(net, network.LateInteraction):
    np.testing.assert_array_equal(scores_BxC[0], 0.0)
    assert scores_BxC[1, 2] == 0.0


@every_network
def test_gradients_reach_both_sides_and_every_parameter(net):
  query_BxL, passage_BxCxM = some_tokens()
  query_BxL = jnp.where(query_BxL > 0, 2 + query_BxL % 30, 0)  # ids below 32
  passage_BxCxM = jnp.where(passage_BxCxM > 0, 32 + passage_BxCxM % 30, 0)  # and above
  _, gradient = scores_and_gradient(net, params_of(net), query_BxL, passage_BxCxM)
  by_token_V = np.abs(gradient["encoder"]["token_embedder"]["embedding"]).sum(1)
  for side in (query_BxL, passage_BxCxM):
    used = np.unique(side[side > 0])
    assert (by_token_V[used] > 0).mean() > (
      0.5 if isinstance(net, network.LateInteraction) else 0.9
    )
  assert by_token_V[0] == 0.0  # padding
  still = [path for path, g in jax.tree.leaves_with_path(gradient) if not np.any(g)]
  assert not [path for path in still if net.encoder.num_layers or "relpos_bias" not in str(path)]


def test_the_cross_encoder_tells_question_from_passage():
  net = ALL["cross"]
  a, b = jnp.arange(2, 8)[None], jnp.arange(20, 26)[None]
  one = scores_of(net, params_of(net), a, b[:, None])
  other = scores_of(net, params_of(net), b, a[:, None])
  assert abs(one[0, 0] - other[0, 0]) > 1e-3


def test_the_cross_encoder_joins_real_tokens():
  query_BxL = jnp.asarray([[5, 1, 0, 0], [6, 7, 8, 1]])
  passage_BxCxM = jnp.asarray([[[9, 1, 0], [0, 0, 0]], [[2, 3, 1], [4, 0, 0]]])
  tokens_NxS, segments_NxS = network._joined(query_BxL, passage_BxCxM)
  expected = [[5, 1, 9, 1], [5, 1], [6, 7, 8, 1, 2, 3, 1], [6, 7, 8, 1, 4]]
  sides = [[0, 0, 1, 1], [0, 0], [0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1]]
  for row, side, tokens, segments in zip(expected, sides, tokens_NxS, segments_NxS, strict=True):
    np.testing.assert_array_equal(tokens, row + [0] * (7 - len(row)))
    np.testing.assert_array_equal(segments[: len(side)], side)


def test_an_unknown_pool_is_named():
  with pytest.raises(InputError, match=r"CrossEncoder\.pool = 'last'"):
    jax.eval_shape(cross(pool="last").init, jax.random.key(0), *some_tokens())


@every_network
def test_every_parameter_has_logical_axes(net):
  boxed = jax.eval_shape(net.init, jax.random.key(0), *some_tokens())["params"]
  boxes = jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
  for box in boxes:
    assert isinstance(box, nn.LogicallyPartitioned)
    assert len(box.names) == box.value.ndim
    assert set(box.names) <= AXES


@pytest.mark.parametrize(
  "name", ["late", "cross", pytest.param("late_bert", marks=pytest.mark.slow)]
)
def test_eight_devices_give_the_same_loss_and_gradient(name):
  net, rng = ALL[name], np.random.default_rng(0)
  batch = {
    "query_tokens": rng.integers(0, 64, (8, 5), dtype=np.int32),
    "passage_tokens": rng.integers(0, 64, (8, 3, 7), dtype=np.int32),
    "passage_scores": rng.gamma(1.0, 8.0, (8, 3)).astype(np.float32),
    "passage_mask": np.ones((8, 3), bool),
  }
  kl = objective.ListwiseKL(net, rationale_tau=5.0)
  partitioner = Partitioner(meshes.AXES, meshes.RULES)
  with partitioner.active():
    boxed = jax.eval_shape(kl.init, jax.random.key(0), batch)
  whole = params_of(net)
  split = jax.device_put(whole, partitioner.shardings(boxed))
  table = split["encoder"]["token_embedder"]["embedding"]
  assert table.addressable_shards[0].data.shape == (32, 8)

  def loss(params, batch):
    return kl.loss(params, batch, None).total

  quick = {"compiler_options": {"xla_backend_optimization_level": 0}}
  expected, by_one = jax.jit(jax.value_and_grad(loss), **quick)(whole, batch)
  value, by_eight = partitioner.jit(jax.value_and_grad(loss), **quick)(
    split, partitioner.put(batch, len(batch["query_tokens"]))
  )
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  largest = max(np.max(np.abs(g)) for g in jax.tree.leaves(by_one))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * largest), by_eight, by_one
  )
  with partitioner.active():  # activations too are split, by their own names
    program = jax.make_jaxpr(net.apply)(
      {"params": whole}, *(jnp.asarray(batch[name]) for name in ("query_tokens", "passage_tokens"))
    )
  constrained = {
    equation.outvars[0].aval.shape: equation.params["sharding"].spec
    for equation in program.eqns
    if equation.primitive.name == "sharding_constraint"
  }
  assert constrained[8, 3] == PartitionSpec(("data", "fsdp"), None)
  if name == "late":
    assert constrained[24, 7, 8] == PartitionSpec(("data", "fsdp"), None, None)


def closed_world(rng, lists, names):
  """Lists whose right passage shares the question's name and answers its kind of question.

  Names are two tokens of 10 .. 39; question kind k is token 40 + k, the passage's word for it
  50 + k: the words differ, so only training can tell that they go together.
  """
  name_Bx2 = names[rng.integers(len(names), size=lists)]
  kind_B = rng.integers(4, size=lists)
  query_BxL = np.stack([40 + kind_B, *name_Bx2.T, np.ones_like(kind_B)], axis=1)
  passage_BxCxM = np.ones((lists, 6, 5), np.int32)
  for c in range(6):
    other = c >= 4  # the last two: the right kind, another name
    name = names[rng.integers(len(names), size=lists)] if other else name_Bx2
    passage_BxCxM[:, c, :2] = name
    passage_BxCxM[:, c, 2] = 50 + (kind_B if other else (kind_B + c) % 4)
    passage_BxCxM[:, c, 3] = rng.integers(56, 64, size=lists)
  right_BxC = np.zeros((lists, 6), np.float32)
  right_BxC[:, 0] = 8.0
  right_BxC[:, 4:] = 4.0
  turn = rng.permuted(np.tile(np.arange(6), (lists, 1)), axis=1)
  return {
    "query_tokens": query_BxL.astype(np.int32),
    "passage_tokens": np.take_along_axis(passage_BxCxM, turn[:, :, None], axis=1),
    "passage_scores": np.take_along_axis(right_BxC, turn, axis=1),
    "passage_mask": np.ones((lists, 6), bool),
  }


def test_late_interaction_learns_relations_and_copes_with_unseen_names():
  rng = np.random.default_rng(0)
  pairs = rng.permutation([(i, j) for i in range(10, 40) for j in range(10, 40) if i != j])
  kl = objective.ListwiseKL(late(embed_dim=32, projection_dim=32))
  unseen = closed_world(rng, 256, pairs[600:])
  params = nn.unbox(fast_jit(kl.init)(jax.random.key(0), unseen))
  optimizer = optax.adam(3e-3)

  @fast_jit
  def step(params, state, batch):
    gradient = jax.grad(lambda p: kl.loss(p, batch, None).total / 32)(params)
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, updates), state

  @fast_jit
  def hit_at_1(params):
    return jnp.divide(*kl.loss(params, unseen, None).metrics["hit@1"])

  before, state = hit_at_1(params), optimizer.init(params)
  for _ in range(150):
    params, state = step(params, state, closed_world(rng, 32, pairs[:600]))
  after = hit_at_1(params)
  assert before < 0.5 < 0.95 < after, (before, after)


@pytest.mark.parametrize("side", network.SIDES)
def test_the_gradient_reaches_the_side_that_is_trained(side):
  """Ids of questions and passages differ, so their rows of the table tell the sides apart."""
  net = late(bert=True, num_layers=0, trained=side)
  query_BxL = jnp.asarray([[2, 3, 4]])
  passage_BxCxM = jnp.asarray([[[12, 13], [14, 15]]])
  scores_BxC, gradient = scores_and_gradient(net, params_of(net), query_BxL, passage_BxCxM)
  by_token_V = np.abs(gradient["encoder"]["token_embedder"]["embedding"]).sum(1)
  assert (by_token_V[2:5].sum() > 0) == (side != "passage")
  assert (by_token_V[12:16].sum() > 0) == (side != "query")
  both = scores_of(late(bert=True, num_layers=0), params_of(net), query_BxL, passage_BxCxM)
  np.testing.assert_array_equal(scores_BxC, both)  # the scores are the same


def test_an_unknown_side_is_told():
  with pytest.raises(InputError, match=r"trained = 'none': choose one of both, query, passage"):
    jax.eval_shape(late(trained="none").init, jax.random.key(0), *some_tokens())


def test_the_mean_divides_by_the_questions_tokens():
  query_BxL, passage_BxCxM = some_tokens()
  plain = scores_of(ALL["late"], params_of(ALL["late"]), query_BxL, passage_BxCxM)
  mean = scores_of(late(mean=True), params_of(ALL["late"]), query_BxL, passage_BxCxM)
  np.testing.assert_allclose(mean * np.array([[5], [2], [4]]), plain, rtol=1e-5)
