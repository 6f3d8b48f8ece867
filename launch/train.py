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
from collections.abc import Mapping

import numpy as np
import seqio

from kard_jax.core import train as loop
from kard_jax.core.files import InputError
from kard_jax.core.objective import Objective
from kard_jax.core.provenance import Stage
from tasks import batches, features, registry


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

  Raises:
    InputError: a file is missing or wrong, or the network's vocabulary is too small.
  """
  dataset.locate(stage.workdir)
  for path in dataset.task_inputs(task):
    stage.reads(path)
  decoder_only = features.is_decoder_only(getattr(objective, "network", None))
  name = dataset.task(task, decoder_only)
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
  output = stage.keeps(folder)  # last: what was wrong so far has begun nothing
  run = loop.train(objective, training, output, trainer=trainer, validation=validation)
  shown = "  ".join(f"{name} {value:.4f}" for name, value in sorted(run.metrics.items()))
  print(f"{stage.name}: {shown}", flush=True)


def _check_vocabulary(objective: Objective, pieces: int) -> None:
  size = getattr(getattr(objective, "network", None), "vocab_size", pieces)
  if size < pieces:
    raise InputError(f"VOCAB_SIZE = {size}: the vocabulary has {pieces} pieces; set it to as many")
