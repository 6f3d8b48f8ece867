"""The steps of training and of writing texts, made ready to be compiled from shapes alone."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from kard_jax.core import checkpoints, decode, decoding_state, flops, selection, streaming
from kard_jax.core.ahead import Program
from kard_jax.core.objective import Batch, Objective, Params
from kard_jax.core.partitioning import Partitioner
from kard_jax.core.sampling import Sampler
from kard_jax.core.state import Beginning
from kard_jax.core.train import Trainer, make_step


def train(objective: Objective, trainer: Trainer, batch: Batch) -> Program:
  """The update of a run.

  Args:
    objective: the network and its loss.
    trainer: how the run goes; its partitioner is on the devices to compile for.
    batch: shapes of a batch of all processes.

  Raises:
    InputError: the batch does not fit the mesh.
  """
  partitioner = trainer.partitioner
  partitioner.rows(next(iter(batch.values())).shape[0])
  tx = trainer.optimizer(trainer.steps)
  beginning = Beginning(
    objective,
    tx,
    batch,
    trainer.seed,
    partitioner,
    trainer.trained,
    frozen_dtype=trainer.frozen_dtype,
  )
  state, frozen = beginning.abstract()
  lowered = partitioner.lower(
    make_step(objective, tx, trainer),
    state,
    frozen,
    _rows(batch, partitioner),
    donate_argnums=0,
    out_shardings=(beginning.shardings, partitioner.replicated),
  )
  trained, parameters = beginning.counts()

  def total(params: Params, frozen: Params, batch: Batch) -> jax.Array:
    return objective.loss(selection.join(params, frozen), batch, jax.random.key(0)).total

  with partitioner.active():
    share = trained / parameters
    work = flops.training_step(total, state.params, frozen, dict(batch), trained=share)
  return Program("train", lowered, parameters, work)


class Writing:
  """The two programs that write texts: one reads inputs, one adds tokens until all have ended.

  The first reads as many inputs at a time as `streaming.write` gives it. The second is compiled for
  the longest texts of all inputs: it is then that caches are largest.

  Args:
    network: has the methods of `decode.Network`.
    inputs: how many arrays of tokens the network is called with: 1 for a decoder, 2 for T5.
    partitioner: on the devices to compile for.
    sampler: how each token is chosen.
    batch_size: inputs.
    input_length: tokens of each.
    target_length: tokens that are written at most.
    samples: texts for each input.

  Raises:
    InputError: the batch does not fit the mesh.
  """

  def __init__(
    self,
    network: nn.Module,
    inputs: int,
    partitioner: Partitioner,
    *,
    sampler: Sampler,
    batch_size: int,
    input_length: int,
    target_length: int,
    samples: int,
  ):
    partitioner.rows(batch_size)
    decode.check(sampler, max_length=target_length, samples=samples, seeded=True)
    self._partitioner = partitioner
    self._network = network
    self._sampler = sampler
    self._width = sampler.beams if sampler.beams > 1 else samples
    self._length = target_length
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    with partitioner.active():
      boxed = jax.eval_shape(
        lambda *rows: network.init(jax.random.key(0), *rows)["params"], *[tokens] * inputs
      )
    self._params = checkpoints.abstract(nn.meta.unbox(boxed), partitioner.shardings(boxed))
    self.parameters = sum(leaf.size for leaf in jax.tree.leaves(self._params))
    rows = {"inputs": jax.ShapeDtypeStruct((batch_size, input_length), jnp.int32)}
    self._inputs = _rows(rows, partitioner)["inputs"]

  def read(self) -> Program:
    """Encodes inputs, or fills a decoder's caches with prompts."""
    batch, length = self._inputs.shape
    together = streaming.read_together(batch, length, self._partitioner.shards(batch))
    rows = {"inputs": jax.ShapeDtypeStruct((together, length), jnp.int32)}
    inputs = _rows(rows, self._partitioner)["inputs"]
    room = decoding_state.rooms(self._length)[0]
    with self._partitioner.active():
      arguments = (self._network, self._width, room, self._params, inputs)
      lowered = decode.start.lower(*arguments)
      work = flops.products(
        jax.make_jaxpr(decode.start, static_argnums=(0, 1, 2))(*arguments).jaxpr
      )
    return Program("read", lowered, self.parameters, work)

  def write(self, read: jax.stages.Compiled) -> Program:
    """The loop over tokens; `read`, compiled, says where the caches lie."""
    with self._partitioner.active():
      lowered, step = decode.lower(
        self._network,
        self._params,
        self._inputs,
        sampler=self._sampler,
        max_length=self._length,
        samples=self._width,
        shardings=read.output_shardings,
        rows=self._partitioner.batch_sharding,
      )
    return Program("write", lowered, self.parameters, flops.products(step.jaxpr))


def _rows(batch: Batch, partitioner: Partitioner) -> dict[str, jax.ShapeDtypeStruct]:
  return {
    name: jax.ShapeDtypeStruct(rows.shape, rows.dtype, sharding=partitioner.batch_sharding)
    for name, rows in batch.items()
  }
