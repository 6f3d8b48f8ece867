"""A dataset that the library has never seen, as a user would bring it: a folder and a module."""

import json
import pathlib
import random
import sys

from tasks import registry

# The README shows this module, word for word.
MODULE = '''\
"""The planets: the files beside this module, and a teacher that knows the explanations."""

import pathlib

from tasks import registry

HERE = pathlib.Path(__file__).parent


class Astronomer:
  name = "astronomer"

  def __call__(self, question, samples):
    """At most `samples` rationales; those that state the gold answer are kept."""
    return [f"{question.extra['explanation']}\\nAnswer: {'ABCD'[question.label]}"]


registry.register(
  "planets",
  questions=HERE,  # train.jsonl, test.jsonl and, if there is one, validation.jsonl
  passages=HERE / "passages.jsonl",
  teacher=lambda seed, source: Astronomer(),  # or HERE / "rationales.jsonl"
)
'''

_TEACHER = "lambda seed, source: Astronomer(),  # or "
_STEMS = {
  "metal": "Which metal would a miner dig up on {}?",
  "colour": "How does {} look from afar?",
}
_SENTENCES = {
  "metal": "The crust of {} is rich in {}.",
  "colour": "Clouds of a deep {} cover {}.",
}
_VALUES = {
  "metal": ("nickel", "copper", "cobalt", "silver", "tin"),
  "colour": ("orange", "violet", "green", "yellow", "white"),
}


def write(folder: pathlib.Path, rationales_of: tuple[str, ...] | None = None) -> pathlib.Path:
  """Writes the dataset's files and its module.

  Args:
    folder: is made.
    rationales_of: None for the module as it is shown; else the splits that a rationales.jsonl is
      written for, which is the module's teacher instead.

  Returns:
    the module.
  """
  rng = random.Random(5)
  folder.mkdir(parents=True)
  names = [a + b for a in ("zor", "vel", "mun", "tar", "qui") for b in ("bal", "dra", "nix", "pho")]
  names = [(first + end).capitalize() for first in names for end in ("", "on")]
  passages, rationales = [], []
  questions = {"train": [], "test": []}
  for number, planet in enumerate(names):
    for topic, values in _VALUES.items():
      options = rng.sample(values, 3 + number % 2)
      label = rng.randrange(len(options))
      sentence = _sentence(topic, planet, options[label])
      passages.append({"id": f"{planet}/{topic}", "title": planet, "text": sentence})
      split = "train" if number < 30 else "test"
      row = {
        "id": f"{split}-{planet}-{topic}",
        "question": _STEMS[topic].format(planet),
        "options": options,
        "label": label,
        "explanation": sentence,  # any other field is kept; here the teacher reads it
      }
      questions[split].append(row)
      if rationales_of and split in rationales_of:
        rationales.append({"question_id": row["id"], "rationale": sentence})
  module = MODULE
  if rationales_of is not None:
    write_rows(folder / "rationales.jsonl", rationales)
    module = module.replace(_TEACHER, "")
  for split, rows in questions.items():
    write_rows(folder / f"{split}.jsonl", rows)
  write_rows(folder / "passages.jsonl", passages)
  path = folder / "planets.py"
  path.write_text(module)
  return path


def _sentence(topic: str, planet: str, answer: str) -> str:
  return _SENTENCES[topic].format(*((planet, answer) if topic == "metal" else (answer, planet)))


def write_rows(path: pathlib.Path, rows: list[dict]) -> None:
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def forget() -> None:
  """Undoes what loading the module did: a process has one dataset of a name, tests have several."""
  if "planets" in registry.names():
    registry.unregister("planets")
  for name in [name for name in sys.modules if name.startswith("kard_dataset_planets")]:
    del sys.modules[name]
