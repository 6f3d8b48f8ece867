// The charts of one run: accuracy, calibration, retrieval, reranking.

const QUARTERS = [0, 0.25, 0.5, 0.75, 1];

function drawAccuracy(run) {
  const place = find("accuracy");
  find("accuracy-section").hidden = !run.methods.length;
  const lot = run.about.chance;
  const top = node(
    "div",
    "plot",
    at(node("span", "", `chance ${percent(lot)}`), { at: share(lot) }),
  );
  const rows = run.methods.map((method) => {
    const [low, high] = method.interval;
    const plot = node(
      "div",
      "plot",
      ...QUARTERS.map((x) => mark("grid", { at: share(x) })),
      mark("fill", { at: share(method.accuracy) }),
      mark("chance", { at: share(lot) }),
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
    return node("div", "bar-row", who(method), plot, figure);
  });
  const ticks = QUARTERS.map((x) => at(node("span", "", `${100 * x}%`), { at: share(x) }));
  place.replaceChildren(
    node("div", "bar-row axis", node("span"), top, node("span")),
    ...rows,
    node("div", "bar-row axis", node("span"), node("div", "plot", ...ticks), node("span")),
  );
}

// Vote share against accuracy, one small picture a method.
function drawVotes(run) {
  const methods = run.methods.filter((method) => method.calibration);
  find("votes-section").hidden = !run.methods.length;
  if (!methods.length) {
    const why = run.methods.some((method) => method.votes)
      ? "No method gave an answer."
      : "One sample a question: there is no vote.";
    find("votes").replaceChildren(node("p", "empty", why));
    return;
  }
  find("votes").replaceChildren(
    ...methods.map((method) => {
      const { votes, calibration } = method;
      const gain = votes.gain;
      return node(
        "figure",
        "multiple",
        node(
          "figcaption",
          "",
          text("b", "", method.label),
          node("span", "", `ECE ${percent(calibration.ece)}`),
        ),
        fitted(node("div", "reliability"), (width) => reliability(calibration, width)),
        node(
          "p",
          "about",
          `Voting adds ${points(gain.value)} points ` +
            `(${points(gain.interval[0])} to ${points(gain.interval[1])}) to one sample.`,
        ),
      );
    }),
  );
}

function reliability(calibration, width) {
  const [left, bottom, top, bars] = [44, 36, 8, 26];
  const side = width - left - 18;
  const floor = top + Math.min(160, side * 0.8);
  const height = floor + bars + bottom;
  const x = (share) => left + share * side;
  const y = (accuracy) => floor - accuracy * (floor - top);
  const drawn = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img" });
  const said = calibration.bins.map(
    (bin) => `${percent(bin.confidence)} of votes: ${percent(bin.accuracy)} right of ${bin.n}`,
  );
  drawn.append(svg("title", {}, said.join("; ")));
  for (const value of [0, 0.5, 1]) {
    drawn.append(
      svg("line", { class: "grid", x1: left, x2: x(1), y1: y(value), y2: y(value) }),
      svg("text", { class: "tick end", x: left - 6, y: y(value) + 4 }, share(value)),
      svg("text", { class: "tick middle", x: x(value), y: height - 20 }, share(value)),
    );
  }
  drawn.append(
    svg("text", { class: "tick middle", x: x(0.5), y: height - 4 }, "share of the votes"),
    svg("line", { class: "ideal", x1: x(0), y1: y(0), x2: x(1), y2: y(1) }),
  );
  for (const bin of calibration.bins) {
    const part = bin.n / calibration.n;
    const [low, high] = bin.interval;
    const deep = Math.max(1, part * (bars - 6));
    drawn.append(
      svg("rect", {
        class: "share",
        x: x(bin.low) + 1,
        width: x(bin.high) - x(bin.low) - 2,
        y: floor + 4,
        height: deep,
      }),
      svg("line", {
        class: "whiskers",
        x1: x(bin.confidence),
        x2: x(bin.confidence),
        y1: y(low),
        y2: y(high),
      }),
      svg("circle", {
        class: "dot",
        cx: x(bin.confidence),
        cy: y(bin.accuracy),
        r: 2.5 + 4.5 * Math.sqrt(part),
      }),
    );
  }
  return drawn;
}

function drawRetrieval(run) {
  find("retrieval-section").hidden = !run.retrieval.length;
  if (!run.retrieval.length) return;
  const ks = Object.keys(run.retrieval[0]).filter((key) => key.startsWith("hit@"));
  const silver = run.retrieval.some((row) => row.reference === "silver");
  const depths = ks.map((k) => k.slice("hit@".length)).join(", ");
  find("retrieval-note").replaceChildren(
    `How often a passage that holds the fact is among the first ${depths}. The whisker is the 95% ` +
      "interval (Wilson); where a reranker ran, the pale bar is the same list before it." +
      (silver
        ? " These questions name no such passage; the first silver passages stand in for it."
        : ""),
  );
  const head = ks.map((k) => node("span", "", k));
  const rows = run.retrieval.map((row) => {
    const queries = node("div", "about", `${count(row.n)} queries, against ${row.reference} passages`);
    if (row.before === null) queries.append("; before reranking: not recorded");
    return node("div", "hit-row", who(row, queries), ...ks.map((k) => drawHit(row, k)));
  });
  find("retrieval").replaceChildren(
    node("div", "hit-row hit-head", node("span"), ...head),
    ...rows,
  );
}

function drawHit(row, k) {
  const interval = row.intervals && row.intervals[k];
  const before = row.before ? row.before[k] : null;
  const bar = node("div", "plot", mark("fill", { at: share(row[k] || 0) }));
  if (interval)
    bar.append(mark("whisker", { at: share(interval[0]), wide: share(interval[1] - interval[0]) }));
  bar.setAttribute("aria-hidden", "true"); // the figure beside it says the same
  return node(
    "div",
    "hit",
    node("span", "k", k),
    node("b", "", row[k] === null ? "–" : percent(row[k])),
    bar,
    before === null ? null : node("span", "was", `before: ${percent(before)}`),
    before === null ? null : node("div", "plot pale", mark("fill", { at: share(before) })),
  );
}

const REFERENCES = { rationale: "Against rationales", gold: "Against gold passages" };

function drawReranking(run) {
  find("reranking-section").hidden = !run.reranking.length;
  find("reranking").replaceChildren(...run.reranking.flatMap(drawReference));
}

function drawReference(part) {
  const size = `${plural(part.lists, "list")} of ${plural(part.questions, "question")}`;
  const labels = new Map(part.rankings.map((row) => [row.name, row.label]));
  const names = [...new Set(part.rankings.flatMap((row) => Object.keys(row.figures)))];
  const shown = (name) => name.replace("ndcg", "nDCG").replace("kl", "KL");
  const charts = names.map((name) => {
    const rows = part.rankings.filter((row) => name in row.figures);
    return node("div", "chart figure-chart", node("h4", "", shown(name)), ...drawFigure(rows, name));
  });
  const differences = part.differences.map((row) => [
    text("span", "", `${labels.get(row.name)} less ${labels.get("bm25")}`),
    ...names.map((name) => {
      const some = row.figures[name];
      if (!some) return node("span", "empty", "–");
      const show = name === "kl" ? (value) => value.toFixed(2) : points;
      return stacked(show(some.value), `${show(some.interval[0])} to ${show(some.interval[1])}`);
    }),
  ]);
  return [
    node("h3", "", `${REFERENCES[part.reference]}: ${size}`),
    node("div", "figure-charts", ...charts),
    differences.length
      ? node("div", "scroll", table(["Difference", ...names.map(shown)], differences))
      : node("span"),
  ];
}

function drawFigure(rows, name) {
  const fraction = name !== "kl";
  const most = fraction ? 1 : Math.max(...rows.map((row) => row.figures[name].interval[1]));
  const show = fraction ? percent : (value) => value.toFixed(2);
  const place = (value) => share(most > 0 ? value / most : 0);
  return rows.map((row) => {
    const { value, interval } = row.figures[name];
    const [low, high] = interval;
    const plot = node(
      "div",
      "plot",
      mark("fill", { at: place(value) }),
      mark("whisker", { at: place(low), wide: place(high - low) }),
    );
    plot.setAttribute("aria-hidden", "true"); // the figure beside it says the same
    const label = text("span", "name", row.label);
    label.title = row.description;
    return node(
      "div",
      "figure-row",
      label,
      node("span", "value", node("b", "", show(value)), ` ${show(low)} to ${show(high)}`),
      plot,
    );
  });
}
