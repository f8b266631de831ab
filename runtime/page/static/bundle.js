// A support bundle in place of the live engine: the server reads it, keeps nothing, and says what the page shows.
import { byId, setText } from "./dom.js";
import { keyHeaders } from "./feed.js";

// Calls show(content) with the contents of a bundle, show(null) to go back to the live engine.
export function startBundle(keyOf, show) {
  byId("bundle").addEventListener("change", () => {
    const file = byId("bundle").files[0];
    if (file) open(file, keyOf(), show);
  });
  byId("bundle-close").addEventListener("click", () => {
    byId("bundle-notice").hidden = true;
    byId("bundle").value = "";
    byId("bundle").focus();
    show(null);
  });
}

async function open(file, key, show) {
  setText("bundle-error", "");
  try {
    const headers = { "content-type": "application/zip", ...keyHeaders(key) };
    const response = await fetch("/watch/bundle", { method: "POST", headers, body: file });
    const content = await response.json();
    if (!response.ok) throw new Error(content.error?.message ?? `status ${response.status}`);
    const written = new Date(content.written).toLocaleString("en-GB");
    setText("bundle-name", `${file.name}: the engine as it was on ${written}, by version ${content.version}.`);
    byId("bundle-notice").hidden = false;
    byId("bundle-close").focus();
    show(content);
  } catch (error) {
    setText("bundle-error", error.message);
  }
}
