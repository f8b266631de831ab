"""The page before a group of engines, in a real Chromium."""

from __future__ import annotations

from pathlib import Path

import pytest
from expertflow import Client, Config, EngineGroup
from expertflow.tests.forking.forks import StageForks
from expertflow.tests.models.families import VOCABULARY, save_tiny
from expertflow.tests.runtime.fakes import wait_until
from expertflow.tests.runtime.http.local_server import LocalServer
from expertflow.tests.runtime.page.browser import Browser
from expertflow.tests.system.references import random_prompts

DEVICES = ["fake:1", "fake:2"]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_each_engine_of_a_group_has_its_figures(tmp_path: Path, stage_forks: StageForks) -> None:
    """A choice of engines appears, each has figures, and the death of a stage is told with its engine's name.

    A fork of compute could be back before the page asks again, so it is started afresh.
    """
    save_tiny("olmoe", tmp_path / "model")
    config = Config.load(model=tmp_path / "model", device=",".join(DEVICES), expert_memory="20%", batch_size=4)
    browser = Browser(tmp_path / "profile")
    try:
        with EngineGroup(config) as group, LocalServer(group.address) as server, Client(group.address) as client:
            browser.open(server.url.removesuffix("v1"))
            batch = client.submit(random_prompts(8, VOCABULARY), max_new_tokens=400, eos_ids=[])
            wait_until(lambda: browser.count("#engine option") == len(DEVICES))
            assert browser.run("return [...document.querySelectorAll('#engine option')].map((o) => o.value)") == DEVICES
            for device in DEVICES:
                browser.run(
                    "const choice = document.querySelector('#engine'); choice.value = arguments[0];"
                    "choice.dispatchEvent(new Event('change'))",
                    device,
                )
                wait_until(lambda: browser.text("#speed") not in ("–", "0.0"))
                assert browser.count("#pipeline .stage") == 4 and "experts are in memory" in browser.text("#heat-text")
            batch.cancel()
            with stage_forks.afresh():
                group.engines[DEVICES[1]].kill("compute")
                wait_until(lambda: f"{DEVICES[1]} compute" in browser.text("#news"))
                wait_until(lambda: browser.text("#news") == "running", timeout_s=120)
            assert browser.complaints() == []
            browser.open("about:blank")
    finally:
        browser.close()
