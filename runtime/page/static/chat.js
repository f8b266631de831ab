// A conversation with the model, streamed. Without a chat template it continues the text instead.
import { byId, make, setText } from "./dom.js";
import { events, keyHeaders } from "./feed.js";

const messages = [];
let chats = true;
let running = null;

export function startChat(keyOf) {
  byId("chat").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!running && byId("say").value.trim()) ask(byId("say").value, keyOf());
  });
  byId("say").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("chat").requestSubmit();
  });
  byId("stop").addEventListener("click", () => running?.abort());
  byId("forget").addEventListener("click", () => {
    messages.length = 0;
    byId("talk").replaceChildren();
  });
}

export function setChats(yes) {
  chats = yes;
  setText("say-label", yes ? "Message (Ctrl+Enter sends)" : "Text to continue; this model has no chat template (Ctrl+Enter sends)");
}

async function ask(text, key) {
  running = new AbortController();
  lock(true);
  turn("user", text);
  byId("say").value = "";
  const answer = turn("model", "");
  try {
    await stream(text, key, answer);
  } catch (error) {
    if (error.name !== "AbortError") turn("error", error.message);
  } finally {
    if (answer.textContent) messages.push({ role: "user", content: text }, { role: "assistant", content: answer.textContent });
    else answer.remove();
    running = null;
    lock(false);
  }
}

async function stream(text, key, answer) {
  const body = { max_tokens: Number(byId("max-tokens").value), temperature: Number(byId("temperature").value), stream: true };
  if (chats) body.messages = [...messages, { role: "user", content: text }];
  else body.prompt = text;
  const response = await fetch(chats ? "/v1/chat/completions" : "/v1/completions", {
    method: "POST",
    headers: { "content-type": "application/json", ...keyHeaders(key) },
    body: JSON.stringify(body),
    signal: running.signal,
  });
  if (!response.ok) throw new Error((await response.json()).error?.message ?? `status ${response.status}`);
  for await (const { data } of events(response)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(chunk.error.message);
    const choice = chunk.choices?.[0];
    answer.textContent += choice?.delta?.content ?? choice?.text ?? "";
    byId("talk").scrollTop = byId("talk").scrollHeight;
  }
}

function turn(kind, text) {
  const node = make("p", `turn ${kind}`, text);
  byId("talk").append(node);
  byId("talk").scrollTop = byId("talk").scrollHeight;
  return node;
}

function lock(on) {
  byId("send").disabled = on;
  byId("stop").disabled = !on;
}
