"""How a run's state begins: fresh, from given parameters, or from its last checkpoint.

What is trained is in the state, with the optimiser's statistics. What stays frozen is beside it:
no gradient, no statistics, no copy, and in no checkpoint.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike

from kard_jax.core import checkpoints, selection
from kard_jax.core.files import InputError
from kard_jax.core.objective import Batch, Objective, Params
from kard_jax.core.partitioning import Partitioner


@flax.struct.dataclass
class State:
  """All that changes while training."""

  step: Any  # [] int32; Any, because a state's leaves may also be shapes or shardings
  params: Params  # those that are trained
  opt_state: Any


@dataclasses.dataclass(frozen=True)
class Beginning:
  """What a run's state is made of.

  Attributes:
    objective: its `init` gives all parameters.
    tx: the optimiser.
    batch: any batch, for its shapes.
    seed: of fresh parameters.
    partitioner: mesh and rules.
    trained: names of what is trained (`selection`); None trains all.
    initial: gives parameters to begin with, unboxed: all that are frozen, and any of those that
      are trained (the others begin fresh). Called only when they are needed.
    frozen_dtype: element type in which frozen parameters are kept.
  """

  objective: Objective
  tx: optax.GradientTransformation
  batch: Batch
  seed: int
  partitioner: Partitioner
  trained: Sequence[str] | None = None
  initial: Callable[[], Params] | None = None
  frozen_dtype: DTypeLike = jnp.float32

  @functools.cached_property
  def _boxed(self) -> tuple[Params, Params]:
    """Shapes of what is trained and of what is frozen, boxed with logical axis names."""
    init = lambda batch: self.objective.init(jax.random.key(self.seed), batch)
    with self.partitioner.active():  # nothing may be computed: the mesh may be one to compile for
      boxed = jax.eval_shape(init, dict(self.batch))
    names = self.trained
    if names is None:
      return boxed, {}
    paths = selection.flatten(boxed)
    for name in names:
      if not any(selection.chosen(path, [name]) for path in paths):
        tops = sorted({"/".join(path.split("/")[:2]) for path in paths})
        raise InputError(
          f"train.Trainer.trained: the network has no parameter {name!r}; it has "
          f"{', '.join(tops[:12])}{', ...' if len(tops) > 12 else ''}"
        )
    return selection.split(boxed, lambda path: selection.chosen(path, names))

  @functools.cached_property
  def shapes(self) -> State:
    """The state's shapes, boxed; nothing is computed."""
    params = self._boxed[0]
    if not params:
      raise InputError("train.Trainer.trained = []: nothing is trained")
    with self.partitioner.active():
      opt_state = jax.eval_shape(self.tx.init, params)
    return State(jax.ShapeDtypeStruct((), jnp.int32), params, opt_state)

  @functools.cached_property
  def shardings(self) -> State:
    """Where the state's arrays lie."""
    return self.partitioner.shardings(self.shapes)

  def counts(self) -> tuple[int, int]:
    """How many parameters are trained, and how many there are."""
    trained, frozen = (sum(leaf.size for leaf in jax.tree.leaves(part)) for part in self._boxed)
    return trained, trained + frozen

  def abstract(self) -> tuple[State, Params]:
    """The state and the frozen parameters as shapes that know where they lie: to compile from."""
    frozen = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, self.frozen_dtype),
      nn.meta.unbox(self._boxed[1]),
    )
    state = checkpoints.abstract(nn.meta.unbox(self.shapes), self.shardings)
    return state, checkpoints.abstract(frozen, self.partitioner.shardings(self._boxed[1]))

  def begin(self, saved: checkpoints.Run) -> tuple[State, Params]:
    """The state to go on from, and the frozen parameters."""
    if saved.latest is None:
      return self.begin_fresh()
    abstract = checkpoints.abstract(nn.meta.unbox(self.shapes), self.shardings)
    state = saved.restore_newest(abstract)
    frozen = list(selection.flatten(self._boxed[1]))
    return state, selection.unflatten(self._params(frozen, frozen)) if frozen else {}

  def begin_fresh(self) -> tuple[State, Params]:
    """As `begin`, where there is no checkpoint."""
    trained, frozen = (list(selection.flatten(part)) for part in self._boxed)
    leaves = self._params([*trained, *frozen], frozen)
    params = selection.unflatten({path: leaves[path] for path in trained})
    init = self.partitioner.jit(
      lambda params: _unboxed(self.tx.init(params)), out_shardings=self.shardings.opt_state
    )
    step = self.partitioner.jit(
      lambda: jnp.zeros((), jnp.int32), out_shardings=self.shardings.step
    )()
    state = State(step, params, init(params))
    return state, selection.unflatten({path: leaves[path] for path in frozen})

  def _params(self, wanted: Sequence[str], frozen: Sequence[str]) -> dict[str, jax.Array]:
    """Parameters by path: the given ones, fresh ones where none is given.

    Raises:
      InputError: a given one does not fit; a frozen one is not given: no checkpoint would have it.
    """
    shardings = selection.flatten(self.partitioner.shardings(selection.join(*self._boxed)))
    shapes = selection.flatten(nn.meta.unbox(selection.join(*self._boxed)))
    given = selection.flatten(self.initial()) if self.initial else {}
    for path, leaf in given.items():
      if path not in shapes or shapes[path].shape != leaf.shape:
        here = shapes[path].shape if path in shapes else "none"
        raise InputError(f"the initial parameter {path} has shape {leaf.shape}, the network {here}")
    leaves: dict[str, jax.Array] = {}
    for path in [path for path in wanted if path in given]:
      dtype = self.frozen_dtype if path in frozen else jnp.float32
      leaf = jnp.asarray(given.pop(path), dtype)  # popped, so that no float32 twin stays
      leaves[path] = self.partitioner.place(leaf, shardings[path])
    given.clear()
    fresh = [path for path in wanted if path not in leaves]
    if lacking := [path for path in fresh if path in frozen]:
      raise InputError(
        f"train.Trainer.trained: {lacking[0]} is not trained, so it must be among the initial "
        "parameters; set INITIAL"
      )
    if fresh:
      # Only what is asked for is computed: XLA drops the other random numbers.
      make = self.partitioner.jit(
        lambda: self._fresh(fresh), out_shardings={path: shardings[path] for path in fresh}
      )
      leaves |= make()
    return leaves

  def _fresh(self, wanted: Sequence[str]) -> dict[str, jax.Array]:
    params = _unboxed(self.objective.init(jax.random.key(self.seed), self.batch))
    leaves = selection.flatten(params)
    return {path: leaves[path] for path in wanted}


def _unboxed(tree: Any) -> Any:
  """The arrays alone. Flax's own unboxing would constrain Adafactor's statistics, which have fewer
  axes than their boxes name; the caller's `out_shardings` says where each array lies."""
  boxed = lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)
  return jax.tree.map(lambda leaf: leaf.value if boxed(leaf) else leaf, tree, is_leaf=boxed)
