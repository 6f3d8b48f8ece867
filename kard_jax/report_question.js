// What is inside one question: its options, rankings side by side, and what each method wrote.

const SHOWN = 3; // passages of a ranking with their text; the others when asked for

function passageAt(position) {
  const size = data.passages_a_part;
  return block(`passages-${Math.floor(position / size)}`)[position % size];
}

function textsOf(r, index) {
  const size = data.questions_a_part;
  return block(`run-${r}-${Math.floor(index / size)}`)[index % size];
}

function drawBody(index) {
  const run = shownRun();
  const question = run.questions[index];
  const texts = textsOf(current, index);
  const wanted = new Set(texts.wanted);
  const options = texts.options.map((option, position) => {
    const correct = position === question.label;
    return node(
      "li",
      correct ? "option correct" : "option",
      node("span", "letter", letter(position)),
      text("span", "", option),
      correct ? node("span", "tag right", "answer") : null,
    );
  });
  const link = node("a", "", "link");
  link.href = `#q=${encodeURIComponent(question.id.toWellFormed?.() ?? question.id)}`;
  const id = node("p", "id", "Question ", text("span", "", question.id), " · ", link);
  const rankings = rankingsOf(run, texts);
  const seen = new Set(rankings.flatMap((ranking) => ranking.list.map(([position]) => position)));
  const rest = texts.wanted.filter((position) => !seen.has(position));
  const panels = run.methods.map((method, m) =>
    drawMethod(method, index, question, texts.answers[m], wanted),
  );
  return node(
    "div",
    "body",
    node("ul", "options", ...options),
    id,
    data.runs.length > 1 ? drawElsewhere(question) : null,
    rankings.length
      ? node(
          "div",
          "rankings",
          ...rankings.map((ranking) => drawRanking(ranking, rankings[0], wanted)),
        )
      : null,
    rest.length
      ? node(
          "div",
          "missed",
          node("h4", "", `${wantedName(run)} passage that no list has`),
          ...rest.map((position) => drawPassage(position, wanted)),
        )
      : null,
    node("div", "methods", ...panels),
  );
}

const wantedName = (run) => (run.reference === "silver" ? "Silver" : "Gold");

// The distinct rankings of a question: what BM25 found, what a reranker made of it, and others.
function rankingsOf(run, texts) {
  const known = new Map(run.retrieval.map((row) => [row.source, row.label]));
  const found = new Map();
  const add = (list, title, method) => {
    const key = JSON.stringify(list.map(([position]) => position));
    if (!list.length) return;
    if (!found.has(key)) found.set(key, { list, titles: new Set(), methods: [] });
    if (title) found.get(key).titles.add(title);
    if (method) found.get(key).methods.push(method);
  };
  for (const { label, list } of texts.lists) add(list, label, "");
  for (const answer of texts.answers) if (answer.before) add(answer.before, "Before reranking", "");
  run.methods.forEach((method, m) =>
    add(texts.answers[m].retrieved, known.get(method.name), method.label),
  );
  return [...found.values()];
}

function drawRanking(ranking, first, wanted) {
  const ranks = new Map(first.list.map(([position], i) => [position, i + 1]));
  const rank = ranking.list.findIndex(([position]) => wanted.has(position)) + 1;
  const name = wantedName(shownRun());
  const where = rank ? `${name} passage at rank ${rank}` : `${name} passage not among them`;
  const item = ([position, score], i) => {
    const drawn = drawPassage(position, wanted, score, i + 1);
    if (ranking !== first) {
      const was = ranks.get(position);
      const moved = was === undefined ? "new" : was === i + 1 ? "=" : was > i + 1 ? `↑ from ${was}` : `↓ from ${was}`;
      drawn.querySelector(".head").append(node("span", "moved", moved));
    }
    return drawn;
  };
  const list = node("ol", "", ...ranking.list.slice(0, SHOWN).map(item));
  const panel = node(
    "section",
    "ranking",
    node("h3", "", text("span", "", [...ranking.titles].join(" = ") || ranking.methods[0])),
    wanted.size ? node("p", "about", where) : null,
    ranking.methods.length
      ? node("p", "about", "For ", text("span", "", ranking.methods.join("; ")))
      : null,
    list,
  );
  if (ranking.list.length > SHOWN) {
    const more = node("button", "more", `All ${ranking.list.length}`);
    more.type = "button";
    more.addEventListener("click", () => {
      list.append(...ranking.list.slice(SHOWN).map((entry, i) => item(entry, i + SHOWN)));
      more.remove();
    });
    panel.append(more);
  }
  return panel;
}

// How the other runs' methods did on the same question.
function drawElsewhere(question) {
  const rows = [];
  for (const run of data.runs) {
    const index = indexOf(run).get(question.id);
    if (index === undefined || run === shownRun()) continue;
    const pills = run.methods.map((method) => drawPill(run, method, index));
    rows.push(node("li", "", text("span", "about", run.name), node("span", "pills", ...pills)));
  }
  return rows.length
    ? node("div", "elsewhere", node("h4", "", "In the other runs"), node("ul", "", ...rows))
    : null;
}

const indices = new Map();
function indexOf(run) {
  if (!indices.has(run))
    indices.set(run, new Map(run.questions.map((question, index) => [question.id, index])));
  return indices.get(run);
}

function drawPill(run, method, index) {
  const how = outcome(run, method, index);
  const pill = text("span", `pill ${how}`, `${OUTCOMES[how]} ${method.label}`);
  pill.title = how;
  return pill;
}

function drawMethod(method, index, question, answer, wanted) {
  const how = judged(method.answers[index], question);
  const said = how === "unparsed" ? "no answer" : `answers ${letter(method.answers[index])}`;
  const samples = answer.samples.reduce((sum, [, , n]) => sum + n, 0);
  const read = answer.passages.map((position) => {
    const [id, title] = passageAt(position);
    const name = text("span", wanted.has(position) ? "tag gold" : "tag plain", title || id);
    name.title = id;
    return name;
  });
  const { seconds, prompt_tokens: tokens, cut_tokens: cut } = answer.cost;
  const facts = [
    tokens === null ? "" : `${count(tokens)} tokens read`,
    cut ? `${count(cut)} cut` : "",
    seconds === null ? "" : `${seconds} s`,
  ].filter(Boolean);
  return node(
    "section",
    "method",
    node(
      "h3",
      "",
      text("span", "", method.label),
      node("span", `pill ${how}`, `${OUTCOMES[how]} ${said}`),
    ),
    samples > 1 ? drawVote(answer.samples, question) : null,
    read.length ? node("p", "reads", "Reads ", ...read) : null,
    facts.length ? node("p", "about", facts.join(", ")) : null,
    node("h4", "", samples === 1 ? "Rationale" : "Rationales"),
    drawSamples(answer.samples, samples, question),
  );
}

function drawVote(samples, question) {
  const counts = new Map();
  for (const [answer, , n] of samples) counts.set(answer, (counts.get(answer) || 0) + n);
  const parts = [...counts]
    .sort((a, b) => b[1] - a[1])
    .map(([answer, n]) => {
      const who = answer === null ? "no answer" : letter(answer);
      return at(node("li", judged(answer, question), `${who}${n > 1 ? ` × ${n}` : ""}`), { n });
    });
  const votes = node("ul", "votes", ...parts);
  votes.setAttribute("aria-label", "Votes");
  return votes;
}

function drawSamples(samples, total, question) {
  const items = samples.map(([answer, rationale, n]) =>
    node(
      "li",
      "sample",
      node("span", `chip ${judged(answer, question)}`, letter(answer)),
      node(
        "div",
        "",
        rationale ? text("p", "", rationale) : node("p", "empty", "no rationale"),
        n > 1 ? node("span", "times", `${n} of ${total} samples`) : null,
      ),
    ),
  );
  return node("ul", "", ...items);
}

function drawPassage(position, wanted, score, rank) {
  const [id, title, body] = passageAt(position);
  const isWanted = wanted.has(position);
  const known = score !== undefined && score !== null;
  return node(
    rank ? "li" : "div",
    isWanted ? "passage is-gold" : "passage",
    node(
      "div",
      "head",
      rank ? node("span", "meta", `${rank}.`) : null,
      text("b", "", title || id),
      isWanted ? node("span", "tag gold", wantedName(shownRun()).toLowerCase()) : null,
      known ? node("span", "meta", `score ${score}`) : null,
      title ? text("span", "meta", id) : null,
    ),
    body ? text("p", "", body) : node("p", "empty", "its text is not at hand"),
  );
}
