"""The memorisation experiment: what students know of N facts, with and without a knowledge base.

Examples:
  python launch/run.py --recipe=memorisation
  python launch/memorise.py --gin_file=gin_configs/recipes/memorisation/2_memorise_width_8.gin
"""

from __future__ import annotations

if __name__ == "__main__":  # run the module gin can import, with the project's root on the path
  import pathlib
  import sys

  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])
  from kard_jax.core import config

  sys.exit(config.launch("memorise", __doc__ or ""))

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
from etils import epath
from rich import box
from rich.console import Console
from rich.table import Table

from kard_jax import memorisation, memorisation_page, silver
from kard_jax import questions as questions_lib
from kard_jax.core import decode, ensemble, files, optimizers, streaming
from kard_jax.core import train as loop
from kard_jax.core.files import InputError
from kard_jax.core.objective import Objective, Params
from kard_jax.core.provenance import Stage
from kard_jax.memorisation import Point
from kard_jax.questions import Question
from kard_jax.retrieval import index as index_lib
from kard_jax.retrieval import passages as passages_lib
from tasks import vocabularies
from tasks.memorisation import PROMPTS, TARGET_LENGTH, Examples, Facts, Members, write_vocabulary
from tasks.vocabularies import Vocabulary

_ASKED_AT_ONCE = 256
_KINDS = {False: "without", True: "with"}  # knowledge


def memorise(stage: Stage, *, part: Callable[[Stage], None]) -> None:
  """One part of the experiment.

  Args:
    stage: the work directory and the record.
    part: `worlds`, `students` or `chart`.
  """
  part(stage)


def worlds(stage: Stage, *, seeds: int, relations: int, size: int) -> None:
  """Writes a vocabulary, and `worlds/<seed>/`: questions, passages, index, and what BM25 finds.

  Args:
    stage: the work directory and the record.
    seeds: worlds, from 0.
    relations: that facts are of, see `tasks.memorisation.Facts`.
    size: facts of a world, and passages of its knowledge base.
  """
  words = write_vocabulary(stage.writes("vocabulary"), relations)
  print(f"{words:>7,} words and syllables in the vocabulary", flush=True)
  for seed in range(seeds):
    facts = Facts(seed, relations, size)
    questions = facts.questions()
    questions_lib.write(stage.writes(f"worlds/{seed}/questions.jsonl"), questions)
    folder = stage.writes(f"worlds/{seed}/knowledge/passages")
    count = passages_lib.write(facts.passages(), folder)
    stored = passages_lib.Passages(folder)
    index = index_lib.build(stored, stage.writes(f"worlds/{seed}/knowledge/bm25"))
    rows = silver.retrieve(index, stored, questions, PROMPTS, k=1)
    files.write_jsonl(stage.writes(f"worlds/{seed}/retrieved.jsonl"), rows)
    print(f"{count:>7,} facts and passages, {len(questions):,} questions, seed {seed}", flush=True)


def students(
  stage: Stage,
  *,
  objective: Objective,
  trainer: loop.Trainer,
  facts: Sequence[int],
  seeds: int,
  batch_size: int,
  exposures: int,
  input_length: int,
  passage_length: int,
) -> None:
  """Trains a size of student on N facts, for each N, with and without knowledge, and asks it.

  The seeds of a point are trained side by side (`core.ensemble`). Writes `points/<stage>.json`;
  what is trained stays in `students/<stage>/`, and a point that stands there is not trained again.

  Args:
    stage: the work directory and the record.
    objective: the network and its loss.
    trainer: how each run goes; it takes `steps`, or more (see `exposures`).
    facts: the numbers of facts.
    seeds: worlds, from 0.
    batch_size: questions a step, of each seed.
    exposures: how often at least a student without knowledge sees each fact; those with it take
      `trainer.steps` whatever N is, as they have no more to learn from more facts.
    input_length: tokens of a question.
    passage_length: tokens of a passage.
  """
  name = stage.name
  vocabulary = Vocabulary(stage.reads("vocabulary"))
  if vocabulary.vocab_size > objective.network.vocab_size:  # type: ignore[attr-defined]
    raise InputError(
      f"VOCAB_SIZE: the vocabulary has {vocabulary.vocab_size} words; set it to as many"
    )
  read = [World.read(stage, seed) for seed in range(seeds)]
  most = min(world.facts for world in read)
  if not facts or min(facts) < 1 or max(facts) > most:
    raise InputError(f"FACTS = {list(facts)}: numbers from 1 to {most} are needed")
  runs = [
    _Run(
      name,
      objective,
      _lasting(
        trainer, max(trainer.steps, 0 if knowledge else -(-exposures * count // batch_size))
      ),
      vocabulary,
      count,
      knowledge,
      batch_size,
      input_length + (passage_length if knowledge else 0),
    )
    for count in sorted(set(facts))
    for knowledge in (False, True)
  ]
  for run in runs[-2:]:  # of all facts: a text that is too long is told before anything is begun
    run.batches(read)
  folder = stage.keeps(f"students/{name}")
  points = [point for run in runs for point in run.points(folder / run.name, read)]
  files.write_json(stage.writes(f"points/{name}.json"), [point._asdict() for point in points])


def _lasting(trainer: loop.Trainer, steps: int) -> loop.Trainer:
  """A run of another length, over which weight decay takes as much in all as over the given one.

  It keeps a student of few facts from learning their wordings; at the same strength it would keep
  one of many facts, which trains for longer, from learning anything.
  """
  optimizer = trainer.optimizer
  if isinstance(optimizer, optimizers.AdamW):
    decay = optimizer.weight_decay * trainer.steps / steps
    optimizer = dataclasses.replace(optimizer, weight_decay=decay)
  return dataclasses.replace(trainer, steps=steps, optimizer=optimizer)


def chart(stage: Stage, *, points: Sequence[str], enough: float) -> None:
  """Writes `memorisation.json` and `memorisation.html`, and prints the means.

  Args:
    stage: the work directory and the record.
    points: the stages whose students are shown.
    enough: the accuracy that the second plot asks for.
  """
  found = [
    memorisation.read_point(row)
    for name in points
    for row in json.loads(stage.reads(f"points/{name}.json").read_text())
  ]
  files.write_json(stage.writes("memorisation.json"), memorisation.summary(found, enough))
  stage.writes("memorisation.html").write_text(memorisation_page.render(found, enough))
  Console().print(_table(memorisation.means(found)))


def _table(found: Sequence[memorisation.Mean]) -> Table:
  """A line for each size and kind, a column for each number of facts."""
  counts = sorted({mean.facts for mean in found})
  table = Table(title="Right answers about N facts (mean of seeds)", box=box.SIMPLE_HEAD)
  table.add_column("Parameters", justify="right")
  table.add_column("Knowledge base")
  for count in counts:
    table.add_column(f"{count:,}", justify="right")
  for knowledge in (False, True):
    for size in sorted({mean.parameters for mean in found}):
      shown = {
        mean.facts: f"{mean.accuracy:.1%}"
        for mean in found
        if (mean.parameters, mean.knowledge) == (size, knowledge)
      }
      cells = [shown.get(count, "-") for count in counts]
      table.add_row(f"{size:,}", _KINDS[knowledge], *cells)
  return table


class World(NamedTuple):
  """A world as it was written.

  Attributes:
    seed: of it.
    questions: all, each fact's side by side.
    passages: by question id, what BM25 finds first.
  """

  seed: int
  questions: Sequence[Question]
  passages: Mapping[str, passages_lib.Passage]

  @classmethod
  def read(cls, stage: Stage, seed: int) -> World:
    """Reads one."""
    questions = questions_lib.read(stage.reads(f"worlds/{seed}/questions.jsonl"))
    stored = passages_lib.Passages(stage.reads(f"worlds/{seed}/knowledge/passages"))
    by_id = {passage.id: passage for passage in stored}
    found = {
      row["question_id"]: by_id[row["passages"][0]["id"]]
      for _, row in files.read_jsonl(stage.reads(f"worlds/{seed}/retrieved.jsonl"))
    }
    return cls(seed, questions, found)

  @property
  def facts(self) -> int:
    """How many it has."""
    return self.questions[-1].extra["fact"] + 1

  def asked(self, first: int, last: int, *, held_out: bool) -> list[Question]:
    """The questions about facts `first` to `last - 1`, in the wordings held out or the others."""
    return [
      question
      for question in self.questions
      if first <= question.extra["fact"] < last and question.extra["held_out"] == held_out
    ]


@dataclasses.dataclass(frozen=True)
class _Run:
  """The seeds of one point."""

  student: str
  objective: Objective
  trainer: loop.Trainer
  vocabulary: Vocabulary
  facts: int
  knowledge: bool
  batch_size: int
  input_length: int

  @property
  def name(self) -> str:
    """Of its folder."""
    return f"{self.facts}_facts_{_KINDS[self.knowledge]}"

  def batches(self, read: Sequence[World]) -> Members:
    """What it trains on: all wordings but those held out."""
    return Members(
      [self._examples(world, world.asked(0, self.facts, held_out=False)) for world in read],
      self.batch_size,
      [world.seed for world in read],
    )

  def points(self, folder: epath.Path, read: Sequence[World]) -> list[Point]:
    """Trains and asks, unless that is done."""
    done = folder / "points.json"
    if not done.exists():
      files.write_json(done, [point._asdict() for point in self._make(folder, read)])
    return [memorisation.read_point(row) for row in json.loads(done.read_text())]

  def _make(self, folder: epath.Path, read: Sequence[World]) -> list[Point]:
    run = loop.train(
      ensemble.Ensemble(self.objective), self.batches(read), folder, trainer=self.trainer
    )
    found = []
    for number, world in enumerate(read):
      params = ensemble.member(run.state.params, number)
      asked = world.asked(0, self.facts, held_out=True)
      right, unparsed = self._ask(params, world, asked)
      new = world.asked(self.facts, self.facts + _ASKED_AT_ONCE, held_out=True)
      new_right, _ = self._ask(params, world, new) if new else (0, 0)
      hits = [world.passages[question.id].id in question.gold for question in asked]
      found.append(
        Point(
          student=self.student,
          parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
          facts=self.facts,
          seed=world.seed,
          knowledge=self.knowledge,
          steps=self.trainer.steps,
          exposures=self.trainer.steps * self.batch_size / self.facts,
          questions=len(asked),
          right=right,
          unparsed=unparsed,
          options=len(asked[0].options),
          found=sum(hits) / len(hits) if self.knowledge else None,
          loss=run.metrics["cross_entropy"],
          new_questions=len(new),
          new_right=new_right,
        )
      )
    accuracies = "  ".join(f"{point.accuracy:.1%}" for point in found)
    kind = _KINDS[self.knowledge]
    print(f"{self.facts:>7,} facts {kind} knowledge, {self.trainer.steps} steps: {accuracies}")
    return found

  def _examples(self, world: World, questions: Sequence[Question]) -> Examples:
    passages = [[world.passages[q.id]] if self.knowledge else [] for q in questions]
    return Examples.make(questions, passages, self.vocabulary, self.input_length)

  def _ask(self, params: Params, world: World, questions: Sequence[Question]) -> tuple[int, int]:
    """How many answers are right, and how many texts state none."""
    network: nn.Module = self.objective.network  # type: ignore[attr-defined]
    decoded = streaming.write(
      network,
      params,
      self._examples(world, questions).rows["encoder_input_tokens"],
      sampler=decode.Sampler(greedy=True, eos_id=self.vocabulary.eos_id),
      max_length=TARGET_LENGTH,
      batch_size=_ASKED_AT_ONCE,
      lengths=(self.input_length,),
    )
    texts = vocabularies.decode(self.vocabulary, decoded.tokens_BxSxT[:, 0].tolist())
    answers = [
      PROMPTS.parse(text, question.options).answer
      for text, question in zip(texts, questions, strict=True)
    ]
    pairs = zip(answers, questions, strict=True)
    return sum(answer == question.label for answer, question in pairs), answers.count(None)
