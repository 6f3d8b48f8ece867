"""A work directory of a few questions, as the stages would leave it; no stage is run."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import random

from kard_jax import questions as questions_lib
from kard_jax.core import files
from kard_jax.prompts import Prompts
from kard_jax.questions import Question
from kard_jax.retrieval import passages as passages_lib
from kard_jax.retrieval.passages import Passage
from tasks import vocabularies

METALS = ("tin", "iron", "gold", "lead")


@dataclasses.dataclass(frozen=True)
class Tiny:
  """What was written."""

  path: pathlib.Path
  questions: dict[str, list[Question]]
  passages: list[Passage]
  rationales: list[dict]

  def kept(self, split: str) -> list[tuple[str, int]]:
    """Names of the rationales that examples are made of, in order."""
    ids = {question.id for question in self.questions[split]}
    return [
      (row["question_id"], row["sample"])
      for row in self.rationales
      if row["kept"] and row["question_id"] in ids
    ]

  def rows(self, name: str) -> list[dict]:
    """A file's rows."""
    return [row for _, row in files.read_jsonl(self.path / name)]

  def rewrite(self, name: str, rows: list[dict]) -> None:
    """Puts other rows into a file."""
    files.write_jsonl(self.path / name, rows)


def write(
  path: pathlib.Path, *, train: int = 12, validation: int = 4, samples: int = 3, side: int = 6
) -> Tiny:
  """Writes all files that tasks read. Question ids hold what might trip a reader: `/`, spaces."""
  rng = random.Random(0)
  sizes = {"train": train, "validation": validation, "test": 3}
  questions = {
    split: [
      Question(
        f"{split}/q {number}",
        f"Which metal is dug up near the place {split}{number}?",
        METALS[: 2 + number % 3],
        number % 2,
      )
      for number in range(size)
    ]
    for split, size in sizes.items()
  }
  every = [question for some in questions.values() for question in some]
  passages = [
    Passage(f"p{number}", "Mines" if number % 3 == 0 else "", " ".join(_words(rng, 3 + number % 9)))
    for number in range(40)
  ]
  rationales = [
    {
      "question_id": question.id,
      "sample": sample,
      "rationale": f"The place mines seams of {METALS[sample % 4]}.",
      "teacher": "test",
      "kept": sample != 1,
      "reason": "test",
    }
    for question in every
    for sample in range(samples)
  ]
  for split, some in questions.items():
    questions_lib.write(path / "questions" / f"{split}.jsonl", some)
  passages_lib.write(passages, path / "knowledge" / "passages", shard_size=16)
  files.write_jsonl(path / "rationales.jsonl", rationales)
  kept = [row for row in rationales if row["kept"]]
  heads = [{"question_id": row["question_id"], "sample": row["sample"]} for row in kept]
  files.write_jsonl(
    path / "silver.jsonl",
    [{**head, "passages": _scored(rng.sample(passages, 4), rng)} for head in heads],
  )
  files.write_jsonl(
    path / "candidates.jsonl", [_candidates(head, passages, side, rng) for head in heads]
  )
  files.write_jsonl(
    path / "retrieved.jsonl",
    [{"question_id": q.id, "passages": _scored(rng.sample(passages, 4), rng)} for q in every],
  )
  prompts = Prompts()
  texts = [prompts.student_input(question) for question in every]
  texts += [prompts.passage_text(passage) for passage in passages]
  texts += [prompts.student_target(every[0], row["rationale"]) for row in kept] + ["Answer: ABCD"]
  vocabularies.train_sentencepiece(texts, path / "vocabulary/sentencepiece.model", 200)
  return Tiny(path, questions, passages, rationales)


def _words(rng: random.Random, count: int) -> list[str]:
  return ["".join(rng.choices("abdeiklmnorstu", k=rng.randint(2, 6))) for _ in range(count)]


def _scored(passages: list[Passage], rng: random.Random) -> list[dict]:
  scores = sorted((round(rng.uniform(0, 20), 3) for _ in passages), reverse=True)
  return [{"id": p.id, "score": score} for p, score in zip(passages, scores, strict=True)]


def _candidates(head: dict, passages: list[Passage], side: int, rng: random.Random) -> dict:
  """Lists of unequal length: between `side` and twice as many, unequal sides."""
  count = side + rng.randint(0, side)
  listed = _scored(rng.sample(passages, count), rng)
  sides = ["rationale"] * side + ["question"] * (count - side)
  rng.shuffle(sides)
  sides[0] = "rationale"
  return {
    **head,
    "passages": [row | {"from": side} for row, side in zip(listed, sides, strict=True)],
  }


def as_text(rows: list[dict]) -> str:
  """Rows as a file holds them."""
  return "".join(json.dumps(row) + "\n" for row in rows)
