// The stages in the order of the work, with the queue before each.
import { byId, make, setText } from "./dom.js";
import { number, share, size } from "./format.js";

const ORDER = ["scheduler", "predictor", "loader", "compute"];
const boxes = new Map();

export function showPipeline(engine) {
  for (const name of ORDER) {
    const stage = engine.stages.find((each) => each.stage === name);
    if (stage) update(boxes.get(name) ?? build(name), stage);
  }
}

function build(name) {
  const item = make("li", "stage");
  const queue = make("p", "queue");
  const waiting = make("b");
  queue.append(waiting, " queued ");
  const title = make("h3", "", name);
  const memory = make("span");
  title.append(memory);
  const rate = make("p", "rate");
  const value = make("b", "", "–");
  const unit = make("span");
  rate.append(value, " ", unit);
  const meter = make("div", "meter");
  const busy = make("i");
  const stalled = make("i");
  meter.append(busy, stalled);
  const shares = make("p");
  const wait = make("p", "wait");
  item.append(queue, title, rate, meter, shares, wait);
  byId("pipeline").append(item);
  const box = { item, waiting, memory, value, unit, busy, stalled, shares, wait };
  boxes.set(name, box);
  return box;
}

function update(box, stage) {
  box.item.dataset.down = String(stage.down);
  setText(box.waiting, stage.queue === null ? "–" : number(stage.queue, 0));
  setText(box.memory, size(stage.pss_bytes));
  setText(box.value, number(stage.rate_per_s));
  setText(box.unit, `${stage.work}/s`);
  box.busy.style.width = `${100 * (stage.busy_share ?? 0)}%`;
  box.stalled.style.width = `${stage.stage === "compute" ? 100 * (stage.stall_share ?? 0) : 0}%`;
  const waited = stage.stage === "compute" && stage.stall_share ? `, waiting ${share(stage.stall_share)}` : "";
  setText(box.shares, `busy ${share(stage.busy_share)}${waited}`);
  setText(box.wait, waitText(stage));
}

function waitText(stage) {
  const restarts = stage.restarts ? `, restarted ${stage.restarts === 1 ? "once" : `${stage.restarts} times`}` : "";
  if (stage.down) return "has ended and is started again";
  if (stage.waiting_on) return `waits for ${stage.waiting_on}${restarts}`;
  return `${(stage.busy_share ?? 0) > 0.02 ? "works" : "idle"}${restarts}`;
}
