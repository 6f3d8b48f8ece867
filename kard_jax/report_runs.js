// Several runs side by side: a table, and for those of a sweep a curve a method.

function allMethods() {
  const labels = new Map();
  for (const run of data.runs) for (const method of run.methods) labels.set(method.name, method.label);
  return labels;
}

const methodOf = (run, name) => run.methods.find((method) => method.name === name);

function drawRuns() {
  find("runs-section").hidden = data.runs.length < 2;
  if (data.runs.length < 2) return;
  const differences = data.across ? data.across.differences : {};
  const rows = [...allMethods()].map(([name, label]) => [
    text("span", "", label),
    ...data.runs.map((run, r) => {
      const method = methodOf(run, name);
      if (!method) return node("span", "empty", "not run");
      const [low, high] = method.interval;
      const cell = stacked(percent(method.accuracy), `${percent(low)} to ${percent(high)}`);
      const less = differences[name] && differences[name][r];
      if (less) {
        const sure = less.p_holm < 0.05 ? (less.difference > 0 ? "right" : "wrong") : "unclear";
        const change = node("small", `change ${sure}`, points(less.difference));
        change.title = chance(less.p_holm);
        cell.append(change);
      }
      return cell;
    }),
  ]);
  const heads = data.runs.map((run) => text("span", "", run.name));
  find("runs").replaceChildren(table(["Method", ...heads], rows));
  find("runs-note").replaceChildren(
    data.across
      ? " The last line is the difference to the first run that has the method, in points, on the" +
          " same questions; coloured where p is below 0.05 (exact McNemar, corrected by Holm)."
      : " The runs answered different questions, so they are not compared question by question.",
  );
  data.runs.forEach((run, r) => find("run").append(new Option(run.name, r)));
  find("run").addEventListener("change", () => show(Number(find("run").value)));
  const names = new Set(data.runs.flatMap((run) => (run.sweep ? [run.sweep.name] : [])));
  for (const name of names) {
    const runs = data.runs.filter((run) => run.sweep && run.sweep.name === name);
    if (new Set(runs.map((run) => run.sweep.value)).size > 1) drawSweep(name, runs);
  }
}

function drawSweep(name, runs) {
  const hidden = new Set();
  const methods = [...allMethods()].filter(([method]) => runs.some((run) => methodOf(run, method)));
  const chart = node("div", "curves");
  const curves = fitted(node("div", ""), (width) => drawCurves(name, runs, methods, hidden, width));
  const legend = methods.map(([method, label], i) => {
    const button = node("button", `key c${i % 9}`, node("i", ""), text("span", "", label));
    button.type = "button";
    button.setAttribute("aria-pressed", "true");
    button.addEventListener("click", () => {
      if (!hidden.delete(method)) hidden.add(method);
      button.setAttribute("aria-pressed", String(!hidden.has(method)));
      curves.replaceChildren(drawCurves(name, runs, methods, hidden, curves.clientWidth));
    });
    return button;
  });
  chart.append(curves, node("div", "legend", ...legend));
  find("sweeps").append(node("h3", "", "Accuracy by ", text("span", "", name)), chart);
}

// Where the values stand: numbers to scale (by ratio where they span a lot), names in their order.
function scaleOf(values) {
  const distinct = [...new Set(values)];
  if (!distinct.every((value) => typeof value === "number"))
    return { ticks: distinct, place: (value) => distinct.indexOf(value) };
  const ticks = distinct.sort((a, b) => a - b);
  const wide = ticks[0] > 0 && ticks[ticks.length - 1] / ticks[0] >= 20;
  return { ticks, place: wide ? Math.log : (value) => value };
}

// How high the axis goes: as high as the intervals of what is shown, and chance, in round figures.
function ceiling(runs, methods) {
  const highs = runs.flatMap((run) =>
    methods.map((method) => methodOf(run, method)).map((row) => (row ? row.interval[1] : 0)),
  );
  const high = Math.max(...runs.map((run) => run.about.chance), ...highs);
  if (high > 0.5) return { most: 1, step: 0.25 };
  return high > 0.25 ? { most: 0.5, step: 0.1 } : { most: 0.25, step: 0.05 };
}

function drawCurves(name, runs, methods, hidden, width) {
  const [left, right, top, bottom, height] = [46, 16, 12, 46, Math.min(380, 220 + width / 6)];
  const { ticks, place } = scaleOf(runs.map((run) => run.sweep.value));
  const [first, last] = [place(ticks[0]), place(ticks[ticks.length - 1])];
  const inner = width - left - right - 24;
  const x = (value) => left + 12 + ((place(value) - first) / (last - first || 1)) * inner;
  const shown = methods.filter(([method]) => !hidden.has(method)).map(([method]) => method);
  const { most, step } = ceiling(runs, shown);
  const y = (fraction) => top + (1 - fraction / most) * (height - top - bottom);
  const drawn = svg("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img" });
  drawn.append(svg("title", {}, `Accuracy of each method by ${name}; the table has the figures`));
  for (let i = 0; i * step < most + step / 2; i++)
    drawn.append(
      svg("line", { class: "grid", x1: left, x2: width - right, y1: y(i * step), y2: y(i * step) }),
      svg("text", { class: "tick end", x: left - 8, y: y(i * step) + 4 }, `${Math.round(100 * i * step)}%`),
    );
  let free = -Infinity; // labels that would touch the one before are left out
  for (const value of ticks) {
    const label = typeof value === "number" ? count(value) : String(value);
    const half = 4 * label.length;
    if (x(value) - half < free) continue;
    free = x(value) + half + 6;
    drawn.append(svg("text", { class: "tick middle", x: x(value), y: height - 26 }, label));
  }
  const lots = runs.map((run) => run.about.chance);
  const lot = lots[0];
  if (lots.every((other) => other === lot) && lot <= most)
    drawn.append(
      svg("line", { class: "ideal", x1: left, x2: width - right, y1: y(lot), y2: y(lot) }),
    );
  const axis = svg("text", { class: "tick middle", x: left + (width - left) / 2, y: height - 6 });
  axis.append(name);
  drawn.append(axis);
  methods.forEach(([method], i) => {
    if (!hidden.has(method)) drawn.append(curve(runs, method, i, methods.length, ticks, x, y));
  });
  return drawn;
}

// A line through the means of each value; every run is a point with its interval.
function curve(runs, method, i, n, ticks, x, y) {
  const shift = (i - (n - 1) / 2) * 2.5; // whiskers of several methods stand side by side
  const group = svg("g", { class: `curve c${i % 9}` });
  const line = [];
  for (const value of ticks) {
    const some = runs
      .filter((run) => run.sweep.value === value)
      .map((run) => methodOf(run, method))
      .filter(Boolean);
    if (!some.length) continue;
    const mean = some.reduce((sum, row) => sum + row.accuracy, 0) / some.length;
    line.push(`${x(value) + shift},${y(mean)}`);
    some.forEach((row, j) => {
      const where = x(value) + shift + (j - (some.length - 1) / 2) * 5;
      const [low, high] = row.interval;
      group.append(
        svg("line", { class: "whiskers", x1: where, x2: where, y1: y(low), y2: y(high) }),
        svg(
          "circle",
          { class: "dot", cx: where, cy: y(row.accuracy), r: 4 },
          svg(
            "title",
            {},
            `${row.label}, ${value}: ${percent(row.accuracy)}, ${percent(low)} to ${percent(high)}`,
          ),
        ),
      );
    });
  }
  group.prepend(svg("polyline", { class: "line", points: line.join(" ") }));
  return group;
}
