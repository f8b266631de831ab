// Reads the server's events. EventSource cannot send a key, so this reads the stream itself.

const RETRY_MS = [500, 1000, 2000, 5000];

export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += value;
    let end = rest.indexOf("\n\n");
    while (end >= 0) {
      const fields = {};
      for (const line of rest.slice(0, end).split("\n")) {
        const colon = line.indexOf(": ");
        if (colon > 0) fields[line.slice(0, colon)] = line.slice(colon + 2);
      }
      if (fields.data !== undefined) yield { name: fields.event ?? "message", data: fields.data };
      rest = rest.slice(end + 2);
      end = rest.indexOf("\n\n");
    }
  }
}

export const keyHeaders = (key) => (key ? { authorization: `Bearer ${key}` } : {});

// Why the server sends no events, in its own words.
class Refusal extends Error {}

// Calls on.event(name, content) for ever, on.lost(why) when the connection breaks or is refused, on.locked() when a key
// is asked for (then it ends: call it again with a key). Reads only while the page is seen: a browser has six connections
// to a server, for all of its pages, and nobody needs the figures of a hidden one.
export async function follow(key, on) {
  let failures = 0;
  for (;;) {
    await seen();
    const hidden = new AbortController();
    const stop = () => document.hidden && hidden.abort();
    const leave = () => hidden.abort();
    document.addEventListener("visibilitychange", stop);
    addEventListener("pagehide", leave);
    try {
      const response = await fetch("/watch/events", { headers: keyHeaders(key), cache: "no-store", signal: hidden.signal });
      if (response.status === 401) {
        on.locked();
        return;
      }
      if (!response.ok) throw new Refusal((await response.json()).error?.message ?? `status ${response.status}`);
      for await (const event of events(response)) {
        failures = 0;
        on.event(event.name, JSON.parse(event.data));
      }
      on.lost();
    } catch (error) {
      if (!hidden.signal.aborted) {
        console.info("the stream of events broke", error);
        on.lost(error instanceof Refusal ? error.message : undefined);
      }
    } finally {
      document.removeEventListener("visibilitychange", stop);
      removeEventListener("pagehide", leave);
    }
    await new Promise((resume) => setTimeout(resume, RETRY_MS[Math.min(failures, RETRY_MS.length - 1)]));
    failures += 1;
  }
}

function seen() {
  if (!document.hidden) return Promise.resolve();
  return new Promise((resolve) => {
    document.addEventListener("visibilitychange", () => document.hidden || resolve());
  });
}
