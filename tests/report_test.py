"""The report: data stays text, nothing is fetched, what it holds is what was measured."""

import base64
import hashlib
import html.parser
import json
import pathlib
import re

import hypothesis
import hypothesis.strategies as st
import pytest

from kard_jax import ranking, report, scorecard
from kard_jax.core.files import InputError
from kard_jax.questions import Question
from kard_jax.report_data import Run
from kard_jax.retrieval.passages import Passage
from tests import score_runs
from tests.score_runs import HOSTILE


def render(texts=("plain",), **how):
  card, questions, predictions, passage = score_runs.of_texts(texts)
  return report.render([Run("one", card, questions, predictions, passage)], **how)


class Page(html.parser.HTMLParser):
  """What a browser makes of the page: its tags with attributes, and the text of the scripts.

  Attributes:
    blocks: id -> the value of a block of JSON.
    script: the one that runs.
  """

  def __init__(self, text):
    super().__init__()
    self.tags, self.titles, self.blocks, self.script = [], [], {}, None
    self._scripts = []
    self.feed(text)
    self.close()
    for attributes, body in self._scripts:
      if attributes.get("type") == "application/json":
        self.blocks[attributes["id"]] = json.loads(body)
      else:
        assert self.script is None
        self.script = body

  def handle_starttag(self, tag, attributes):
    self.tags.append((tag, attributes))
    if tag == "script":
      self._scripts.append((dict(attributes), ""))

  def handle_data(self, data):
    if self.tags and self.tags[-1][0] == "script":
      attributes, body = self._scripts[-1]
      self._scripts[-1] = attributes, body + data
    if self.tags and self.tags[-1][0] == "title":
      self.titles.append(data)

  def handle_endtag(self, tag):
    self.tags.append((f"/{tag}", []))


def test_hostile_text_changes_no_tag():
  plain, hostile = Page(render()), Page(render(HOSTILE))
  # The policy depends on the shipped script and style alone, so even attributes are equal.
  assert hostile.tags == plain.tags
  assert hostile.script == plain.script
  assert "".join(hostile.titles).strip() == f"{HOSTILE[0]}: KARD score card"


@pytest.mark.parametrize("texts", [("plain",), HOSTILE])
def test_the_blocks_hold_the_run(texts):
  card, questions, predictions, passage = score_runs.of_texts(texts)
  page = Page(report.render([Run("one", card, questions, predictions, passage)]))
  (shown,) = page.blocks["data"]["runs"]
  assert shown["title"] == card["title"]
  assert shown["about"] == card["questions"]
  assert shown["provenance"] == card["provenance"]
  assert shown["comparisons"] == card["comparisons"]
  names = page.blocks["passages-0"]
  assert len({name for name, *_ in names}) == len(names) == 31  # each stands once
  assert page.blocks["data"]["questions_a_part"] >= 30
  for m, (name, figures) in enumerate(card["methods"].items()):
    method = shown["methods"][m]
    assert method["name"] == name
    assert {k: method[k] for k in figures} == figures
    assert method["answers"] == [row["answer"] for row in predictions[name]]
    assert method["ranks"] == [1] * 30
    for row, some in zip(predictions[name], page.blocks["run-0-0"], strict=True):
      answer = some["answers"][m]
      assert answer["samples"] == [[s["answer"], s["rationale"], 1] for s in row["samples"]]
      assert [names[i][0] for i in answer["passages"]] == row["passages"]
      assert [names[i][0] for i, _ in answer["retrieved"]] == [p["id"] for p in row["retrieved"]]
      assert answer["retrieved"][0][1] == 1.235
      assert answer["before"] is None
  assert [row.pop("name") for row in shown["retrieval"]] == list(card["retrieval"])
  assert shown["retrieval"] == list(card["retrieval"].values())
  for q, head, some in zip(questions, shown["questions"], page.blocks["run-0-0"], strict=True):
    assert head == {"id": q.id, "question": q.question, "label": q.label}
    assert some["options"] == list(q.options)
    found = passage(q.gold[0])
    assert [names[i] for i in some["wanted"]] == [[found.id, found.title, found.text]]
  assert ["lost", "", ""] in names  # a passage that the knowledge base does not have


def test_a_question_has_the_rankings_of_its_list():
  _, questions, _, passage = score_runs.of_texts()
  row = {"question_id": questions[2].id, "passages": ["a", "b", questions[2].gold[0]]}
  flat = {"random": [0.0] * 3}
  rows = [
    row | {"reference": "rationale", "gains": [3, 2, 1], "scores": {"bm25": [1, 2, 3], **flat}},
    row
    | {
      "reference": "gold",
      "gains": [0, 0, 1],
      "scores": {"reranker": [0.25, 0.5, 0.75], "bm25": [3, 1, 2], **flat},
    },
  ]
  cards = ranking.summarise(rows[1:]) | ranking.summarise(rows[:1])
  card = scorecard.make(questions, {}, reranking=cards, title="lists")
  run = Run("lists", card, questions, {}, passage, reranking=rows)
  page = Page(report.render([run], ranked=2))
  shown, names = page.blocks["run-0-0"], [name for name, *_ in page.blocks["passages-0"]]
  assert [some["lists"] for at, some in enumerate(shown) if at != 2] == [[]] * 29
  lists = [
    (some["label"], [(names[i], score) for i, score in some["list"]]) for some in shown[2]["lists"]
  ]
  gold = questions[2].gold[0]
  assert lists == [  # of the list that has a gold passage; chance ranks nothing
    ("BM25 by question", [("a", 3.0), (gold, 2.0)]),
    ("Reranker", [(gold, 0.75), ("b", 0.5)]),
  ]


def test_parts_follow_one_another():
  big = score_runs.run(70, samples=1)
  page = Page(report.render([big]))
  parts = [f"run-0-{i}" for i in range(3)]
  assert set(page.blocks) == {"data", *parts, "passages-0"}
  options = [some["options"] for part in parts for some in page.blocks[part]]
  assert options == [list(q.options) for q in big.questions]
  head = page.blocks["data"]["runs"][0]
  reranker = next(row for row in head["methods"] if row["name"] == "kard_reranker")
  rows = big.predictions["kard_reranker"]
  assert reranker["ranks"] == [
    next((r for r, p in enumerate(row["retrieved"], 1) if p["id"] in q.gold), 0)
    for q, row in zip(big.questions, rows, strict=True)
  ]
  m = list(big.predictions).index("kard_reranker")
  names = page.blocks["passages-0"]
  before = page.blocks["run-0-1"][0]["answers"][m]["before"]
  assert [names[i][0] for i, _ in before] == [p["id"] for p in rows[32]["retrieved_before"]]


def test_without_gold_silver_passages_are_looked_for():
  card, questions, predictions, passage = score_runs.of_texts()
  questions = [Question(q.id, q.question, q.options, q.label) for q in questions]
  silver = [{"question_id": questions[0].id, "sample": 0, "passages": [{"id": "lost"}]}]
  page = Page(report.render([Run("one", card, questions, predictions, passage, silver)]))
  head = page.blocks["data"]["runs"][0]
  assert head["reference"] == "silver"
  assert head["methods"][0]["ranks"] == [2] + [None] * 29


json_values = st.recursive(
  st.none() | st.booleans() | st.integers() | st.text(st.characters()) | st.sampled_from(HOSTILE),
  lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
  max_leaves=8,
)


@hypothesis.given(json_values)
def test_script_json_round_trips_and_cannot_end_its_block(value):
  text = report.script_json(value)
  assert json.loads(text) == value
  assert not set(text) & set("<>&\u2028\u2029")
  text.encode()  # no half of a surrogate pair is left


def test_script_json_refuses_what_json_cannot_say():
  with pytest.raises(ValueError, match="not JSON compliant"):
    report.script_json({"x": float("nan")})


def test_scores_that_are_not_numbers_are_left_out():
  card, questions, predictions, passage = score_runs.of_texts()
  for score in (float("nan"), float("inf"), None, "high"):
    predictions["plain"][0]["retrieved"][0]["score"] = score
    page = Page(report.render([Run("one", card, questions, predictions, passage)]))
    assert page.blocks["run-0-0"][0]["answers"][1]["retrieved"][0][1] is None


def test_long_passages_are_cut_and_say_so():
  card, questions, predictions, _ = score_runs.of_texts()
  passage = lambda name: Passage(name, "", "x" * 50)
  some = [Run("one", card, questions, predictions, passage)]
  page = Page(report.render(some, excerpt=20, ranked=1))
  assert all(text == "x" * 20 + "…" for _, _, text in page.blocks["passages-0"])
  assert len(page.blocks["run-0-0"][0]["answers"][0]["retrieved"]) == 1
  page = Page(report.render(some, excerpt=50))
  assert page.blocks["passages-0"][0][2] == "x" * 50


def test_without_passages_ids_alone():
  def lost(name):
    raise InputError(f"no passage {name}")

  card, questions, predictions, _ = score_runs.of_texts()
  for passage in (None, lost):
    page = Page(report.render([Run("one", card, questions, predictions, passage)]))
    assert page.blocks["passages-0"][0] == ["p0 plain", "", ""]


def test_nothing_is_fetched():
  text = render()
  text = text.replace("http://www.w3.org/2000/svg", "")  # the name of a language, not an address
  assert not re.search(r"https?:|//\w|@import|url\(", text.replace("// ", ""))
  page = Page(text)
  for tag, attributes in page.tags:
    assert not {"src", "href", "srcset", "action", "data"} & {name for name, _ in attributes}, tag
    assert not any(name.startswith("on") for name, _ in attributes), tag
  assert "{{" not in text  # every field of the template was filled


def test_the_policy_lets_only_this_script_run():
  page = Page(render())
  meta = [dict(a) for tag, a in page.tags if tag == "meta" and ("http-equiv" in dict(a))]
  policy = meta[0]["content"]
  digest = base64.b64encode(hashlib.sha256(page.script.encode()).digest()).decode()
  assert f"script-src 'sha256-{digest}'" in policy
  assert "default-src 'none'" in policy
  assert "unsafe" not in policy


def test_the_script_makes_text_nodes_only():
  folder = pathlib.Path(report.__file__).parent
  script = "".join(path.read_text(encoding="utf-8") for path in folder.glob("report*.js"))
  assert "createElement" in script
  for name in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser"):
    assert name not in script
  for name in (" eval(", "Function(", "fetch(", "XMLHttpRequest", "import(", "javascript:"):
    assert name not in script
  assert "</" not in script  # cannot end its own block


def test_write_is_whole_or_not_at_all(tmp_path):
  card, questions, predictions, passage = score_runs.of_texts(HOSTILE)
  path = tmp_path / "report.html"
  report.write(path, card, questions, predictions, passage)
  before = path.read_bytes()
  assert before.decode() == report.render(
    [Run(card["title"], card, questions, predictions, passage)]
  )
  with pytest.raises(KeyError):
    report.write(path, card, questions, {}, passage)
  assert [path.read_bytes()] == [before]
  assert list(tmp_path.iterdir()) == [path]
