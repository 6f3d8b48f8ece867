"""Writes lucene_words.jsonl: short texts made to be difficult, and Lucene's own words of each.

Not part of the tests: it needs Java and Pyserini, as `write_lucene.py` tells.

  /tmp/lucene/bin/python tests/golden/write_lucene_words.py

The texts are strings of characters of a few classes (`word_break.txt`), drawn at random.
"""

import json
import pathlib
import random

from pyserini.analysis import Analyzer
from pyserini.pyclass import autoclass

HERE = pathlib.Path(__file__).resolve().parent
TABLE = HERE.parents[1] / "kard_jax" / "retrieval" / "word_break.txt"
TEXTS = 1200
# Classes that have to do with each other.
FAMILIES = [
  "ALetter Numeric ExtendNumLet Single_Quote MidLetter MidNum MidNumLet Extend",
  "Hebrew_Letter Single_Quote Double_Quote ALetter ExtendNumLet MidNumLet",
  "Katakana ExtendNumLet ALetter Numeric Alone Extend",
  "Southeast_Asian Southeast_Asian_Extend ALetter ZWJ",
  "Pictograph ZWJ Emoji_Style Modifier Pictograph_Letter",
  "Pictograph ZWJ Emoji_Style Modifier Tag Tag_End Text_Style Extend",
  "Keycap_Base Keycap Emoji_Style Text_Style Extend Numeric",
  "Regional_Indicator Extend ALetter",
]


def main() -> None:
  points: dict[str, list[int]] = {}
  for line in TABLE.read_text(encoding="ascii").splitlines():
    if not line.startswith("#"):
      span, name = line.split()
      first, last = (int(point, 16) for point in span.split(".."))
      points.setdefault(name, []).extend(range(first, last + 1))
  random_ = random.Random(12)
  custom = autoclass("org.apache.lucene.analysis.custom.CustomAnalyzer")
  no_settings = autoclass("java.util.HashMap")()
  analyzer = Analyzer(custom.builder().withTokenizer("standard", no_settings).build())
  with (HERE / "lucene_words.jsonl").open("w", encoding="ascii") as out:
    for number in range(TEXTS):
      names = FAMILIES[number % len(FAMILIES)].split()
      if number % 3 == 0:
        names = random_.sample(sorted(points), 5)
      drawn = random_.choices(names, k=random_.randint(2, 9))
      # Mostly the class's first characters, so that texts repeat themselves.
      pools = [points[name][: random_.choice([1, 1, 3, None])] for name in drawn]
      text = "".join(chr(random_.choice(pool)) for pool in pools)
      words = analyzer.analyze(text)
      out.write(json.dumps({"text": text, "words": words}) + "\n")


if __name__ == "__main__":
  main()
