// Tables of one run: the figures of each method, every two methods, and where they come from.

function drawHead(run) {
  find("title").replaceChildren(run.title);
  const facts = [
    ["Questions", count(run.about.n)],
    ["Options", run.about.options.join(" or ")],
    ["Chance", percent(run.about.chance)],
    ["Methods", count(run.methods.length)],
  ];
  if (run.provenance.seed !== null) facts.push(["Seed", String(run.provenance.seed)]);
  if (run.sweep) facts.push([run.sweep.name, String(run.sweep.value)]);
  find("facts").replaceChildren(
    ...facts.map(([name, value]) =>
      node("div", "", text("dt", "", name), text("dd", "", value)),
    ),
  );
}

const SCORES = ["Method", "Right", "Wrong", "Unparsed"];
const VOTES = ["One sample", "Voting adds", "Agreement", "ECE"];
const COSTS = ["Tokens read", "Tokens cut", "Tokens written", "Seconds"];

function drawFigures(run) {
  find("figures-section").hidden = !run.methods.length;
  const number = (value, digits = 0) => (value === null ? null : value.toFixed(digits));
  const voted = run.methods.some((method) => method.votes);
  const rows = run.methods.map((method) => {
    const { votes, calibration, cost } = method;
    const [low, high] = method.interval;
    return [
      text("span", "", method.label),
      stacked(percent(method.accuracy), `${percent(low)} to ${percent(high)}`),
      percent(method.wrong),
      percent(method.unparsed),
      ...(voted ? voteCells(votes, calibration) : []),
      number(cost.prompt_tokens),
      cost.cut_tokens === null
        ? null
        : stacked(number(cost.cut_tokens, 1), `in ${percent(cost.cut)}`),
      number(cost.written_tokens),
      cost.seconds === null ? null : String(Number(cost.seconds.toPrecision(2))),
    ];
  });
  const heads = [...SCORES, ...(voted ? VOTES : []), ...COSTS];
  find("figures").replaceChildren(table(heads, rows));
  find("figures-note").replaceChildren(
    "Right, wrong and unparsed add up to 100%. " +
      (voted ? "One sample is the expected accuracy without a vote. " : "") +
      "Tokens and seconds are means a question; tokens cut are those of the prompt that the limit " +
      "of length took, and the share of questions that lost any. Intervals are of 95%: Wilson" +
      (voted ? ", and bootstrap for what voting adds." : "."),
  );
}

// What a vote adds; a method with one sample has none.
function voteCells(votes, calibration) {
  const none = () => node("span", "empty", "one sample");
  if (!votes) return VOTES.map(none);
  const [low, high] = votes.gain.interval;
  return [
    percent(votes.single.value),
    stacked(points(votes.gain.value), `${points(low)} to ${points(high)}`),
    votes.agreement === null
      ? none()
      : stacked(percent(votes.agreement), `${percent(votes.unanimous)} unanimous`),
    calibration ? percent(calibration.ece) : none(),
  ];
}

function drawPairs(run) {
  find("pairs-section").hidden = run.methods.length < 2;
  find("pair").replaceChildren();
  if (run.methods.length < 2) return;
  const known = new Map();
  for (const pair of run.comparisons) {
    known.set(JSON.stringify([pair.a, pair.b]), [pair, -1]); // the row's less the column's
    known.set(JSON.stringify([pair.b, pair.a]), [pair, 1]);
  }
  const rows = run.methods.map((row) => [
    text("span", "", row.label),
    ...run.methods.map((column) => {
      if (row === column) return node("span", "same", "·");
      const [pair, sign] = known.get(JSON.stringify([row.name, column.name]));
      const difference = sign * pair.difference;
      const how = pair.p_holm >= 0.05 ? "unclear" : difference > 0 ? "right" : "wrong";
      const cell = node("button", `cell ${how}`, points(difference));
      cell.type = "button";
      cell.title = chance(pair.p_holm);
      cell.addEventListener("click", () => showPair(row, column, pair, sign));
      return cell;
    }),
  ]);
  const heads = run.methods.map((method) => text("span", "", method.label));
  const drawn = table([node("span", "", "less →"), ...heads], rows);
  drawn.className = "pairs";
  find("pairs").replaceChildren(drawn);
}

function showPair(row, column, pair, sign) {
  const ends = pair.interval.map((end) => sign * end).sort((a, b) => a - b);
  const [mine, other] = sign > 0 ? [pair.only_b, pair.only_a] : [pair.only_a, pair.only_b];
  const link = node("button", "", `Show the ${plural(mine + other, "question")} they differ on`);
  link.type = "button";
  link.addEventListener("click", () => {
    clear();
    find("pair-a").value = row.name;
    find("pair-b").value = column.name;
    find("pair-how").value = "differ";
    select();
    find("questions-section").scrollIntoView();
  });
  find("pair").replaceChildren(
    node(
      "p",
      "",
      text("b", "", row.label),
      " less ",
      text("b", "", column.label),
      `: ${points(sign * pair.difference)} points, 95% ${points(ends[0])} to ${points(ends[1])} ` +
        `(paired bootstrap). Only the first is right on ${count(mine)}, only the second on ` +
        `${count(other)}, both on ${count(pair.both)}, neither on ${count(pair.neither)}. ` +
        `McNemar, exact: ${chance(pair.p)}; corrected for all pairs: ${chance(pair.p_holm)}.`,
    ),
    mine + other ? link : node("span"),
  );
}

function drawProvenance(run) {
  const rows = Object.entries(run.provenance.inputs).map(([name, hash]) =>
    node("tr", "", text("th", "", name), text("td", "", hash)),
  );
  find("provenance").hidden = !rows.length;
  find("provenance").replaceChildren(
    node("summary", "", "Where these figures come from"),
    node("p", "", "SHA-256 of the files that were read:"),
    node("div", "scroll plain", node("table", "", ...rows)),
  );
}
