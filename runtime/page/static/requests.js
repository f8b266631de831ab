// The requests that are open now.
import { byId, fillTable, setText } from "./dom.js";
import { number, time } from "./format.js";

export function showRequests(requests) {
  const rows = requests?.rows ?? [];
  byId("requests-box").hidden = rows.length === 0;
  if (!requests) setText("requests-text", "The scheduler has not reported yet.");
  else if (!requests.total) setText("requests-text", "None.");
  else if (requests.total > rows.length) setText("requests-text", `${number(requests.total, 0)}, the first ${rows.length} are shown.`);
  else setText("requests-text", `${requests.total} open.`);
  fillTable(byId("requests"), rows.map(cells), [2, 3, 4, 5]);
}

function cells([id, state, prompt, tokens, limit, age, priority, user]) {
  const first = priority ? `${state} (priority ${priority})` : state;
  return [id, first, number(prompt, 0), number(tokens, 0), number(limit, 0), time(age), user || "–"];
}
