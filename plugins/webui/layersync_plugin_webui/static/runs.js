// Draws the curves of the chosen runs and keeps them up to date. Names of runs and metrics are inserted as text only.
"use strict";

const charts = document.getElementById("charts");
const message = document.getElementById("message");
const legend = document.getElementById("legend");
const smoothing = document.getElementById("smoothing");
const drawn = new Map(); // metric -> its chart
const EVERY = 2000;
const HEIGHT = 220;
const STEPS = [1, 2, 5].flatMap((digit) => [...Array(10).keys()].map((zeros) => digit * 10 ** zeros)).sort((a, b) => a - b);
const widths = new ResizeObserver((changed) => {
  for (const { target } of changed) {
    const { plot } = drawn.get(target.dataset.metric) ?? {};
    if (plot && plot.width !== width(target)) plot.setSize({ width: width(target), height: HEIGHT });
  }
});
let latest = [];
let asked = 0;

function chosen() {
  if (charts.dataset.only) return [charts.dataset.only];
  const boxes = document.querySelectorAll('#list [name="show"]');
  return [...boxes].filter((box) => box.type === "hidden" || box.checked).map((box) => box.value);
}

function axis() {
  return document.querySelector('[name="axis"]:checked').value;
}

// An exponential moving average, bias-corrected so that the first points are not pulled to zero.
function smooth(values, weight) {
  let sum = 0;
  let share = 0;
  return values.map((value) => {
    if (value === null || weight === 0) return value;
    sum = weight * sum + (1 - weight) * value;
    share = weight * share + (1 - weight);
    return sum / share;
  });
}

function width(box) {
  return Math.max(200, box.clientWidth - 18);
}

function colour(number) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--c${number}`).trim();
}

function shown(value) {
  return value === null || value === undefined ? "–" : Number(value.toPrecision(5)).toString();
}

// A step keeps all its digits. Western digits without separators, as in logs and settings, whatever the browser prefers.
function point(at) {
  return axis() === "steps" ? String(at) : shown(at);
}

// Metric -> the lines of the runs that have it; the most important metrics come first.
function byMetric() {
  const found = new Map();
  const ranks = new Map();
  const along = axis();
  for (const run of latest) {
    for (const curve of run.curves) {
      const usable = curve[along].map((at, place) => [at, place]).filter(([at]) => at !== null);
      if (!usable.length) continue;
      const values = smooth(curve.values, Number(smoothing.value));
      if (!found.has(curve.metric)) found.set(curve.metric, []);
      ranks.set(curve.metric, curve.rank);
      found.get(curve.metric).push({
        run,
        data: [usable.map(([at]) => at), usable.map(([, place]) => values[place])],
      });
    }
  }
  return new Map([...found].sort(([one], [other]) => ranks.get(one) - ranks.get(other) || (one < other ? -1 : 1)));
}

function remove(metric) {
  widths.unobserve(drawn.get(metric).box);
  drawn.get(metric).plot.destroy();
  drawn.get(metric).box.remove();
  drawn.delete(metric);
}

function make(metric, lines, key, data) {
  const box = document.createElement("div");
  box.className = "chart";
  box.dataset.metric = metric;
  const title = document.createElement("h3");
  title.textContent = metric;
  const readout = document.createElement("output");
  box.append(title, readout);
  charts.append(box);
  const ink = getComputedStyle(document.body).color;
  const line = { stroke: ink, grid: { stroke: colour("6"), width: 0.3 }, ticks: { stroke: colour("6"), width: 0.3 } };
  const values = (_plot, ticks) => ticks.map(shown);
  const plot = new uPlot(
    {
      width: width(box),
      height: HEIGHT,
      legend: { show: false },
      scales: { x: { time: false } },
      axes: [
        axis() === "steps"
          ? { ...line, label: charts.dataset.step, labelSize: 20, incrs: STEPS, values: (_plot, ticks) => ticks.map(point) }
          : { ...line, label: charts.dataset.minutes, labelSize: 20, values },
        { ...line, size: 64, values },
      ],
      series: [
        {},
        ...lines.map(({ run, data: [at] }) => ({
          stroke: colour(run.colour),
          width: 1.8,
          spanGaps: true,
          points: { show: at.length < 3 },
        })),
      ],
      hooks: {
        setCursor: [
          (plot) => {
            const place = plot.cursor.idx;
            const at = place === null || place === undefined ? null : plot.data[0][place];
            readout.textContent =
              at === null ? "" : `${point(at)}: ${plot.data.slice(1).map((values) => shown(values[place])).join(" · ")}`;
          },
        ],
      },
    },
    data,
    box,
  );
  drawn.set(metric, { plot, box, key });
  widths.observe(box);
}

function draw() {
  const metrics = byMetric();
  for (const metric of [...drawn.keys()]) if (!metrics.has(metric)) remove(metric);
  for (const [metric, lines] of metrics) {
    const key = JSON.stringify([axis(), lines.map(({ run, data }) => [run.id, run.colour, data[0].length < 3])]);
    const data = lines.length === 1 ? lines[0].data : uPlot.join(lines.map((line) => line.data));
    if (drawn.has(metric) && drawn.get(metric).key !== key) remove(metric);
    if (drawn.has(metric)) drawn.get(metric).plot.setData(data);
    else make(metric, lines, key, data);
  }
  [...metrics.keys()].forEach((metric, place) => {
    const { box } = drawn.get(metric);
    if (charts.children[place] !== box) charts.insertBefore(box, charts.children[place] ?? null);
  });
  legend.replaceChildren(
    ...latest.map((run) => {
      const item = document.createElement("li");
      item.className = `colour-${run.colour}`;
      item.textContent = run.name;
      return item;
    }),
  );
  message.textContent = metrics.size ? "" : charts.dataset[chosen().length ? "nothing" : "none"];
}

async function refresh() {
  const mine = ++asked;
  const query = new URLSearchParams(chosen().map((id) => ["show", id]));
  try {
    const answer = await fetch(`${charts.dataset.source}?${query}`);
    if (!answer.ok) throw new Error(answer.statusText);
    const { runs } = await answer.json();
    if (mine !== asked) return; // a later choice has been requested
    latest = runs;
    message.classList.remove("lost");
    draw();
  } catch {
    message.textContent = charts.dataset.lost;
    message.classList.add("lost"); // visible wherever the reader is on the page
  }
}

async function keepUp() {
  if (!document.hidden) await refresh();
  setTimeout(keepUp, EVERY);
}

function redrawAll() {
  for (const metric of [...drawn.keys()]) remove(metric);
  draw();
}

document.addEventListener("change", (event) => {
  if (event.target.name === "show") {
    document.getElementById("follow")?.remove(); // from now on runs are not selected automatically
    refresh();
  }
  if (event.target.name === "axis") draw();
});
smoothing.addEventListener("input", draw);
document.addEventListener("visibilitychange", () => document.hidden || refresh());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);
keepUp();
