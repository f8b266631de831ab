// The last steps as bars: computing below, waiting above by reason; and the table of reasons.
import { byId, draw, make, setText } from "./dom.js";
import { share, time } from "./format.js";

const NOT_NOTED = "not noted";
const COLOURS = {
  "predicted too late": "#e08a3c",
  "never predicted": "#b4531a",
  "predicted too low": "#d3ac2c",
  dropped: "#9c7a3a",
  "link rate": "#8161bd",
  "no room": "#a13a6b",
  capacity: "#c23b3b",
  "wrong prediction on the link": "#2f8f83",
  "evicted for a wrong prediction": "#1f6a5f",
  "other prefetch on the link": "#7fb069",
  "failed before": "#5b2222",
  [NOT_NOTED]: "#98a3ae",
};
const colour = (reason) => COLOURS[reason] ?? COLOURS[NOT_NOTED];
const LEAST_HEIGHT = 190;
const FOOT = 18;
const HEAD = 14;
const OUTLIER = 5; // a step so many times as long as the median is cut off, so that the others can be seen

export function showSteps(waits) {
  showReasons(waits);
  const picture = byId("steps");
  picture.replaceChildren();
  if (!waits.steps.length) {
    setText("steps-text", "No step has run since the page was opened.");
    return;
  }
  const width = Math.max(200, picture.clientWidth);
  const height = Math.max(LEAST_HEIGHT, picture.clientHeight);
  picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const sorted = waits.steps.map((step) => step.took_ns).sort((one, other) => one - other);
  const longest = Math.min(sorted.at(-1), OUTLIER * sorted[sorted.length >> 1]);
  const pitch = Math.min(24, width / waits.steps.length);
  const scale = (height - FOOT - HEAD) / longest;
  const base = height - FOOT;
  waits.steps.forEach((step, index) => picture.append(bar(step, index * pitch, base, pitch, scale)));
  picture.append(draw("line", { class: "axis", x1: 0, x2: width, y1: base + 0.5, y2: base + 0.5 }));
  picture.append(draw("text", { x: 0, y: 10 }, sorted.at(-1) > longest ? `${time(longest)}, longer ones are cut off` : `up to ${time(longest)}`));
  picture.append(draw("text", { x: 0, y: height - 3 }, `step ${waits.steps[0].number}`));
  const end = Math.min(width, waits.steps.length * pitch);
  picture.append(draw("text", { x: end, y: height - 3, "text-anchor": "end" }, `step ${waits.steps.at(-1).number}`));
  setText("steps-text", summary(waits));
}

function bar(step, x, base, pitch, scale) {
  const group = draw("g");
  const width = Math.max(1, pitch - Math.min(2, pitch / 4));
  let y = base;
  const parts = [["compute", Math.max(0, step.took_ns - step.waited_ns)], ...Object.entries(step.waits),
    [NOT_NOTED, step.unexplained_ns]];
  for (const [name, ns] of parts) {
    const height = Math.min(ns * scale, y - HEAD);
    if (height < 0.3) continue;
    y -= height;
    const place = { x: x.toFixed(2), y: y.toFixed(2), width: width.toFixed(2), height: height.toFixed(2) };
    group.append(draw("rect", name === "compute" ? { class: "compute", ...place } : { fill: colour(name), ...place }));
  }
  const rows = `${step.rows} ${step.rows === 1 ? "row" : "rows"}`;
  group.append(draw("title", {}, `step ${step.number}, ${step.kind} of ${rows}: ${time(step.took_ns)}, `
    + `of which ${time(step.waited_ns)} waiting`));
  return group;
}

function summary(waits) {
  const took = waits.steps.map((step) => step.took_ns).sort((one, other) => one - other);
  const prefills = waits.steps.filter((step) => step.kind === "prefill").length;
  const kinds = prefills ? ` (${prefills} of them prefills)` : "";
  return `${waits.steps.length} steps${kinds}, median ${time(took[took.length >> 1])}, longest ${time(took.at(-1))}. `
    + `Blue is computing, the other colours are waiting, by reason.`;
}

function showReasons(waits) {
  const noted = Object.values(waits.reasons).reduce((sum, ns) => sum + ns, 0);
  const rows = Object.entries(waits.reasons).map(([name, ns]) => [name, ns / noted, waits.meanings[name] ?? ""]);
  const body = byId("why");
  while (body.rows.length > rows.length) body.deleteRow(-1);
  rows.forEach(([name, part, meaning], index) => {
    const row = body.rows[index] ?? reasonRow(body);
    row.cells[0].firstChild.style.background = colour(name);
    setText(row.cells[0].lastChild, name);
    setText(row.cells[1], share(part));
    setText(row.cells[2], meaning);
  });
  setText("longest", waits.longest.length ? waits.longest.join("\n") : "None.");
  setText("why-text", reasonSummary(waits, noted));
}

function reasonRow(body) {
  const row = body.insertRow();
  const name = row.insertCell();
  name.append(make("span", "swatch"), make("span"));
  row.insertCell().className = "number";
  row.insertCell();
  return row;
}

function reasonSummary(waits, noted) {
  if (!waits.steps.length) return "";
  const part = share(waits.took_ns ? waits.waited_ns / waits.took_ns : 0);
  const missing = waits.waited_ns ? 1 - noted / waits.waited_ns : 0;
  const sample = missing > 0.02 ? ` Reasons are noted at the start of every third second; ${share(missing)} of the waiting has none.` : "";
  return `These steps waited for experts for ${part} of their time.${sample}`;
}
