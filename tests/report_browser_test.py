"""The report in headless Chromium: it works, is silent, asks for nothing, and text stays text."""

import pytest

from kard_jax import report
from kard_jax.report_data import Run
from tests import browser, score_runs
from tests.score_runs import HOSTILE

PHONE, DESKTOP = 375, 1280
FOUND = "document.getElementById('found').value"
# Waits for what is drawn at the next frame, and for the search field's pause.
SETTLED = "new Promise((done) => setTimeout(() => requestAnimationFrame(() => done()), 250))"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
  with browser.opened(tmp_path_factory.mktemp("profile")) as opened:
    yield opened


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  """A run of nine methods, and where its report lies."""
  made = score_runs.run(60)
  path = tmp_path_factory.mktemp("world") / "report.html"
  report.write_runs(path, [made])
  return made, path


def choose(page, **values):
  """Sets controls by id (with dashes) and tells the page."""
  for name, value in values.items():
    page.run(
      f"(() => {{ const c = document.getElementById({name.replace('_', '-')!r});"
      f" c.value = {value!r}; if (c.value !== {value!r}) throw Error('no such choice');"
      " c.dispatchEvent(new Event(c.type === 'search' ? 'input' : 'change', {bubbles: true})); })()"
    )
  page.run(SETTLED)
  return page.run(FOUND)


def check_silence(page, path):
  assert page.console == []
  assert page.requests == [path.as_uri()]


def outcome(row):
  return "unparsed" if row["answer"] is None else "right" if row["answer"] == row["label"] else "no"


def test_filters_find_what_they_say(page, world):
  made, path = world
  page.size(DESKTOP)
  page.open(path)
  assert page.run(FOUND) == "60 questions, 1 to 25 shown"

  def matching(n):
    return f"{n} of 60 questions matching" + (", 1 to 25 shown" if n > 25 else "")

  rows = made.predictions
  n = sum(row["answer"] == row["label"] for row in rows["kard_bm25"])
  assert choose(page, outcome_method="kard_bm25", outcome="right") == matching(n)
  n = sum(row["answer"] is None for row in rows["fewshot"])
  assert n
  assert choose(page, outcome_method="fewshot", outcome="unparsed") == matching(n)
  page.run("document.getElementById('clear').click()")
  assert page.run(FOUND).startswith("60 questions")
  pairs = list(zip(rows["kard_reranker"], rows["rd"], strict=True))
  differ = [(outcome(a) == "right") != (outcome(b) == "right") for a, b in pairs]
  asked = choose(page, pair_a="kard_reranker", pair_b="rd", pair_how="differ")
  assert asked == matching(sum(differ))
  better = sum(outcome(a) == "right" and outcome(b) != "right" for a, b in pairs)
  assert choose(page, pair_how="right, unlike") == matching(better)
  page.run("document.getElementById('clear').click()")
  read = [
    row["passages"] == list(q.gold) for row, q in zip(rows["kaft"], made.questions, strict=True)
  ]
  assert choose(page, passage_method="kaft", passage_how="read") == matching(sum(read))
  found = [
    q.gold[0] in [p["id"] for p in row["retrieved"]]
    for row, q in zip(rows["kaft"], made.questions, strict=True)
  ]
  assert choose(page, passage_how="found, not read") == matching(sum(found) - sum(read))
  assert choose(page, passage_how="missed") == matching(60 - sum(found))
  page.run("document.getElementById('clear').click()")
  assert choose(page, search="test-41") == "1 of 60 questions matching"
  assert choose(page, search="no such words") == "0 of 60 questions matching"
  assert "No question matches" in page.run("document.getElementById('list').textContent")
  check_silence(page, path)


def test_a_question_shows_rankings_votes_and_rationales(page, world):
  made, path = world
  number = next(
    i
    for i, row in enumerate(made.predictions["kard_reranker"])
    if row["retrieved"][0]["id"] in made.questions[i].gold
    and row["retrieved_before"][2]["id"] in made.questions[i].gold
  )
  page.size(DESKTOP)
  page.open(path, f"#q={made.questions[number].id}")
  text = page.run("document.querySelector('details[open] .body').innerText")
  assert page.run("document.querySelector('details[open] .number').textContent") == str(number + 1)
  assert "Before reranking" in text
  assert "Gold passage at rank 3" in text
  assert "↑ from 3" in text
  for method in ("kard_reranker", "fewshot"):
    assert made.predictions[method][number]["samples"][0]["rationale"] in text
  sides = page.run(
    "[...document.querySelectorAll('details[open] .ranking')].map((e) => e.offsetTop)"
  )
  assert len(sides) >= 2
  assert sides[0] == sides[1]  # side by side
  page.run("document.querySelector('details[open] .more').click()")
  assert page.run("document.querySelectorAll('details[open] .ranking li').length") >= 13
  votes = page.run("document.querySelectorAll('details[open] .method .votes').length")
  assert votes == len(made.predictions)
  check_silence(page, path)


def test_a_pair_of_methods_leads_to_its_questions(page, world):
  made, path = world
  page.size(DESKTOP)
  page.open(path)
  cells = page.run("document.querySelectorAll('#pairs button.cell').length")
  assert cells == 9 * 8
  pair = next(
    row for row in made.card["comparisons"] if (row["a"], row["b"]) == ("fewshot", "kard_silver")
  )
  page.run(
    "[...document.querySelectorAll('#pairs tbody tr')].at(-1).querySelector('button').click()"
  )
  text = page.run("document.getElementById('pair').textContent")
  assert f"{100 * pair['difference']:+.1f} points" in text
  assert f"only the second on {pair['only_a']}," in text
  page.run("document.querySelector('#pair button').click()")
  n = pair["only_a"] + pair["only_b"]
  assert page.run(FOUND).startswith(f"{n} of 60 questions matching")
  check_silence(page, path)


def test_every_part_is_drawn(page, world):
  made, path = world
  page.size(DESKTOP)
  page.open(path)
  page.run(SETTLED)
  count = lambda selector: page.run(f"document.querySelectorAll({selector!r}).length")
  assert count("#accuracy .whisker") == 9
  assert count("#figures tbody tr") == 9
  assert count("#votes svg circle") == sum(
    len(row["calibration"]["bins"]) for row in made.card["methods"].values()
  )
  assert count("#retrieval .hit-row") == 1 + len(made.card["retrieval"])
  assert count("#retrieval .pale") == 3  # the reranker's three, before it
  assert "not recorded" not in page.run("document.body.innerText")


def test_what_was_not_recorded_says_so(page, tmp_path):
  made = score_runs.run(8, samples=1, methods=("rd", "kard_reranker"))
  for row in [row for rows in made.predictions.values() for row in rows]:
    for name in ("seconds", "prompt_tokens", "cut_tokens", "retrieved_before"):
      row.pop(name, None)
  made = score_runs.scored(made)
  report.write_runs(tmp_path / "report.html", [made])
  page.open(tmp_path / "report.html")
  text = page.run("document.getElementById('figures').innerText")
  assert text.count("not recorded") == 2 * 3
  assert "before reranking: not recorded" in page.run(
    "document.getElementById('retrieval').innerText"
  )
  assert "there is no vote" in page.run("document.getElementById('votes').innerText")
  check_silence(page, tmp_path / "report.html")


@pytest.mark.parametrize(
  "texts", [("plain " * 30,), HOSTILE, ("x" * 400,)], ids=["plain", "hostile", "long"]
)
def test_on_a_phone_the_page_does_not_scroll_sideways(page, tmp_path, texts):
  card, questions, predictions, passage = score_runs.of_texts(texts)
  report.write(tmp_path / "report.html", card, questions, predictions, passage)
  page.size(PHONE, 800, phone=True)
  page.open(tmp_path / "report.html")
  page.run("for (const s of [...document.querySelectorAll('#list summary')].slice(0, 8)) s.click()")
  page.run(SETTLED)
  assert page.run("document.querySelectorAll('.body').length") == 8
  assert page.run("document.documentElement.scrollWidth") == PHONE
  check_silence(page, tmp_path / "report.html")


def test_on_a_phone_nine_methods_fit(page, world):
  _, path = world
  page.size(PHONE, 800, phone=True)
  page.open(path)
  page.run("document.querySelector('#list summary').click()")
  page.run(SETTLED)
  assert page.run("document.documentElement.scrollWidth") == PHONE


def test_hostile_text_stays_text(page, tmp_path):
  elements = {}
  for name, texts in (("plain", ("plain",)), ("hostile", HOSTILE)):
    card, questions, predictions, passage = score_runs.of_texts(texts)
    path = tmp_path / f"{name}.html"
    report.write_runs(path, [Run(texts[0], card, questions, predictions, passage)])
    number = next(i for i, q in enumerate(questions) if i > 20 and q.question == texts[0])
    link = "".join(f"%{byte:02x}" for byte in questions[number].id.encode())
    page.size(DESKTOP)
    page.open(path, f"#q={link}")
    for button in ("#pairs button", "details[open] .more"):
      page.run(f"document.querySelector({button!r})?.click()")
    page.run(SETTLED)
    assert page.run("document.querySelector('details[open] .stem').textContent") == texts[0]
    assert texts[0] in page.run("document.querySelector('details[open] .body').textContent")
    assert page.run("document.getElementById('title').textContent") == texts[0]
    assert page.run("window.hacked") is None
    assert page.console == []
    assert len(page.requests) == 1
    elements[name] = page.run(
      "[...new Set([...document.querySelectorAll('*')].map((e) => e.localName))].sort()"
    )
  assert elements["hostile"] == elements["plain"]


def test_the_policy_stops_what_would_run_or_fetch(page, tmp_path):
  """The browser test itself would see a script or a request that slipped through."""
  made = score_runs.run(4, methods=("rd",))
  text = report.render([made])
  evil = "<script>window.hacked = 1</script><img src='https://example.invalid/x.png'>"
  (tmp_path / "evil.html").write_text(text.replace("</main>", f"{evil}</main>"))
  page.open(tmp_path / "evil.html")
  assert page.run("window.hacked") is None
  assert len(page.console) == 2
  assert all("Content Security Policy" in line for line in page.console)
  open_policy = text.replace('http-equiv="Content-Security-Policy"', 'name="none"')
  (tmp_path / "open.html").write_text(open_policy.replace("</main>", f"{evil}</main>"))
  page.open(tmp_path / "open.html")
  assert page.run("window.hacked") == 1
  assert "https://example.invalid/x.png" in page.requests
