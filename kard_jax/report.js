"use strict";
// What all parts of the page use. Every text goes through `node` or `svg`, which make text nodes
// only, so that nothing in the data can become markup.

const find = (id) => document.getElementById(id);
const blocks = new Map(); // id -> value of a block of JSON that was parsed

function block(id) {
  if (!blocks.has(id)) blocks.set(id, JSON.parse(find(id).textContent));
  return blocks.get(id);
}

const data = block("data");
let current = 0; // the run that is shown
const shownRun = () => data.runs[current];

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

function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const key of Object.keys(attributes)) element.setAttribute(key, attributes[key]);
  element.append(...children);
  return element;
}

function at(element, values) {
  for (const [name, value] of Object.entries(values)) element.style.setProperty(`--${name}`, value);
  return element;
}

const percent = (fraction) => `${(100 * fraction).toFixed(1)}%`;
const points = (difference) => {
  const rounded = (100 * difference).toFixed(1).replace("-", "−");
  return /^−?0\.0$/.test(rounded) ? "0.0" : difference > 0 ? `+${rounded}` : rounded;
};
const share = (fraction) => `${100 * fraction}%`;
const letter = (option) => (option === null ? "–" : String.fromCharCode(65 + option));
const count = (n) => n.toLocaleString("en");
const plural = (n, word) => `${count(n)} ${word}${n === 1 ? "" : "s"}`;
const mark = (className, values) => at(node("i", className), values);
const chance = (p) => (p < 0.001 ? "p < 0.001" : `p = ${p.toFixed(p < 0.1 ? 3 : 2)}`);
const notRecorded = () => node("span", "empty", "not recorded");

const OUTCOMES = { right: "✓", wrong: "✗", unparsed: "–" };
const judged = (answer, question) =>
  answer === null ? "unparsed" : answer === question.label ? "right" : "wrong";
const outcome = (run, method, index) => judged(method.answers[index], run.questions[index]);

// A table with a row of heads; a cell is a node, a text, or null where nothing was recorded.
function table(heads, rows) {
  const head = node("tr", "", ...heads.map((name) => node("th", "", name)));
  for (const cell of head.children) cell.scope = "col";
  const body = rows.map(([first, ...cells]) => {
    const name = node("th", "", first);
    name.scope = "row";
    return node("tr", "", name, ...cells.map((cell) => node("td", "", cell ?? notRecorded())));
  });
  return node("table", "", node("thead", "", head), node("tbody", "", ...body));
}

function stacked(value, ...below) {
  return node("span", "stacked", node("b", "", value), ...below.map((line) => node("small", "", line)));
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

// Draws anew whenever the width changes, so that text keeps its size on every screen.
function fitted(element, draw) {
  let width = 0;
  new ResizeObserver(() => {
    if (element.clientWidth === width || !element.clientWidth) return;
    width = element.clientWidth;
    element.replaceChildren(draw(width));
  }).observe(element);
  return element;
}
