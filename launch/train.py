"""Trains a student or a reranker (paper sections 3.1 to 3.3); goes on where a killed run stopped.

Examples:
  python launch/train.py --gin_file=gin_configs/recipes/quickstart/6_student_kard.gin
  python launch/train.py --gin_file=gin_configs/recipes/quickstart/6_student_kard.gin \\
    --gin_file=gin_configs/hardware/cpu_8_devices.gin --gin.WORKDIR="'runs/sharded'"
"""

from __future__ import annotations

if __name__ == "__main__":  # run the module gin can import, with the project's root on the path
  import pathlib
  import sys

  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])
  from kard_jax.core import config

  sys.exit(config.launch("train", __doc__ or ""))

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import seqio
from etils import epath

from kard_jax.convert import initial as initial_lib
from kard_jax.core import hosts
from kard_jax.core import lora as lora_lib
from kard_jax.core import train as loop
from kard_jax.core.files import InputError
from kard_jax.core.objective import Objective, Params
from kard_jax.core.provenance import Stage
from kard_jax.reranker import objective as reranker_objective
from tasks import batches, cached, features, registry


def train(
  stage: Stage,
  *,
  dataset: registry.Dataset,
  task: str,
  folder: str,
  objective: Objective,
  trainer: loop.Trainer,
  lengths: Mapping[str, int],
  batch_size: int,
  seed: int,
  draw: tuple[int, int] | None = None,
  keep_best: bool = False,
  pack: bool = False,
  initial: str | None = None,
  lora: lora_lib.Lora | None = None,
  cache: str | None = None,
  by: Callable[..., loop.Run] = loop.train,
) -> None:
  """Trains an objective on a task of a dataset; writes checkpoints and metrics to `folder`.

  Args:
    stage: the work directory and the record.
    dataset: whose task.
    task: "ft", "kaft", "rd", "kard", "dapt" or "rerank".
    folder: below the work directory.
    objective: the network and its loss.
    trainer: how the run goes.
    lengths: tokens kept of each feature; what is longer is cut at the end.
    batch_size: examples a step, over all devices.
    seed: of the order of examples and of the lists drawn.
    draw: for "rerank", how many passages of each side a list has: by rationale, by question.
    keep_best: for "rerank", whether a list always holds the rationale's first passage.
    pack: for students, whether a row holds as many examples as there is room for.
    initial: what parameters to begin with: a folder below the work directory that an earlier stage
      trained, a Hugging Face model's folder, or its name on the Hub; None begins from random ones.
    lora: adapters to train instead of the network's own parameters.
    cache: a folder that `seqio_cache_tasks` wrote; its tokens are taken, which changes no batch.
    by: the loop; its `check`, where it has one, says first what it cannot do.

  Raises:
    InputError: a file is missing or wrong, the network's vocabulary is too small, or what is
      frozen would be random.
  """
  dataset.locate(stage.workdir)
  for path in dataset.task_inputs(task):
    stage.reads(path)
  decoder_only = features.is_decoder_only(getattr(objective, "network", None))
  name = dataset.task(task, decoder_only)
  if initial is None and (lora is not None or trainer.trained is not None):
    raise InputError(
      "INITIAL = None: with LORA or TRAINED, what is frozen must come from somewhere"
    )
  if cache is not None:
    cached.use(cache, seqio.get_subtasks(registry.provider(name)))
  begin = _Beginning(stage, initial, folder) if initial else None
  training = batches.Batches(
    name,
    "train",
    lengths=lengths,
    batch_size=batch_size,
    seed=seed,
    draw=draw,
    keep_best=keep_best,
    decoder_only=decoder_only,
    pack=pack,
    cached=cache is not None,
  )
  _check_vocabulary(objective, training.vocab_size)
  print(
    f"{training.examples:>7,} training examples, {trainer.steps / training.steps_per_epoch:.1f} "
    f"epochs; inputs or targets cut to length: {training.trimmed:,}",
    flush=True,
  )
  if pack:
    before, after = training.padding_alone, training.padding
    print(f"{training.rows:>7,} rows hold them; padding {before:.0%} -> {after:.0%}", flush=True)
  validation: list[Mapping[str, np.ndarray]] = []
  if "validation" in seqio.get_mixture_or_task(name).splits and batches.has_examples(
    name, "validation"
  ):
    held_out = dataclasses.replace(training, split="validation", pack=False)
    validation = list(held_out.epoch())
    print(f"{held_out.examples:>7,} validation examples", flush=True)
  network: Any = getattr(objective, "network", None)
  stream = reranker_objective.scheduled(objective, training)
  if lora is not None:
    objective = lora_lib.Adapted(objective, lora)
    trainer = dataclasses.replace(trainer, trained=[*lora_lib.NAMES, *(trainer.trained or ())])
  if check := getattr(by, "check", None):
    check(trainer, evaluates=bool(validation))
  output = stage.keeps(folder)  # last: what was wrong so far has begun nothing
  if begin is not None:
    with hosts.lead_first("the run's origin"):
      begin.record(output, lora, trainer)
  run = by(
    objective,
    stream,
    output,
    trainer=trainer,
    validation=validation,
    initial=begin.loading(network, trainer) if begin else None,
  )
  shown = "  ".join(f"{name} {value:.4f}" for name, value in sorted(run.metrics.items()))
  print(f"{stage.name}: {shown}", flush=True)


def _check_vocabulary(objective: Objective, pieces: int) -> None:
  size = getattr(getattr(objective, "network", None), "vocab_size", pieces)
  if size < pieces:
    raise InputError(f"VOCAB_SIZE = {size}: the vocabulary has {pieces} pieces; set it to as many")


class _Beginning:
  """The parameters that a run begins with; a run that goes on may do without them."""

  def __init__(self, stage: Stage, initial: str, folder: str):
    self._stage = stage
    self._missing: InputError | None = None
    try:
      self._place = initial_lib.find(initial, stage.workdir)
    except InputError as error:
      if not stage.has_begun(folder):
        raise
      self._missing = error  # all that a run needs may be in its checkpoints
    else:
      stage.begins_from(self._place.files())

  def record(self, output: epath.Path, lora: lora_lib.Lora | None, trainer: loop.Trainer) -> None:
    """Says in the run's folder what it is built on."""
    if self._missing or (output / initial_lib.ORIGIN).exists():
      return
    initial_lib.Origin(
      given=self._place.given,
      beside=initial_lib.beside(self._place, output, self._stage.workdir),
      step=self._place.step,
      hashes=self._stage.origin_hashes(),
      lora=lora,
      trained=trainer.trained,
      frozen_dtype=str(jnp.dtype(trainer.frozen_dtype)),
    ).write(output)

  def loading(self, network: nn.Module, trainer: loop.Trainer) -> Callable[[], Params]:
    """What the trainer calls if it needs the parameters."""

    def load() -> Params:
      if self._missing:
        raise self._missing
      return initial_lib.load(self._place, network, trainer.partitioner)

    return load
