"use strict";
// The charts, from the JSON block. Every text goes through `node`, which makes text nodes only, so
// that nothing in the data can become markup.

const data = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);

function node(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children.filter((child) => child !== null)); // strings become text nodes
  return element;
}

function text(tag, className, value) {
  const element = node(tag, `${className} data`, value);
  element.dir = "auto";
  return element;
}

function at(element, values) {
  for (const [name, value] of Object.entries(values)) element.style.setProperty(`--${name}`, value);
  return element;
}

const percent = (fraction) => `${(100 * fraction).toFixed(1)}%`;
const share = (fraction) => `${100 * fraction}%`;
const letter = (option) => (option === null ? "–" : String.fromCharCode(65 + option));
const count = (n) => n.toLocaleString("en");
const plural = (n, word) => `${count(n)} ${word}${n === 1 ? "" : "s"}`;
const mark = (className, values) => at(node("i", className), values);

function drawHead() {
  find("title").append(data.title);
  const facts = [
    ["Questions", count(data.about.n)],
    ["Options", data.about.options.join(" or ")],
    ["Chance", percent(data.about.chance)],
  ];
  if (data.provenance.seed !== null) facts.push(["Seed", String(data.provenance.seed)]);
  for (const [name, value] of facts) {
    find("facts").append(node("div", "", node("dt", "", name), node("dd", "", value)));
  }
}

function drawAccuracy() {
  find("accuracy-section").hidden = !data.methods.length;
  const chance = data.about.chance;
  const top = node(
    "div",
    "plot",
    at(node("span", "", `chance ${percent(chance)}`), { at: share(chance) }),
  );
  find("accuracy").append(node("div", "bar-row axis", node("span"), top, node("span")));
  for (const method of data.methods) {
    const [low, high] = method.interval;
    const grid = [0, 0.25, 0.5, 0.75, 1].map((x) => mark("grid", { at: share(x) }));
    const plot = node(
      "div",
      "plot",
      ...grid,
      mark("fill", { at: share(method.accuracy) }),
      mark("chance", { at: share(chance) }),
      mark("whisker", { at: share(low), wide: share(high - low) }),
    );
    plot.setAttribute("aria-hidden", "true"); // the figure beside it says the same
    const figure = node(
      "div",
      "figure",
      node("b", "", percent(method.accuracy)),
      node("span", "", `${percent(low)} to ${percent(high)}`),
      method.unparsed ? node("span", "", `${percent(method.unparsed)} unparsed`) : null,
    );
    find("accuracy").append(node("div", "bar-row", who(method), plot, figure));
  }
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((x) =>
    at(node("span", "", `${100 * x}%`), { at: share(x) }),
  );
  find("accuracy").append(
    node("div", "bar-row axis", node("span"), node("div", "plot", ...ticks), node("span")),
  );
}

function who(row, more) {
  return node(
    "div",
    "who",
    text("span", "name", row.label),
    text("span", "about", row.description),
    more || null,
  );
}

function drawRetrieval() {
  if (!data.retrieval.length) return;
  const ks = Object.keys(data.retrieval[0]).filter((key) => key.startsWith("hit@"));
  const silver = data.retrieval.some((row) => row.reference === "silver");
  find("retrieval-section").hidden = false;
  const depths = ks.map((k) => k.slice("hit@".length)).join(", ");
  find("retrieval-note").append(
    `How often a passage that holds the fact is among the first ${depths}.` +
      (silver
        ? " These questions name no such passage; the first silver passages stand in for it."
        : ""),
  );
  const head = ks.map((k) => node("span", "", k));
  find("retrieval").append(node("div", "hit-row hit-head", node("span"), ...head));
  for (const row of data.retrieval) {
    const hits = ks.map((k) =>
      node(
        "div",
        "hit",
        node("span", "k", k),
        node("b", "", row[k] === null ? "–" : percent(row[k])),
        node("div", "plot", mark("fill", { at: share(row[k] || 0) })),
      ),
    );
    const queries = node(
      "div",
      "about",
      `${count(row.n)} queries, against ${row.reference} passages`,
    );
    find("retrieval").append(node("div", "hit-row", who(row, queries), ...hits));
  }
}

const REFERENCES = { rationale: "Against rationales", gold: "Against gold passages" };

function drawReranking() {
  find("reranking-section").hidden = !data.reranking.length;
  for (const part of data.reranking) {
    const size = `${plural(part.lists, "list")} of ${plural(part.questions, "question")}`;
    find("reranking").append(node("h3", "", `${REFERENCES[part.reference]}: ${size}`));
    const chart = node("div", "chart");
    const names = [...new Set(part.rankings.flatMap((row) => Object.keys(row.figures)))];
    for (const name of names) {
      const rows = part.rankings.filter((row) => name in row.figures);
      const fraction = name !== "kl";
      const most = fraction ? 1 : Math.max(...rows.map((row) => row.figures[name].interval[1]));
      const show = fraction ? percent : (value) => value.toFixed(2);
      const place = (value) => share(most > 0 ? value / most : 0);
      chart.append(node("div", "bar-row axis", node("b", "", name.replace("ndcg", "nDCG"))));
      for (const row of rows) {
        const { value, interval } = row.figures[name];
        const [low, high] = interval;
        const plot = node(
          "div",
          "plot",
          mark("fill", { at: place(value) }),
          mark("whisker", { at: place(low), wide: place(high - low) }),
        );
        plot.setAttribute("aria-hidden", "true"); // the figure beside it says the same
        const figure = node(
          "div",
          "figure",
          node("b", "", show(value)),
          node("span", "", `${show(low)} to ${show(high)}`),
        );
        chart.append(node("div", "bar-row", who(row), plot, figure));
      }
    }
    find("reranking").append(chart);
  }
}

function drawProvenance() {
  const rows = Object.entries(data.provenance.inputs).map(([name, hash]) =>
    node("tr", "", text("th", "", name), text("td", "", hash)),
  );
  if (rows.length)
    find("provenance").append(
      node("p", "", "SHA-256 of the files that were read:"),
      node("table", "", ...rows),
    );
  else find("provenance").hidden = true;
}
