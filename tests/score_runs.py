"""Runs to be scored, by code: nine methods on a small world, as the answer stage writes them.

Places have facts; a method that reads the right passage mostly answers right, one that does not
guesses. So figures differ between methods as in a real run, and a seed decides everything.
"""

import random
from typing import NamedTuple

from kard_jax import answer as answer_lib
from kard_jax import scorecard
from kard_jax.questions import Question
from kard_jax.report_data import Run
from kard_jax.retrieval.passages import Passage

TOPICS = {
  "metal": ("nickel", "copper", "cobalt", "silver", "tin", "zinc"),
  "colour": ("orange", "violet", "green", "yellow", "white", "crimson"),
  "crop": ("barley", "cassava", "lentils", "millet", "taro", "sorghum"),
  "animal": ("herons", "otters", "ibexes", "geckos", "bustards", "tapirs"),
}
STEMS = {
  "metal": "A traveller opens a mine on {}. Which metal will she most likely dig up there?",
  "colour": "Seen from a boat at noon, what colour is the coast of {}?",
  "crop": "A farmer moves to {}. What will he sow in spring, as all his neighbours do?",
  "animal": "Which animals cross the square of {} at dusk, so that nobody dares to drive?",
}
FACT = "The {topic} for which {place} is known far beyond its shores is {value}."
FILLER = (
  "Records of {place} go back four centuries, when the first harbour was built.",
  "Its council meets twice a year, and the minutes are read aloud in the market hall.",
  "Visitors praise the lighthouse of {place}, which was rebuilt after the great storm.",
  "Rain falls from October to March; the summers are dry and the wells run low.",
)
# How often each method's samples are right where the wanted passage is read, and where it is not.
SKILL = {
  "fewshot": (0.27, 0.27),
  "fewshot_cot": (0.3, 0.3),
  "ft": (0.34, 0.34),
  "kaft": (0.62, 0.3),
  "rd": (0.37, 0.37),
  "dapt_rd": (0.41, 0.41),
  "kard_bm25": (0.86, 0.31),
  "kard_reranker": (0.86, 0.31),
  "kard_silver": (0.88, 0.31),
}
UNPARSED = {"fewshot": 0.5, "fewshot_cot": 0.35}
BY = {"kaft": "bm25", "kard_bm25": "bm25", "kard_reranker": "reranker", "kard_silver": "silver"}


class World(NamedTuple):
  """Questions, and the passages by id."""

  questions: list[Question]
  passages: dict[str, Passage]


def world(n: int, seed: int = 0) -> World:
  """So many questions, four a place, with a gold passage each."""
  rng = random.Random(seed)
  questions, passages = [], {}
  for number in range(n):
    topic = list(TOPICS)[number % 4]
    place = f"{['Zor', 'Vel', 'Mun', 'Tar', 'Qui'][number // 4 % 5]}bal {number // 20 + 1}"
    options = rng.sample(TOPICS[topic], 4)
    label = rng.randrange(4)
    name = f"{place}/{topic}"
    fact = FACT.format(topic=topic, place=place, value=options[label])
    filler = [line.format(place=place) for line in rng.sample(FILLER, 3)]
    passages[name] = Passage(name, place, " ".join([filler[0], fact, *filler[1:]]))
    questions.append(
      Question(f"test-{number}", STEMS[topic].format(place), tuple(options), label, gold=(name,))
    )
  return World(questions, passages)


def predictions(
  some: World,
  methods=tuple(SKILL),
  *,
  samples: int = 5,
  sentences: int = 2,
  seed: int = 0,
  gain: float = 0.0,
) -> dict:
  """Rows of each method, one a question.

  Args:
    some: what is asked.
    methods: of `SKILL`.
    samples: of each question.
    sentences: of each rationale.
    seed: decides everything.
    gain: added to how often samples are right.
  """
  made = {}
  for method in methods:
    rng = random.Random(f"{method} {seed}")
    made[method] = [_row(some, q, method, rng, samples, sentences, gain) for q in some.questions]
  return made


def _row(some, q, method, rng, samples, sentences, gain):
  names = list(some.passages)
  start = names.index(q.gold[0])
  others = [names[(start + step) % len(names)] for step in range(1, 13)]
  lists = {"silver": _ranking(q, others, 1, rng)}
  ranks = ([1, 2, 3, 5, 8, None], [3, 2, 2, 2, 2, 3])
  lists["bm25"] = _ranking(q, others, random.Random(q.id).choices(*ranks)[0], rng)
  lists["reranker"] = _ranking(q, others, rng.choices([1, 2, None], [9, 2, 1])[0], rng)
  found = lists.get(BY.get(method, ""), [])
  read = bool(found) and found[0]["id"] in q.gold
  right = min(0.97, SKILL[method][0 if read else 1] + gain)
  hard = random.Random(f"{q.id} hard").uniform(-0.25, 0.2)  # questions differ, so samples agree
  favourite = rng.randrange(len(q.options))
  written = []
  for _ in range(samples):
    answer = q.label if rng.random() < right + hard else favourite
    parsed = None if rng.random() < UNPARSED.get(method, 0.02) else answer
    written.append(
      {
        "rationale": _rationale(q, answer, sentences, rng),
        "answer": parsed,
        "log_prob": -round(rng.uniform(2, 30), 2),
        "tokens": sentences * 16 + rng.randrange(8),
      }
    )
  row = {
    "question_id": q.id,
    "passages": [p["id"] for p in found[:1]],
    "retrieved": found,
    "samples": written,
    "answer": answer_lib.vote([sample["answer"] for sample in written]),
    "label": q.label,
    "seconds": round(rng.uniform(0.01, 0.05), 4),
    "prompt_tokens": 60 + 90 * bool(found),
    "cut_tokens": rng.choice([0, 0, 0, 21]) if found else 0,
  }
  if method == "kard_reranker":
    row["retrieved_before"] = lists["bm25"]
  return row


def _ranking(q, others, rank, rng):
  ids = others[:10]
  if rank is not None:
    ids = [*ids[: rank - 1], q.gold[0], *ids[rank - 1 :]][:10]
  score = 20 + rng.random()
  return [{"id": name, "score": round(score - at * 1.3, 4)} for at, name in enumerate(ids)]


def _rationale(q, answer, sentences, rng):
  value = q.options[answer]
  lines = [f"The passage speaks of {value}.", f"What is asked for is known there as {value}."]
  while len(lines) < sentences:
    first, second = rng.sample(q.options, 2)
    lines.append(f"One may think of {first} or of {second}, but nothing is said of the former.")
  return " ".join(lines[:sentences])


def run(n: int = 40, name: str = "A small world", sweep=None, **how) -> Run:
  """A run as `launch/score.py` reads it."""
  some = world(n)
  silver = [
    {"question_id": q.id, "sample": 0, "passages": [{"id": q.gold[0], "score": 9.0}]}
    for q in some.questions
  ]
  passage = some.passages.__getitem__
  return scored(Run(name, {}, some.questions, predictions(some, **how), passage, silver), sweep)


def scored(run: Run, sweep=None) -> Run:
  """The run with its score card made anew."""
  card = scorecard.make(
    run.questions,
    run.predictions,
    silver=run.silver,
    title=run.name,
    seed=0,
    sweep=sweep,
    inputs={"questions/test.jsonl": "0" * 64},
  )
  return run._replace(card=card)


HOSTILE = (
  "</script><script>window.hacked = 1</script>",
  "<!--<script>",
  "<img src=x onerror='window.hacked = 1'>",
  '"><svg onload=window.hacked=1>',
  "{{data}} {{policy}} \\g<0> \\u003c",
  "\u2028\u2029\x00\ud800 مرحبا \u202e",
  "__proto__",
)


def of_texts(texts=("plain",)):
  """A card, questions, predictions and passages in which every text is one of `texts`."""
  at = lambda i: texts[i % len(texts)]
  questions = [
    Question(f"{i} {at(i)}", at(i), (at(i), "b", at(i + 1)), i % 3, gold=(f"p{i} {at(i)}",))
    for i in range(30)
  ]
  passages = {q.gold[0]: Passage(q.gold[0], at(i + 1), at(i)) for i, q in enumerate(questions)}
  predictions = {
    method: [
      {
        "question_id": q.id,
        "passages": [q.gold[0]],
        "retrieved": [{"id": q.gold[0], "score": 1.23456789}, {"id": "lost", "score": 0.5}],
        "samples": [{"rationale": at(i), "answer": 1}, {"rationale": at(i), "answer": None}],
        "answer": None if i == 4 else 1,
        "label": q.label,
      }
      for i, q in enumerate(questions)
    ]
    for method in ("kard_bm25", at(0))
  }
  about = {at(0): (at(1), at(2))}
  card = scorecard.make(
    questions, predictions, about=about, title=at(0), seed=0, inputs={at(0): at(1)}
  )
  return card, questions, predictions, passages.__getitem__
