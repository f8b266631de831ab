// The last hour as lines, with a cursor that looks back.
import { byId, draw, linePath, make, setText } from "./dom.js";
import { clock, number, share, size } from "./format.js";

const MAX_POINTS = 8000;
const HEIGHT = 110;
const FOOT = 16;
const GAP_NS = 15e9; // nothing is drawn where nothing was heard for so long
const HEAD = 6;
const rate = (bytes) => (bytes === null || bytes === undefined ? "–" : `${size(bytes)}/s`);
const count = (value) => number(value, 0);
const CHARTS = [
  { title: "Tokens a second", show: number, lines: [["output", (h) => h.decode], ["prompt", (h) => h.prefill]] },
  { title: "Compute’s time", show: share, top: 1, lines: [["busy", (h) => h.stages.compute?.busy_share],
    ["waiting for experts", (h) => h.stages.compute?.stall_share]] },
  { title: "Hits and foresight", show: share, top: 1, lines: [["hits", (h) => h.hits], ["predicted in time", (h) => h.recall]] },
  { title: "Experts loaded", show: rate, lines: [["bytes a second", (h) => h.loaded]] },
  { title: "Requests", show: count, lines: [["running", (h) => h.running], ["in the queue", (h) => h.waiting]] },
  { title: "Memory", show: size, lines: [["all processes", (h) => h.memory]] },
];
const kept = new Map();
let shown = null;
let minutes = 15;
let now = { time_ns: 0, wall_ms: 0 };

export function startHistory() {
  for (const chart of CHARTS) byId("charts").append(build(chart));
  for (const button of document.querySelectorAll("[data-minutes]")) {
    button.addEventListener("click", () => {
      minutes = Number(button.dataset.minutes);
      for (const other of document.querySelectorAll("[data-minutes]")) {
        other.setAttribute("aria-pressed", String(other === button));
      }
      redrawHistory();
    });
  }
  byId("look").addEventListener("input", redrawHistory);
}

export const setHistory = (name, history) => kept.set(name, history);

export function addPoint(engine) {
  const history = kept.get(engine.name);
  const point = engine.point;
  if (!point) return;
  if (!history) kept.set(engine.name, point);
  else if (point.time_ns[0] > (history.time_ns.at(-1) ?? 0)) append(history, point);
}

function append(history, point) {
  for (const [name, values] of Object.entries(point)) {
    if (name === "stages") {
      for (const [stage, columns] of Object.entries(values)) appendStage(history, stage, columns);
    } else {
      history[name].push(values[0]);
      if (history[name].length > MAX_POINTS) history[name].shift();
    }
  }
}

function appendStage(history, stage, columns) {
  const known = (history.stages[stage] ??= {});
  for (const [name, values] of Object.entries(columns)) {
    known[name] ??= Array(history.time_ns.length - 1).fill(null);
    known[name].push(values[0]);
    if (known[name].length > MAX_POINTS) known[name].shift();
  }
}

export function showHistory(engine) {
  shown = engine.name;
  now = engine;
  redrawHistory();
}

export function redrawHistory() {
  const history = kept.get(shown);
  if (!history || !history.time_ns.length) return;
  const last = history.time_ns.at(-1);
  const first = Math.max(last - minutes * 60e9, Math.min(history.time_ns[0], last - 60e9));
  const gap = GAP_NS / (last - first);
  const since = `${ago(last - first)} ago`;
  const begin = Math.max(0, history.time_ns.findIndex((ns) => ns >= first));
  const places = history.time_ns.slice(begin).map((ns) => (ns - first) / (last - first));
  const back = Number(byId("look").value) / 1000;
  const at = nearest(places, back);
  setText("look-time", back === 1 ? "now" : clock(wall(history.time_ns[begin + at])));
  for (const chart of CHARTS) show(chart, history, begin, places, { back, at, since, gap });
}

const ago = (ns) => (ns < 100e9 ? `${Math.round(ns / 1e9)} s` : `${Math.round(ns / 60e9)} min`);
const wall = (ns) => now.wall_ms + (ns - now.time_ns) / 1e6;

function nearest(places, place) {
  let best = places.length - 1;
  places.forEach((each, index) => {
    if (Math.abs(each - place) < Math.abs(places[best] - place)) best = index;
  });
  return best;
}

function build(chart) {
  const box = make("div", "chart");
  const title = make("h3", "", chart.title);
  chart.value = make("b", "", "–");
  title.append(chart.value);
  chart.picture = draw("svg", { role: "img", "aria-label": chart.title });
  const keys = make("p", "keys");
  chart.lines.forEach(([name], index) => keys.append(make("span", index ? "key second" : "key", name)));
  box.append(title, chart.picture, keys);
  return box;
}

function show(chart, history, begin, places, { back, at, since, gap }) {
  const columns = chart.lines.map(([, pick]) => (pick(history) ?? []).slice(begin));
  const width = Math.max(120, chart.picture.clientWidth);
  const highest = Math.max(...columns.flat().filter((value) => value !== null), 0);
  const top = chart.top ?? nice(highest);
  const room = HEIGHT - FOOT - HEAD;
  const drawn = columns.map((values, index) =>
    draw("path", { class: index ? "line second" : "line", d: linePath(places, values, top, width, room, gap) }));
  const lines = draw("g", { transform: `translate(0 ${HEAD})` });
  lines.append(draw("line", { class: "axis", x1: 0, x2: width, y1: room + 0.5, y2: room + 0.5 }), ...drawn);
  const cursor = back === 1 ? [] : [draw("line", { class: "cursor", x1: places[at] * width, x2: places[at] * width, y1: 0, y2: HEIGHT - FOOT })];
  chart.picture.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  chart.picture.replaceChildren(lines, ...cursor,
    draw("text", { x: 0, y: 11 }, chart.show(top)),
    draw("text", { x: 0, y: HEIGHT - 2 }, since),
    draw("text", { x: width, y: HEIGHT - 2, "text-anchor": "end" }, "now"));
  const values = columns.map((column) => chart.show(column[at] ?? null));
  setText(chart.value, values.join(" · "));
  const spoken = chart.lines.map(([name], index) => `${name} ${values[index]}`).join(", ");
  chart.picture.setAttribute("aria-label", `${chart.title}: ${spoken}`);
}

function nice(value) {
  if (value <= 0) return 1;
  const unit = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * unit).find((step) => step >= value);
}

export function trendPath(name, width, height) {
  const history = kept.get(name);
  if (!history) return "";
  const values = history.decode.slice(-60);
  const top = Math.max(...values.filter((value) => value !== null), 1e-9);
  return linePath(values.map((_, index) => (values.length > 1 ? index / (values.length - 1) : 1)), values, top, width, height);
}
