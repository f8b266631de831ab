// Puts what the server sends onto the page.
import { byId, draw, setText } from "./dom.js";
import { startBundle } from "./bundle.js";
import { follow } from "./feed.js";
import { number, share, size } from "./format.js";
import { redrawHeat, showHeat, startHeat } from "./heat.js";
import { addPoint, redrawHistory, setHistory, showHistory, startHistory, trendPath } from "./history.js";
import { setChats, startChat } from "./chat.js";
import { showPipeline } from "./pipeline.js";
import { showRequests } from "./requests.js";
import { showSteps } from "./steps.js";
import { startTheme } from "./theme.js";

let key = sessionStorage.getItem("expertflow-key") ?? "";
let engines = [];
let news = "";
let bundle = null;
let live = {};

const on = {
  event(name, content) {
    if (name === "history") live = content;
    if (name === "history" && !bundle) Object.entries(content).forEach(([engine, history]) => setHistory(engine, history));
    else if (name === "now") showNow(content);
  },
  lost: (why = "connection lost") => showState("lost", why),
  locked: askForKey,
};

function showNow(content) {
  byId("key-form").hidden = true;
  if (content.model) {
    setText("model", content.model);
    document.title = `${content.model} – ExpertFlow`;
    setChats(content.chats);
  }
  if (content.state === "loading") showState("loading", `loading: ${content.phase}, ${content.percent} %`, "loading");
  if (content.state === "ended") showState("ended", "the engine has ended");
  if (content.state === "silent") showState("lost", "the engine does not answer");
  if (!content.engines) return;
  engines = content.engines;
  if (!bundle) engines.forEach(addPoint);
  const down = engines.flatMap((engine) => engine.down.map((stage) => (engine.name ? `${engine.name} ${stage}` : stage)));
  if (down.length) showState("down", `${down.join(", ")} ${down.length > 1 ? "have" : "has"} ended, restarting`);
  else if (content.state === "running") showState("running", "running");
  if (!bundle) showEngine();
}

const shownEngines = () => bundle?.engines ?? engines;
const shownEngine = () => shownEngines().find((each) => each.name === byId("engine").value) ?? shownEngines()[0];

function showEngine() {
  offerEngines();
  const engine = shownEngine();
  if (!engine) return;
  showTiles(engine);
  showPipeline(engine);
  showSteps(engine.waits);
  showHeat(engine.heat);
  showRequests(engine.requests);
  showHistory(engine);
}

function offerEngines() {
  const names = shownEngines().map((engine) => engine.name);
  const choice = byId("engine");
  byId("engine-choice").hidden = names.length < 2;
  if ([...choice.options].map((option) => option.value).join() !== names.join()) {
    choice.replaceChildren(...names.map((name) => new Option(name, name)));
  }
}

function showTiles(engine) {
  const point = engine.point;
  setText("speed", number(point?.decode[0]));
  const trend = byId("speed-trend");
  trend.setAttribute("viewBox", "0 0 160 28");
  trend.setAttribute("preserveAspectRatio", "none");
  trend.replaceChildren(draw("path", { d: trendPath(engine.name, 160, 26), transform: "translate(0 1)" }));
  const hits = point?.hits[0] ?? ratio(engine.experts.hits, engine.experts.hits + engine.experts.misses);
  setText("hits", share(hits));
  setText("stall", share(engine.stages.find((stage) => stage.stage === "compute")?.stall_share));
  setText("overlap", share(engine.waits.overlap));
  setText("running", number(point?.running[0], 0));
  setText("queued", number(point?.waiting[0], 0));
  setText("memory", size(engine.pss_bytes));
  setText("experts-memory", `${size(engine.memory.experts_bytes)} of ${size(engine.experts.slots_bytes)}`);
  const limit = engine.memory.kv_budget_bytes;
  setText("kv-memory", limit ? `${size(engine.memory.kv_bytes)} of ${size(limit)}` : size(engine.memory.kv_bytes));
}

const ratio = (part, whole) => (whole ? part / whole : null);

// Only a change of state is told to a screen reader, not every second.
function showState(state, text, told = text) {
  const node = byId("state");
  node.dataset.state = state;
  setText(node, text);
  if (news !== told) {
    news = told;
    setText("news", told);
  }
}

function askForKey() {
  byId("key-form").hidden = false;
  setText("key-error", key ? "That key is wrong." : "");
  showState("loading", "waiting for a key");
  byId("key").focus();
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = byId("key").value.trim();
  sessionStorage.setItem("expertflow-key", key);
  follow(key, on);
});
byId("engine").addEventListener("change", showEngine);
addEventListener("resize", () => {
  if (shownEngine()) showSteps(shownEngine().waits);
  redrawHeat();
  redrawHistory();
});
startBundle(() => key, (content) => {
  bundle = content;
  Object.entries(content ? content.history : live).forEach(([engine, history]) => setHistory(engine, history));
  showEngine();
});
startHeat();
startHistory();
startChat(() => key);
startTheme(() => {
  redrawHeat();
});
follow(key, on);
