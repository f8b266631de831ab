"""A bundle of a real engine: `why` and the history say what they say of the engine, and no text of a request is in."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from expertflow import Client, Config, Request, Supervisor
from expertflow.runtime.bundle.file import read_bundle
from expertflow.runtime.commands.running.bundle import Bundle as BundleCommand
from expertflow.runtime.commands.running.why import Why
from expertflow.tests.runtime.fakes import wait_until

MODEL = Path(__file__).parents[2] / "examples" / "model"
SECRETS = ("Zanzibar", "Marguerite")
"""Words of a prompt, and a name of a user."""


def explain(file: Path, capsys: pytest.CaptureFixture[str]) -> object:
    capsys.readouterr()
    assert Why(timeline=file, json=True).run() == 0
    return json.loads(capsys.readouterr().out)


def everything_in(file: Path) -> str:
    with zipfile.ZipFile(file) as archive:
        return "\n".join(archive.read(name).decode() for name in archive.namelist())


@pytest.mark.timeout(240)
def test_a_bundle_says_what_the_engine_says_and_keeps_its_clients_secrets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    timeline, file = tmp_path / "timeline.json", tmp_path / "engine.zip"
    config = Config.load("cpu-disk", model=MODEL, expert_memory="25%", kv_memory="64MiB", timeline=str(timeline))
    with Supervisor(config) as engine, Client(engine.address) as client:
        prompt = f"Once upon a time in {SECRETS[0]} there was a cat"
        done = client.generate([Request(prompt, user=SECRETS[1])], max_new_tokens=12)
        wait_until(lambda: len(client.history()[""]) > 2)
        running = client.submit([Request(prompt, user=SECRETS[1])], max_new_tokens=200, eos_ids=[])
        assert BundleCommand(file=file, address=engine.address, seconds=1).run() == 0
        live = client.history()[""]
        running.cancel()
    bundle, text = read_bundle(file), everything_in(file)
    assert bundle.history[""] == live[: len(bundle.history[""])] and sum(point.hits for point in live) > 0
    written = tmp_path / "prefix.json"
    written.write_bytes(timeline.read_bytes()[: len(bundle.timeline)])
    assert explain(file, capsys) == explain(written, capsys)
    assert bundle.activity[""].requests is not None and bundle.activity[""].requests.total == 1
    for secret in (*SECRETS, done[0].text.strip()):
        assert secret and secret not in text
    for ids in (done[0].prompt_ids, done[0].token_ids):
        assert json.dumps(ids) not in text and json.dumps(ids, separators=(",", ":")) not in text


@pytest.mark.timeout(240)
def test_why_explains_the_seconds_for_which_an_engine_was_watched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody starts an engine with a timeline before there is something to explain."""
    file = tmp_path / "engine.zip"
    config = Config.load("cpu-disk", model=MODEL, expert_memory="25%", kv_memory="64MiB")
    with Supervisor(config) as engine, Client(engine.address) as client:
        running = client.submit(["Once upon a time"], max_new_tokens=400, eos_ids=[])
        assert BundleCommand(file=file, address=engine.address, seconds=4).run() == 0
        running.cancel()
    report = explain(file, capsys)
    assert isinstance(report, dict) and report["steps"] > 0 and report["waits"] > 0
