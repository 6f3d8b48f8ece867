// The questions: search, filters, pages. They are built a page at a time, and what is inside one
// only when it is opened: thousands of them cost no more than a page.

const PAGE = 25;
const OUTCOMES = { right: "✓", wrong: "✗", unparsed: "–" };
const judged = (answer, question) =>
  answer === null ? "unparsed" : answer === question.label ? "right" : "wrong";
const outcome = (method, index) => judged(method.answers[index].answer, data.questions[index]);
const filters = new Map(); // method -> its <select>
let shown = []; // positions of the questions that pass the filters
let page = 0;
let haystacks = null;

function haystack() {
  if (haystacks) return haystacks; // built at the first search only
  haystacks = data.questions.map((question, index) => {
    const parts = [question.id, question.question, ...question.options];
    for (const method of data.methods) {
      const row = method.answers[index];
      for (const [, rationale] of row.samples) parts.push(rationale);
      for (const position of row.passages) parts.push(...data.passages[position]);
    }
    return [...new Set(parts)].join("\n").toLowerCase();
  });
  return haystacks;
}

function select() {
  const words = find("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const wanted = [...filters].filter(([, choice]) => choice.value);
  shown = [...data.questions.keys()].filter(
    (index) =>
      wanted.every(([method, choice]) => outcome(method, index) === choice.value) &&
      words.every((word) => haystack()[index].includes(word)),
  );
  for (const choice of filters.values()) choice.classList.toggle("on", Boolean(choice.value));
  find("clear").hidden = !words.length && !wanted.length;
  turn(0);
}

function turn(to, keepPlace = true) {
  const last = Math.max(1, Math.ceil(shown.length / PAGE));
  page = Math.min(last - 1, Math.max(0, to));
  const first = page * PAGE;
  const items = shown.slice(first, first + PAGE);
  find("list").replaceChildren(...items.map(drawQuestion));
  if (!items.length)
    find("list").append(
      node("li", "nothing", "No question matches. Loosen the search or the filters."),
    );
  const all = data.questions.length;
  const total = plural(all, "question");
  const how = shown.length === all ? total : `${count(shown.length)} of ${total} matching`;
  find("found").value =
    last > 1 ? `${how}, ${count(first + 1)} to ${count(first + items.length)} shown` : how;
  find("pages").hidden = last === 1;
  find("page").value = page + 1;
  find("page").max = last;
  find("last").replaceChildren(count(last));
  find("previous").disabled = page === 0;
  find("next").disabled = page === last - 1;
  if (!keepPlace) find("questions-section").scrollIntoView();
}

function drawQuestion(index) {
  const question = data.questions[index];
  const pills = data.methods.map((method) => {
    const how = outcome(method, index);
    const pill = text("span", `pill ${how}`, `${OUTCOMES[how]} ${method.label}`);
    pill.title = how;
    return pill;
  });
  const details = node(
    "details",
    "",
    node(
      "summary",
      "",
      node("span", "number", String(index + 1)),
      text("span", "stem", question.question),
      node("span", "pills", ...pills),
    ),
  );
  details.addEventListener("toggle", () => {
    if (details.open && !details.querySelector(".body")) details.append(drawBody(index));
  });
  const item = node("li", "question", details);
  item.dataset.index = index;
  return item;
}

function drawBody(index) {
  const question = data.questions[index];
  const options = question.options.map((option, position) => {
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
  const gold = new Set(question.gold);
  const id = node("p", "id", "Question ", text("span", "", question.id), " · ", link);
  const panels = data.methods.map((method) => drawMethod(method, index, question, gold));
  const read = new Set(data.methods.flatMap((method) => method.answers[index].passages));
  const rest = question.gold.filter((position) => !read.has(position));
  return node(
    "div",
    "body",
    node("ul", "options", ...options),
    id,
    rest.length
      ? node(
          "div",
          "missed",
          node("h4", "", "Gold passage that no method read"),
          ...rest.map((position) => drawPassage(position, gold)),
        )
      : null,
    node("div", "methods", ...panels),
  );
}

function drawMethod(method, index, question, gold) {
  const row = method.answers[index];
  const how = outcome(method, index);
  const said = how === "unparsed" ? "no answer" : `answers ${letter(row.answer)}`;
  const panel = node(
    "section",
    "method",
    node(
      "h3",
      "",
      text("span", "", method.label),
      node("span", `pill ${how}`, `${OUTCOMES[how]} ${said}`),
    ),
  );
  if (row.samples.length > 1) panel.append(drawVotes(row, question));
  if (row.passages.length || row.retrieved.length) {
    panel.append(
      node("h4", "", row.passages.length === 1 ? "Passage it read" : "Passages it read"),
    );
    const scores = new Map(row.retrieved);
    for (const position of row.passages)
      panel.append(drawPassage(position, gold, scores.get(position)));
    if (!row.passages.length) panel.append(node("p", "empty", "none"));
    if (row.retrieved.length) panel.append(drawRanking(row.retrieved, gold));
  }
  panel.append(
    node("h4", "", row.samples.length === 1 ? "Rationale" : "Rationales"),
    drawSamples(row, question),
  );
  return panel;
}

function drawVotes(row, question) {
  const counts = new Map();
  for (const [answer] of row.samples) counts.set(answer, (counts.get(answer) || 0) + 1);
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

function drawSamples(row, question) {
  const groups = new Map(); // what several samples say alike stands once
  for (const [answer, rationale] of row.samples) {
    const key = `${answer}\n${rationale}`;
    const group = groups.get(key) || { answer, rationale, n: 0 };
    group.n += 1;
    groups.set(key, group);
  }
  const items = [...groups.values()].map(({ answer, rationale, n }) =>
    node(
      "li",
      "sample",
      node("span", `chip ${judged(answer, question)}`, letter(answer)),
      node(
        "div",
        "",
        rationale ? text("p", "", rationale) : node("p", "empty", "no rationale"),
        n > 1 ? node("span", "times", `${n} of ${row.samples.length} samples`) : null,
      ),
    ),
  );
  return node("ul", "", ...items);
}

function drawPassage(position, gold, score, rank) {
  const [id, title, body] = data.passages[position];
  const isGold = gold.has(position);
  const known = score !== undefined && score !== null;
  return node(
    rank ? "li" : "div",
    isGold ? "passage is-gold" : "passage",
    node(
      "div",
      "head",
      rank ? node("span", "meta", `${rank}.`) : null,
      text("b", "", title || id),
      isGold ? node("span", "tag gold", "gold") : null,
      known ? node("span", "meta", `score ${score}`) : null,
      title ? text("span", "meta", id) : null,
    ),
    body ? text("p", "", body) : node("p", "empty", "its text is not at hand"),
  );
}

function drawRanking(retrieved, gold) {
  const rank = retrieved.findIndex(([position]) => gold.has(position));
  const where = !gold.size ? "" : rank < 0 ? ", gold not among them" : `, gold at rank ${rank + 1}`;
  const details = node(
    "details",
    "ranking",
    node("summary", "", `Ranking: first ${retrieved.length}${where}`),
  );
  details.addEventListener("toggle", () => {
    if (details.open && details.children.length === 1) {
      details.append(
        node(
          "ol",
          "",
          ...retrieved.map(([position, score], i) => drawPassage(position, gold, score, i + 1)),
        ),
      );
    }
  });
  return details;
}

// A link to one question: #q=<id>.
function showLinked() {
  if (!location.hash.startsWith("#q=")) return;
  let id;
  try {
    id = decodeURIComponent(location.hash.slice(3));
  } catch {
    return;
  }
  const index = data.questions.findIndex((question) => question.id === id);
  if (index < 0) return;
  clear();
  turn(Math.floor(index / PAGE));
  const details = find("list").children[index % PAGE].querySelector("details");
  details.open = true;
  details.scrollIntoView();
}

function clear() {
  find("search").value = "";
  for (const choice of filters.values()) choice.value = "";
  select();
}

function start() {
  drawHead();
  drawAccuracy();
  drawRetrieval();
  drawReranking();
  drawProvenance();
  for (const method of data.methods) {
    const choice = node("select", "");
    for (const value of ["", ...Object.keys(OUTCOMES)])
      choice.append(new Option(value || "any", value));
    choice.addEventListener("change", select);
    filters.set(method, choice);
    find("filters").append(node("label", "", text("span", "", method.label), choice));
  }
  let waiting = 0;
  find("search").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(select, 150);
  });
  find("tools").addEventListener("submit", (event) => event.preventDefault());
  find("clear").addEventListener("click", clear);
  find("previous").addEventListener("click", () => turn(page - 1, false));
  find("next").addEventListener("click", () => turn(page + 1, false));
  find("page").addEventListener("change", () =>
    turn((parseInt(find("page").value, 10) || 1) - 1, false),
  );
  addEventListener("hashchange", showLinked);
  select();
  showLinked();
}

start();
