"""Two, three, five and eight options, and Chinese text, through every stage of the quickstart."""

import json
import random

import pytest

from kard_jax.core import files
from kard_jax.retrieval import bm25
from kard_jax.retrieval import index as index_lib
from kard_jax.retrieval.passages import Passage, Passages
from kard_jax.retrieval.passages import write as write_passages
from tasks import registry
from tests import own_dataset_test as chain
from tests import planets

METALS = ("tin", "iron", "zinc", "lead", "nickel", "cobalt", "copper", "silver")
CHINESE_METALS = ("\u9521", "\u94c1", "\u950c", "\u94c5", "\u954d", "\u94b4", "\u94dc", "\u94f6")
CHINESE = {
  "stem": "{}\u661f\u7684\u77ff\u77f3\u662f\u4ec0\u4e48\uff1f",
  "fact": "{}\u661f\u7684\u5730\u58f3\u5bcc\u542b{}\u3002",
}
ENGLISH = {"stem": "Which metal is dug up on {}?", "fact": "The crust of {} is rich in {}."}
CHINESE_NAMES = "\u7532\u4e59\u4e19\u4e01\u620a\u5df1\u5e9a\u8f9b\u58ec\u7678"

FIRSTS = ("Zor", "Vel", "Mun", "Tar", "Qui")
ENDS = ("bal", "dra", "nix", "pho", "rin", "sek", "tul", "vor")


def write(folder, count, *, chinese=False):
  """A dataset in the README's form whose questions all have `count` options."""
  rng = random.Random(count)
  folder.mkdir()
  words, metals = (CHINESE, CHINESE_METALS) if chinese else (ENGLISH, METALS)
  firsts, ends = (CHINESE_NAMES, CHINESE_NAMES[:4]) if chinese else (FIRSTS, ENDS)
  names = [a + b for a in firsts for b in ends]
  rows = {"train": [], "test": []}
  passages = []
  for number, name in enumerate(names):
    options = rng.sample(metals, count)
    label = number % count
    fact = words["fact"].format(name, options[label])
    passages.append({"id": f"p{number}", "title": "", "text": fact})
    split = "train" if number < 30 else "test"
    rows[split].append(
      {
        "id": f"{split}-{number}",
        "question": words["stem"].format(name),
        "options": options,
        "label": label,
        "explanation": fact,
        "gold": [f"p{number}"],
      }
    )
  for split, some in rows.items():
    planets.write_rows(folder / f"{split}.jsonl", some)
  planets.write_rows(folder / "passages.jsonl", passages)
  (folder / "planets.py").write_text(planets.MODULE.replace("'ABCD'", "'ABCDEFGH'"))
  return folder / "planets.py"


@pytest.fixture(autouse=True)
def _forget_planets():
  yield
  planets.forget()


@pytest.mark.slow
@pytest.mark.parametrize(
  ("count", "chinese"), [(2, False), (3, False), (5, False), (8, False), (4, True)]
)
def test_every_stage(tmp_path, monkeypatch, count, chinese):
  module = write(tmp_path / "planets", count, chinese=chinese)
  lengths = ("--gin.VOCAB_SIZE=320", "--gin.INPUT_LENGTH=160", "--gin.TARGET_LENGTH=64")
  argv = chain.recipe(module, tmp_path / "work", 2, *chain.SMALL, *lengths)
  assert len(chain.in_this_process(monkeypatch, argv)) == 12
  card = chain.card_of(tmp_path / "work")
  assert set(card["methods"]) == chain.METHODS
  assert card["questions"]["options"] == [count]
  assert card["retrieval"]["bm25"]["reference"] == "gold"
  kept = [row for _, row in files.read_jsonl(tmp_path / "work/rationales.jsonl")]
  assert len(kept) >= 40
  assert all(row["kept"] for row in kept)
  silver = [row for _, row in files.read_jsonl(tmp_path / "work/silver.jsonl")]
  right = [row["passages"][0]["id"] == f"p{row['question_id'].split('-')[1]}" for row in silver]
  assert sum(right) > 0.9 * len(right)  # the rationale repeats its passage, in any script
  counts = json.loads((tmp_path / "work/prepared.json").read_text())
  assert counts["options"] == {str(count): 40}


def test_chinese_text_is_found_and_spelt(tmp_path):
  module = write(tmp_path / "planets", 4, chinese=True)
  dataset = registry.load("planets", module=str(module))
  rows = [Passage(p.id, p.title, p.text) for p in dataset.read_passages()]
  write_passages(rows, tmp_path / "passages")
  index = index_lib.build(Passages(tmp_path / "passages"), tmp_path / "bm25")
  questions = dataset.read_questions()["test"]
  hits = bm25.top_k(index, [q.extra["explanation"] for q in questions], 1)
  stored = Passages(tmp_path / "passages")
  assert [stored.ids[row[0]] for row in hits.ids_BxK] == [q.gold[0] for q in questions]
