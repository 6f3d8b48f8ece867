"""Asks a teacher for rationales and keeps those that lead to the gold answer (paper section 3.1).

Examples:
  python launch/teach.py --gin_file=gin_configs/recipes/quickstart/3_teach.gin
  python launch/teach.py --gin_file=gin_configs/recipes/openbookqa_teacher/2_teach.gin \\
    --gin.MODEL="'gpt-4o-mini'" --gin.DRY_RUN=True
"""

from __future__ import annotations

if __name__ == "__main__":  # run the module gin can import, with the project's root on the path
  import pathlib
  import sys

  sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])
  from kard_jax.core import config

  sys.exit(config.launch("teach", __doc__ or ""))

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence

import flax.linen as nn

from kard_jax import asking
from kard_jax import judge as judge_lib
from kard_jax import questions as questions_lib
from kard_jax import teacher as teacher_lib
from kard_jax.batch_api import Batches
from kard_jax.completions import Ask, Record, pieces_of
from kard_jax.convert import initial
from kard_jax.convert import source as hub
from kard_jax.core import files
from kard_jax.core.files import InputError
from kard_jax.core.partitioning import Partitioner
from kard_jax.core.provenance import Stage
from kard_jax.endpoint import Endpoint
from kard_jax.judge import Judge
from kard_jax.questions import Question
from tasks import letters, registry, vocabularies

_JUDGED_AT_ONCE = 1024  # questions
_STEPS = ("write", "submit", "collect")


def teach(
  stage: Stage,
  *,
  dataset: registry.Dataset,
  samples: int = 5,
  splits: Sequence[str] = ("train", "validation", "test"),
  keep_if: Sequence[str] = ("answer",),
  keep_unstated: bool = False,
  judge: Callable[[Stage, registry.Dataset], Judge] | None = None,
  endpoint: Asked | None = None,
) -> None:
  """Writes `rationales.jsonl`: every rationale, kept or not, with the reason, and the counts.

  Args:
    stage: the work directory and the record.
    dataset: whose questions, and whose teacher.
    samples: rationales for each question.
    splits: which questions; validation and test ones only serve measurements (silver passages).
    keep_if: what keeps a rationale, in this order: "answer", the one that it states; "judge", the
      one that a model picks after it.
    keep_unstated: whether "answer" keeps those that state none.
    judge: the model, as `StudentJudge`.
    endpoint: asks a model instead of the dataset's own teacher.

  Raises:
    InputError: a file or setting is wrong; the endpoint does not answer; or a batch is not done.
  """
  by_split = {
    split: questions_lib.read(stage.reads(f"questions/{split}.jsonl"))
    for split in splits
    if (stage.workdir / f"questions/{split}.jsonl").exists()
  }
  if endpoint is not None and endpoint.leaves_off:
    endpoint(stage, dataset, [q for some in by_split.values() for q in some], samples)
  # A model that cannot be loaded must show before anything is paid for.
  judging = _judge(keep_if, keep_unstated, judge, stage, dataset)
  asked: asking.Outcome | None = None
  if endpoint is None:
    stage.reads_outside(dataset.inputs())
    teacher = dataset.make_teacher()
  else:
    questions = [question for some in by_split.values() for question in some]
    asked = endpoint(stage, dataset, questions, samples)
    teacher = teacher_lib.RecordedTeacher(asked.texts, endpoint.endpoint.model)
  rows: list[dict] = []
  counts: dict[str, Mapping[str, object]] = {}
  for split, questions in by_split.items():
    taught = teacher_lib.teach(
      questions, teacher, dataset.prompts, samples, judging, batch=_JUDGED_AT_ONCE
    )
    part = list(taught)
    counts[split] = judge_lib.counts(part, questions, samples)
    rows += part
  files.write_jsonl(stage.writes("rationales.jsonl"), rows)
  report: dict[str, object] = {"splits": counts}
  if asked is not None and endpoint is not None:
    report["endpoint"] = endpoint.account(asked)
  files.write_json(stage.writes("rationales.counts.json"), report)
  print(judge_lib.table(counts), flush=True)


def _judge(
  keep_if: Sequence[str],
  keep_unstated: bool,
  judge: Callable[[Stage, registry.Dataset], Judge] | None,
  stage: Stage,
  dataset: registry.Dataset,
) -> Judge:
  if not keep_if or not set(keep_if) <= {"answer", "judge"}:
    raise InputError(f"KEEP_IF = {tuple(keep_if)}: one or both of 'answer' and 'judge'")
  if "judge" in keep_if and judge is None:
    raise InputError("KEEP_IF has 'judge': add --gin_file=gin_configs/runs/judge.gin and a model")
  judges: list[Judge] = []
  for name in keep_if:
    if name == "answer":
      judges.append(judge_lib.StatedAnswer(keep_unstated))
    elif judge is not None:
      judges.append(judge(stage, dataset))
  return judges[0] if len(judges) == 1 else judge_lib.FirstToKeep(judges)


@dataclasses.dataclass(frozen=True)
class Asked:
  """How an endpoint is asked for rationales.

  Attributes:
    endpoint: who.
    gold: whether the prompt tells the right option, as in the official code.
    exemplars: how many of the dataset's solved examples stand in the prompt.
    batch: "write", "submit" or "collect": a step of the Batch API; None asks at once.
    dry_run: prints one prompt and an estimate, and asks nothing.
  """

  endpoint: Endpoint
  gold: bool = True
  exemplars: int = 5
  batch: str | None = None
  dry_run: bool = False

  @property
  def leaves_off(self) -> bool:
    """Whether this is a step after which there is nothing to judge."""
    return self.dry_run or self.batch in ("write", "submit")

  def __call__(
    self, stage: Stage, dataset: registry.Dataset, questions: Sequence[Question], samples: int
  ) -> asking.Outcome:
    """Asks for what is missing in `teacher/completions.jsonl` below the work directory.

    Raises:
      InputError: as `asking.ask` and `Batches`; or batches are not done.
      SystemExit: 0, after a dry run or a step of a batch that leaves the stage unfinished.
    """
    if self.batch is not None and self.batch not in _STEPS:
      raise InputError(f"BATCH = {self.batch!r}: one of {', '.join(_STEPS)}, or None")
    if not 0 <= self.exemplars <= len(dataset.exemplars):
      raise InputError(
        f"TEACHER_EXEMPLARS = {self.exemplars}: {dataset.name} has {len(dataset.exemplars)}"
      )
    shown = dataset.exemplars[: self.exemplars]
    asks = [
      Ask(q.id, dataset.prompts.teacher(q, shown, gold=self.gold), samples) for q in questions
    ]
    folder = os.path.join(os.fspath(stage.workdir), "teacher")
    path = os.path.join(folder, "completions.jsonl")
    if self.dry_run:
      self._estimate(asks, path)
      raise SystemExit(0)
    batches = Batches(os.path.join(folder, "batch"), self.endpoint, asks, path)
    if self.batch is None:
      if pending := batches.pending():
        raise InputError(
          f"{batches.folder / pending[0]}: is submitted and not collected, and would be asked "
          "twice; BATCH = 'collect' first"
        )
      return asking.ask(self.endpoint, asks, path)
    self._step(batches)
    return asking.recorded(self.endpoint, asks, path)

  def account(self, outcome: asking.Outcome) -> dict[str, object]:
    """What was asked and used, for the record; says so where a cap ended it."""
    cost = self.endpoint.cost(outcome.prompt_tokens, outcome.completion_tokens)
    spent = "" if cost is None else f", {cost:,.3g} dollars"
    print(
      f"{self.endpoint.model}: {outcome.counts['answered']:,} of {outcome.counts['asked']:,} "
      f"completions; {outcome.prompt_tokens:,} tokens read, {outcome.completion_tokens:,} "
      f"written{spent}",
      flush=True,
    )
    for name, told in (("cut", "cut at the length limit"), ("rejected", "rejected by the server")):
      if outcome.counts[name]:
        print(f"{outcome.counts[name]:>7,} {told}", flush=True)
    if outcome.capped:
      print(f"{outcome.capped}: no more is asked; raise it, and --redo goes on", flush=True)
    return {
      "model": self.endpoint.model,
      **outcome.counts,
      "prompt_tokens": outcome.prompt_tokens,
      "completion_tokens": outcome.completion_tokens,
      "cost": cost,
      "capped": outcome.capped,
    }

  def _step(self, batches: Batches) -> None:
    if self.batch == "collect":
      report = batches.collect()
      print(f"{report.collected:,} completions collected", flush=True)
      for reason, count in report.errors.items():
        print(f"{count:>7,} requests without an answer: {reason}", flush=True)
      if report.open:
        states = ", ".join(f"{count} {state}" for state, count in report.open.items())
        raise InputError(f"{batches.folder}: batches are not done ({states}); collect again later")
      return
    written = batches.write()
    for path in written:
      print(f"{path}: written", flush=True)
    if self.batch == "submit":
      count = batches.submit()
      print(f"{count} batches submitted; BATCH = 'collect' when they are done", flush=True)
    raise SystemExit(0)

  def _estimate(self, asks: Sequence[Ask], path: str) -> None:
    if not asks:
      return
    print(asks[0].prompt)
    print("-" * 40)
    if os.path.exists(path):
      with Record(path, self.endpoint.identity, asks) as record:
        pieces = record.missing(at_once=self.endpoint.at_once)
    else:
      pieces = pieces_of(asks, at_once=self.endpoint.at_once)
    found = asking.estimate(self.endpoint, pieces)
    cost = "set PRICES for the cost" if found.cost is None else f"about {found.cost:,.3g} dollars"
    print(
      f"{self.endpoint.model}: {found.requests:,} requests, about {found.prompt_tokens:,} tokens "
      f"read and {found.completion_tokens:,} written (at most, if REQUEST limits them); {cost}",
      flush=True,
    )


@dataclasses.dataclass(frozen=True)
class StudentJudge:
  """A language model as judge: a student of this recipe, or any that can be loaded.

  Attributes:
    network: its network.
    model: its parameters: a folder of checkpoints below the work directory, a Hugging Face model's
      folder, or its name on the Hub.
    partitioner: mesh and rules.
    vocabulary: its vocabulary; None is the dataset's.
    exemplars: how many of the dataset's solved examples stand in the prompt.
    input_length: tokens that it reads at most.
    batch_size: prompts read together.
    checkpoint: of a run: "best" or "latest".
  """

  network: nn.Module
  model: str
  partitioner: Partitioner
  vocabulary: str | None = None
  exemplars: int = 5
  input_length: int = 2048
  batch_size: int = 32
  checkpoint: str = "best"

  def __call__(self, stage: Stage, dataset: registry.Dataset) -> Judge:
    """Loads the model.

    Raises:
      InputError: it is not there, or not this network's; or its vocabulary cannot tell letters.
    """
    dataset.locate(stage.workdir)
    place = initial.find(self.model, stage.workdir, self.checkpoint)
    stage.begins_from(place.files())
    vocabulary: vocabularies.Vocabulary = dataset.vocabulary
    if self.vocabulary is not None:
      there = os.path.exists(self.vocabulary)
      path = self.vocabulary if there else os.fspath(hub.find(self.vocabulary))
      vocabulary = vocabularies.Vocabulary(path)
    scores = letters.scorer(
      vocabulary,
      self.network,
      initial.load(place, self.network, self.partitioner),
      input_length=self.input_length,
      batch_size=self.batch_size,
      partitioner=self.partitioner,
    )
    return judge_lib.LanguageModel(scores, dataset.prompts, dataset.exemplars[: self.exemplars])
