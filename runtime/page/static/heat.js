// Experts in memory: a picture, and the same as a table.
import { byId, fillTable, setText } from "./dom.js";
import { share } from "./format.js";
import { isDark } from "./theme.js";

const STATES = ["not in memory", "on its way", "in memory", "about to leave"];
const RAMPS = { light: [[182, 207, 233], [13, 59, 115]], dark: [[39, 64, 90], [169, 210, 255]] };
const GROUND = { light: "#e4e9ee", dark: "#2a333d" };
const COMING = "#e08a3c";
const MOST_USED = 5;
let newest = null;
let cell = { width: 1, height: 1 };

const bytes = (base64) => Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));

export function startHeat() {
  byId("heat-toggle").addEventListener("click", () => {
    const asTable = byId("heat-toggle").getAttribute("aria-pressed") !== "true";
    byId("heat-toggle").setAttribute("aria-pressed", String(asTable));
    byId("heat-picture").hidden = asTable;
    byId("heat-table-box").hidden = !asTable;
    redrawHeat();
  });
  byId("heat").addEventListener("pointermove", (event) => {
    if (newest === null) return;
    const expert = Math.min(newest.experts - 1, Math.floor(event.offsetX / cell.width));
    const layer = Math.min(newest.layers - 1, Math.floor(event.offsetY / cell.height));
    byId("heat").title = describe(layer, expert);
  });
}

export function showHeat(heat) {
  newest = heat && { ...heat, residence: bytes(heat.residence), use: bytes(heat.use) };
  if (newest === null) {
    setText("heat-text", "The loader has not reported yet.");
    return;
  }
  const held = newest.residence.filter((state) => state >= 2).length;
  const coming = newest.residence.filter((state) => state === 1).length;
  setText("heat-text", `${held.toLocaleString("en")} of ${newest.residence.length.toLocaleString("en")} experts are in `
    + `memory, ${coming} on their way. A row is a layer, a column an expert.`);
  redrawHeat();
}

export function redrawHeat() {
  if (newest === null) return;
  if (byId("heat-picture").hidden) showTable();
  else paint();
}

function describe(layer, expert) {
  const index = layer * newest.experts + expert;
  const use = newest.use.length ? `, used by ${share(newest.use[index] / 255)} of recent steps` : "";
  return `layer ${layer}, expert ${expert}: ${STATES[newest.residence[index]]}${use}`;
}

function paint() {
  const canvas = byId("heat");
  const width = canvas.clientWidth;
  const ratio = devicePixelRatio || 1;
  cell = { width: width / newest.experts, height: Math.max(3, Math.min(16, 320 / newest.layers)) };
  const height = Math.round(cell.height * newest.layers);
  canvas.style.height = `${height}px`;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  const theme = isDark() ? "dark" : "light";
  const gapX = cell.width > 5 ? 1 : 0;
  const gapY = cell.height > 5 ? 1 : 0;
  newest.residence.forEach((state, index) => {
    pen.fillStyle = state === 0 ? GROUND[theme] : state === 1 ? COMING : ramp(theme, newest.use[index] ?? 128);
    const x = (index % newest.experts) * cell.width;
    const y = Math.floor(index / newest.experts) * cell.height;
    pen.fillRect(x, y, cell.width - gapX, cell.height - gapY);
  });
}

function ramp(theme, use) {
  const [low, high] = RAMPS[theme];
  const part = Math.min(1, use / 200);
  return `rgb(${low.map((value, index) => Math.round(value + part * (high[index] - value))).join(" ")})`;
}

function showTable() {
  const rows = [];
  for (let layer = 0; layer < newest.layers; layer += 1) {
    const states = newest.residence.subarray(layer * newest.experts, (layer + 1) * newest.experts);
    const use = newest.use.subarray(layer * newest.experts, (layer + 1) * newest.experts);
    const most = [...use.keys()].sort((one, other) => use[other] - use[one]).slice(0, MOST_USED);
    rows.push([
      String(layer),
      `${states.filter((state) => state >= 2).length} of ${newest.experts}`,
      String(states.filter((state) => state === 1).length),
      use.length ? most.map((expert) => `${expert} (${share(use[expert] / 255)})`).join(", ") : "not counted",
    ]);
  }
  fillTable(byId("heat-table"), rows, [1, 2]);
}
