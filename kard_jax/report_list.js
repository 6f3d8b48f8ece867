// The list of questions: search, filters, pages. Entries are built a page at a time, and what is
// inside one only when it is opened: thousands of them cost no more than a page.

const PAGE = 25;
let shown = []; // positions of the questions that pass the filters
let page = 0;
const haystacks = new Map(); // run -> what is searched of each question

function haystack(r) {
  if (haystacks.has(r)) return haystacks.get(r); // built at the first search only
  const run = data.runs[r];
  const lists = run.questions.map((question, index) => {
    const texts = textsOf(r, index);
    const parts = [question.id, question.question, ...texts.options];
    for (const { list } of texts.lists)
      for (const [position] of list) parts.push(...passageAt(position));
    for (const answer of texts.answers) {
      for (const [, rationale] of answer.samples) parts.push(rationale);
      for (const position of answer.passages) parts.push(...passageAt(position));
    }
    return [...new Set(parts)].join("\n").toLowerCase();
  });
  haystacks.set(r, lists);
  return lists;
}

// Each filter is a function of a question's position, or null where nothing is asked.
function byOutcome(run) {
  const [name, how] = [find("outcome-method").value, find("outcome").value];
  if (!how) return null;
  const methods = name ? [methodOf(run, name)] : run.methods;
  return (index) => methods.every((method) => outcome(run, method, index) === how);
}

const PAIRS = {
  differ: (a, b) => (a === "right") !== (b === "right"),
  "right, unlike": (a, b) => a === "right" && b !== "right",
  "both right": (a, b) => a === "right" && b === "right",
  "neither right": (a, b) => a !== "right" && b !== "right",
};
const PAIR_LABELS = {
  differ: "or, but not both:",
  "right, unlike": "right, unlike",
  "both right": "right, and",
  "neither right": "not right, nor",
};

function byPair(run) {
  const how = PAIRS[find("pair-how").value];
  const [a, b] = ["pair-a", "pair-b"].map((id) => methodOf(run, find(id).value));
  if (!how || !a || !b) return null;
  return (index) => how(outcome(run, a, index), outcome(run, b, index));
}

const PASSAGES = {
  read: (rank, read) => rank > 0 && rank <= read,
  "found, not read": (rank, read) => rank > read,
  missed: (rank) => rank === 0,
};

function byPassage(run) {
  const how = PASSAGES[find("passage-how").value];
  const method = methodOf(run, find("passage-method").value);
  if (!how || !method) return null;
  return (index) => method.ranks[index] !== null && how(method.ranks[index], method.read[index]);
}

function select() {
  const run = shownRun();
  const words = find("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const filters = { "by-outcome": byOutcome, "by-pair": byPair, "by-passage": byPassage };
  const wanted = [];
  for (const [id, make] of Object.entries(filters)) {
    const filter = make(run);
    find(id).classList.toggle("on", filter !== null);
    if (filter) wanted.push(filter);
  }
  if (words.length)
    wanted.push((index) => words.every((word) => haystack(current)[index].includes(word)));
  shown = [...run.questions.keys()].filter((index) => wanted.every((filter) => filter(index)));
  find("clear").hidden = !wanted.length;
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
  const all = shownRun().questions.length;
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
  const run = shownRun();
  const details = node(
    "details",
    "",
    node(
      "summary",
      "",
      node("span", "number", String(index + 1)),
      text("span", "stem", run.questions[index].question),
      node("span", "pills", ...run.methods.map((method) => drawPill(run, method, index))),
    ),
  );
  details.addEventListener("toggle", () => {
    if (details.open && !details.querySelector(".body")) details.append(drawBody(index));
  });
  const item = node("li", "question", details);
  item.dataset.index = index;
  return item;
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
  const index = indexOf(shownRun()).get(id);
  if (index === undefined) return;
  clear();
  turn(Math.floor(index / PAGE));
  const details = find("list").children[index % PAGE].querySelector("details");
  details.open = true;
  details.scrollIntoView();
}

function clear() {
  for (const control of find("tools").querySelectorAll("input, select")) {
    if (control.tagName === "INPUT") control.value = "";
    else control.selectedIndex = 0;
  }
  find("pair-b").selectedIndex = Math.min(1, find("pair-b").options.length - 1);
  select();
}

function fill(id, entries) {
  find(id).replaceChildren(...entries.map(([value, label]) => new Option(label, value)));
}

function fillFilters(run) {
  const methods = run.methods.map((method) => [method.name, method.label]);
  const searching = run.methods.filter((method) => method.ranks);
  fill("outcome-method", [["", "every method"], ...methods]);
  fill("outcome", [["", "any"], ...Object.keys(OUTCOMES).map((how) => [how, how])]);
  fill("pair-a", methods);
  fill("pair-b", methods);
  fill("pair-how", [["", "and (any)"], ...Object.entries(PAIR_LABELS)]);
  fill("passage-method", searching.map((method) => [method.name, method.label]));
  fill("passage-how", [["", "any"], ...Object.keys(PASSAGES).map((how) => [how, how])]);
  find("passage-legend").replaceChildren(`${wantedName(run)} passage`);
  find("by-outcome").hidden = !methods.length;
  find("by-pair").hidden = methods.length < 2;
  find("by-passage").hidden = !searching.length;
}

function show(r) {
  current = r;
  const run = shownRun();
  drawHead(run);
  drawAccuracy(run);
  drawFigures(run);
  drawPairs(run);
  drawVotes(run);
  drawRetrieval(run);
  drawReranking(run);
  drawProvenance(run);
  fillFilters(run);
  clear();
}

function start() {
  let waiting = 0;
  find("search").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(select, 150);
  });
  find("tools").addEventListener("change", select);
  find("tools").addEventListener("submit", (event) => event.preventDefault());
  find("clear").addEventListener("click", clear);
  find("previous").addEventListener("click", () => turn(page - 1, false));
  find("next").addEventListener("click", () => turn(page + 1, false));
  find("page").addEventListener("change", () =>
    turn((parseInt(find("page").value, 10) || 1) - 1, false),
  );
  addEventListener("hashchange", showLinked);
  drawRuns();
  show(0);
  showLinked();
}

start();
