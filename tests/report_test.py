"""The report: data stays text, nothing is fetched, what it holds is what was measured."""

import base64
import hashlib
import html.parser
import json
import pathlib
import re
import shutil
import subprocess

import hypothesis
import hypothesis.strategies as st
import pytest

from kard_jax import report, scorecard
from kard_jax.core.files import InputError
from kard_jax.questions import Question
from kard_jax.retrieval.passages import Passage

HOSTILE = (
  "</script><script>window.hacked = 1</script>",
  "<!--<script>",
  "<img src=x onerror='window.hacked = 1'>",
  '"><svg onload=window.hacked=1>',
  "{{data}} {{policy}} \\g<0> \\u003c",
  "\u2028\u2029\x00\ud800 مرحبا \u202e",
  "__proto__",
)


def run(texts=("plain",)):
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


class Page(html.parser.HTMLParser):
  """What a browser makes of the page: its tags with attributes, and the text of the scripts."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.scripts, self.titles = [], [], []
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attributes):
    self.tags.append((tag, attributes))
    if tag == "script":
      self.scripts.append("")

  def handle_data(self, data):
    if self.tags and self.tags[-1][0] == "script":
      self.scripts[-1] += data
    if self.tags and self.tags[-1][0] == "title":
      self.titles.append(data)

  def handle_endtag(self, tag):
    self.tags.append((f"/{tag}", []))


def test_hostile_text_changes_no_tag():
  plain, hostile = Page(report.render(*run())), Page(report.render(*run(HOSTILE)))
  # The policy depends on the shipped script and style alone, so even attributes are equal.
  assert hostile.tags == plain.tags
  assert len(hostile.scripts) == 2
  assert hostile.scripts[1] == plain.scripts[1]
  assert "".join(hostile.titles).strip() == f"{HOSTILE[0]}: KARD score card"


@pytest.mark.parametrize("texts", [("plain",), HOSTILE])
def test_the_json_block_holds_the_run(texts):
  card, questions, predictions, passage = run(texts)
  data = json.loads(Page(report.render(card, questions, predictions, passage)).scripts[0])
  assert data["title"] == card["title"]
  assert data["about"] == card["questions"]
  assert data["provenance"] == card["provenance"]
  names = data["passages"]
  assert len({name for name, *_ in names}) == len(names) == 31  # each stands once
  for method, shown in zip(card["methods"], data["methods"], strict=True):
    assert shown["name"] == method
    assert {k: shown[k] for k in card["methods"][method]} == card["methods"][method]
    for row, answer in zip(predictions[method], shown["answers"], strict=True):
      assert answer["answer"] == row["answer"]
      assert answer["samples"] == [[s["answer"], s["rationale"]] for s in row["samples"]]
      assert [names[i][0] for i in answer["passages"]] == row["passages"]
      assert [names[i][0] for i, _ in answer["retrieved"]] == [p["id"] for p in row["retrieved"]]
      assert answer["retrieved"][0][1] == 1.235
  assert [row.pop("name") for row in data["retrieval"]] == list(card["retrieval"])
  assert data["retrieval"] == list(card["retrieval"].values())
  for q, shown in zip(questions, data["questions"], strict=True):
    assert (shown["id"], shown["question"], shown["label"]) == (q.id, q.question, q.label)
    assert shown["options"] == list(q.options)
    found = passage(q.gold[0])
    assert [names[i] for i in shown["gold"]] == [[found.id, found.title, found.text]]
  assert ["lost", "", ""] in names  # a passage that the knowledge base does not have


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
  card, questions, predictions, passage = run()
  for score in (float("nan"), float("inf"), None, "high"):
    predictions["plain"][0]["retrieved"][0]["score"] = score
    data = json.loads(Page(report.render(card, questions, predictions, passage)).scripts[0])
    assert data["methods"][1]["answers"][0]["retrieved"][0][1] is None


def test_long_passages_are_cut_and_say_so():
  card, questions, predictions, _ = run()
  passage = lambda name: Passage(name, "", "x" * 50)
  page = Page(report.render(card, questions, predictions, passage, excerpt=20, ranked=1))
  data = json.loads(page.scripts[0])
  assert all(text == "x" * 20 + "…" for _, _, text in data["passages"])
  assert len(data["methods"][0]["answers"][0]["retrieved"]) == 1
  page = Page(report.render(card, questions, predictions, passage, excerpt=50))
  assert json.loads(page.scripts[0])["passages"][0][2] == "x" * 50


def test_without_passages_ids_alone():
  def lost(name):
    raise InputError(f"no passage {name}")

  card, questions, predictions, _ = run()
  for passage in (None, lost):
    data = json.loads(Page(report.render(card, questions, predictions, passage)).scripts[0])
    assert data["passages"][0] == ["p0 plain", "", ""]


def test_nothing_is_fetched():
  text = report.render(*run())
  assert not re.search(r"https?:|//\w|@import|url\(", text.replace("// ", ""))
  page = Page(text)
  for tag, attributes in page.tags:
    assert not {"src", "href", "srcset", "action", "data"} & {name for name, _ in attributes}, tag
    assert not any(name.startswith("on") for name, _ in attributes), tag
  assert "{{" not in text  # every field of the template was filled


def test_the_policy_lets_only_this_script_run():
  page = Page(report.render(*run()))
  meta = [dict(a) for tag, a in page.tags if tag == "meta" and ("http-equiv" in dict(a))]
  policy = meta[0]["content"]
  digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
  assert f"script-src 'sha256-{digest}'" in policy
  assert "default-src 'none'" in policy
  assert "unsafe" not in policy


def test_the_script_makes_text_nodes_only():
  folder = pathlib.Path(report.__file__).parent
  script = "".join(path.read_text(encoding="utf-8") for path in folder.glob("report*.js"))
  assert "createElement" in script
  for name in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser"):
    assert name not in script
  for name in (" eval(", "Function(", "fetch(", "XMLHttpRequest", "import(", "setAttribute(name"):
    assert name not in script
  assert "</" not in script  # cannot end its own block


def test_write_is_whole_or_not_at_all(tmp_path):
  card, questions, predictions, passage = run(HOSTILE)
  path = tmp_path / "report.html"
  report.write(path, card, questions, predictions, passage)
  before = path.read_bytes()
  assert before.decode() == report.render(card, questions, predictions, passage)
  with pytest.raises(KeyError):
    report.write(path, card, questions, {}, passage)
  assert [path.read_bytes()] == [before]
  assert list(tmp_path.iterdir()) == [path]


DRIVER = """<iframe id=f src='report.html#q=QUESTION' width=1200 height=900></iframe>
<pre id=out></pre><script>
f.onload = () => setTimeout(() => {
  const page = f.contentDocument, at = (id) => page.getElementById(id);
  const fire = (e, type) => e.dispatchEvent(new f.contentWindow.Event(type, {bubbles: true}));
  const said = {};
  said.hacked = f.contentWindow.hacked === 1;
  said.open = page.querySelector("details[open] .stem").textContent;
  said.body = page.querySelector("details[open] .body").textContent;
  said.title = at("title").textContent;
  said.bars = page.querySelectorAll("#accuracy .whisker").length;
  said.found = [at("found").value];
  const select = page.querySelector("select");
  select.value = "unparsed"; fire(select, "change");
  said.found.push(at("found").value);
  at("clear").click();
  at("next").click();
  said.found.push(at("found").value);
  said.elements = [...new Set([...page.querySelectorAll("*")].map((e) => e.localName))].sort();
  out.textContent = JSON.stringify(said).replaceAll("<", "\\\\u003c");
}, 50);
</script>"""


def test_in_a_browser(tmp_path):
  chromium = shutil.which("chromium") or shutil.which("chromium-browser")
  if chromium is None:
    pytest.skip("chromium is not installed: the page is only parsed, not run")
  said = {}
  for name, texts in (("plain", ("plain",)), ("hostile", HOSTILE)):
    folder = tmp_path / name
    card, questions, predictions, passage = run(texts)
    report.write(folder / "report.html", card, questions, predictions, passage)
    number = next(i for i, q in enumerate(questions) if i > 20 and q.question == texts[0])
    link = "".join(f"%{byte:02x}" for byte in questions[number].id.encode())
    (folder / "driver.html").write_text(DRIVER.replace("QUESTION", link))
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"]
    command += ["--no-first-run", "--disable-background-networking", "--disable-component-update"]
    command += ["--disable-sync", "--allow-file-access-from-files", "--virtual-time-budget=5000"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    ran = subprocess.run(
      [*command, (folder / "driver.html").as_uri()], capture_output=True, text=True, timeout=120
    )
    if ran.returncode:
      pytest.skip(f"chromium does not start here: {ran.stderr[-200:]}")
    found = re.search(r'<pre id="out">(.+?)</pre>', ran.stdout, re.DOTALL)
    assert found, f"the page did not run: {ran.stdout[:500]}"
    said[name] = json.loads(html.unescape(found[1]))
    assert said[name]["open"] == texts[0]
    assert said[name]["title"] == texts[0]
    assert texts[0] in said[name]["body"]
    assert not said[name]["hacked"]
    assert said[name]["bars"] == 2
    assert said[name]["found"] == [
      "30 questions, 1 to 25 shown",
      "1 of 30 questions matching",
      "30 questions, 26 to 30 shown",
    ]
  assert said["hostile"]["elements"] == said["plain"]["elements"]
