// Light or dark: as the system says, or as the reader chose.
import { byId, setText } from "./dom.js";

const system = matchMedia("(prefers-color-scheme: dark)");
export const isDark = () => (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";

export function startTheme(onChange) {
  const chosen = localStorage.getItem("expertflow-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
  const show = () => {
    setText("theme", isDark() ? "Light" : "Dark");
    byId("theme").setAttribute("aria-label", isDark() ? "Change to light colours" : "Change to dark colours");
    onChange();
  };
  byId("theme").addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    localStorage.setItem("expertflow-theme", document.documentElement.dataset.theme);
    show();
  });
  system.addEventListener("change", show);
  show();
}
