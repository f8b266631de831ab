"""A real Chromium without a window, and what a test asks of the page in it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from expertflow.tests.runtime.fakes import wait_until
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains

OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip
CONTRASTS = """
const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
  .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const over = (top, under) => top.slice(0, 3).map((v, i) => v * (top[3] ?? 1) + under[i] * (1 - (top[3] ?? 1)));
const ground = (node) => {
  const layers = [];
  for (let at = node; at; at = at.parentElement) layers.unshift(rgb(getComputedStyle(at).backgroundColor));
  return layers.reduce((under, top) => over(top, under), [255, 255, 255]);
};
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
const found = [];
while (walker.nextNode()) {
  const node = walker.currentNode.parentElement;
  const box = node.getBoundingClientRect();
  if (!walker.currentNode.textContent.trim() || !box.width || node.closest("noscript, script, .unseen")) continue;
  const style = getComputedStyle(node);
  const colour = rgb(node.ownerSVGElement ? style.fill : style.color);
  const [one, other] = [light(over(colour, ground(node))), light(ground(node))].sort((a, b) => b - a);
  found.push([(one + 0.05) / (other + 0.05), walker.currentNode.textContent.trim().slice(0, 40)]);
}
return found;
"""
FOCUSABLE = """
const all = document.querySelectorAll("a[href], button, input, select, textarea, summary, [tabindex='0']");
return [...all].filter((node) => !node.disabled && (node.offsetParent || node.className === "skip")
  && node.checkVisibility()).map((node) => node.outerHTML.slice(0, 60));
"""
FOCUSED = """
const node = document.activeElement;
const style = getComputedStyle(node);
return [node.outerHTML.slice(0, 60), style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2];
"""


class Browser:
    """One tab."""

    def __init__(self, profile: Path) -> None:
        """Start it. Skips the test where there is no Chromium, or no driver for it."""
        binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
        if binary is None or driver is None:
            pytest.skip("Chromium is not installed: apt-get install chromium chromium-driver")
        options = webdriver.ChromeOptions()
        options.binary_location = binary
        for option in (*OPTIONS, f"--user-data-dir={profile}"):
            options.add_argument(option)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        apart = {**os.environ, "XDG_RUNTIME_DIR": str(profile)}  # it leaves a folder there, where engines have theirs
        self.driver = webdriver.Chrome(options=options, service=Service(driver, env=apart))

    def open(self, url: str) -> None:
        self.driver.get(url)

    def close(self) -> None:
        self.driver.quit()

    def run(self, script: str, *values: Any) -> Any:
        return self.driver.execute_script(script, *values)  # pyright: ignore[reportUnknownMemberType]

    def text(self, selector: str) -> str:
        return self.run("return document.querySelector(arguments[0])?.textContent ?? ''", selector)

    def count(self, selector: str) -> int:
        return self.run("return document.querySelectorAll(arguments[0]).length", selector)

    def click(self, selector: str) -> None:
        self.run("document.querySelector(arguments[0]).click()", selector)

    def press(self, *keys: str) -> None:
        """Press keys, as a hand would."""
        ActionChains(self.driver).send_keys(*keys).perform()

    def await_text(self, selector: str, part: str) -> None:
        wait_until(lambda: part in self.text(selector))

    def set_width(self, width: int) -> None:
        """Lay the page out for a window of this width, in pixels of the page."""
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.command("Emulation.setDeviceMetricsOverride", metrics)

    def set_media(self, **features: str) -> None:
        """Set what the reader's system prefers, such as prefers_color_scheme."""
        named = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.command("Emulation.setEmulatedMedia", {"features": named})

    def command(self, name: str, values: dict[str, Any]) -> None:
        self.driver.execute_cdp_cmd(name, values)

    def contrasts(self) -> list[tuple[float, str]]:
        """Contrast of every visible text with its ground, and the text."""
        return [(ratio, text) for ratio, text in self.run(CONTRASTS)]

    def complaints(self) -> list[str]:
        """What the console has since the last call: errors, and violations of the policy."""
        entries: list[dict[str, str]] = self.driver.get_log("browser")  # pyright: ignore[reportUnknownMemberType]
        return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]

    def requested(self) -> list[str]:
        """The address of every request since the last call."""
        entries: list[dict[str, str]] = self.driver.get_log("performance")  # pyright: ignore[reportUnknownMemberType]
        messages = [json.loads(entry["message"])["message"] for entry in entries]
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]
