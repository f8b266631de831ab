"""The log of `expertflow serve`: every process tells its events, and no prompt is in it unless it was asked for."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from expertflow import Client
from expertflow.runtime.client.watching import Watcher
from expertflow.runtime.remote.keys import new_keys
from expertflow.tests.forking.forks import StageForks
from expertflow.tests.runtime.fakes import wait_until
from expertflow.tests.runtime.http.test_real_engine import free_port
from expertflow.tests.runtime.processes import MODEL, command

MARKER = "zebramarker"
BODIES: list[tuple[str, dict[str, Any]]] = [
    ("completions", {"prompt": f"The {MARKER}", "max_tokens": 4}),
    ("chat/completions", {"messages": [{"role": "user", "content": MARKER}], "max_tokens": 4}),
    ("completions", {"prompt": f"The {MARKER}" * 2000, "max_tokens": 4}),
    ("completions", {"prompt": {"text": MARKER}}),
    ("completions", {"prompt": f"The {MARKER}", "max_tokens": MARKER}),
    ("chat/completions", {"messages": [{"role": MARKER, "content": MARKER}]}),
    ("chat/completions", {"messages": [{"role": "user", "content": [{"type": MARKER}]}]}),
    ("completions", {"prompt": "The", "stop": [MARKER], "logit_bias": {MARKER: 1}}),
    ("completions", {"prompt": "The", "extra_body": {"guided_regex": f"({MARKER}"}, "structured_outputs": MARKER}),
]


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.slow)], ids=["hidden", "asked for"])
def run(
    request: pytest.FixtureRequest, tmp_path: Path, stage_forks: StageForks
) -> Iterator[tuple[bool, list[dict[str, Any]], str]]:
    """A server that gets good and bad requests and loses compute; its log, and all that its processes wrote.

    Where nothing may be told, its processes are new ones: forks have no command lines of their own.
    """
    with nullcontext() if request.param else stage_forks.afresh():
        yield serve_and_listen(request.param, tmp_path)


def serve_and_listen(log_prompts: bool, tmp_path: Path) -> tuple[bool, list[dict[str, Any]], str]:
    port, log = free_port(), tmp_path / "log"
    words = ["serve", "--model", str(MODEL), "--http", str(port), "--compute-threads", "1", "--log-file", str(log)]
    new_keys(tmp_path / "keys")
    words += ["--address", "tcp://127.0.0.1:0", "--keys", str(tmp_path / "keys" / "server")]
    words += ["--timeline", str(tmp_path / "timeline"), "--log-format", "json", *["--log-prompts"] * log_prompts]
    process = subprocess.Popen(command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        lines = [line for line in iter(process.stdout.readline, "Stop: Ctrl-C\n") if line]
        address = next(line.split()[-1] for line in lines if line.startswith("Address:"))
        ask(port)
        with Client(address) as client, Watcher(address) as watcher:
            watcher.kill("compute")
            wait_until(lambda: watcher.snapshot().restarts.get("compute") == 1 and not watcher.snapshot().down, 200)
            client.generate([f"The {MARKER}"], max_new_tokens=2)
            seen = [ask_remotely(lines, tmp_path / "keys" / "client", watcher)]
            seen.append(httpx2.get(f"http://127.0.0.1:{port}/metrics", timeout=240).text)
            seen += [file.read_bytes().decode(errors="replace") for file in Path(address).rglob("*") if file.is_file()]
        raw = "".join([*seen, *command_lines(process.pid)])
        process.send_signal(signal.SIGTERM)
        out, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    finally:
        process.kill()
        process.communicate()
    text = log.read_text()
    written = text + raw + (tmp_path / "timeline").read_text() + out + errors + "".join(lines)
    return log_prompts, [json.loads(line) for line in text.splitlines()], written


def ask_remotely(lines: list[str], keys: Path, watcher: Watcher) -> str:
    """Send good and bad requests over TCP; return what a remote watcher and a bundle see of them."""
    remote = next(line.split()[-1] for line in lines if line.startswith("Remote:"))
    with Client(remote, keys=keys) as client, Watcher(remote, keys) as other:
        other.activity()
        running = client.submit([f"The {MARKER}"], max_new_tokens=200, eos_ids=[])
        running.wait_until_started(200)
        refused = client.submit([f"The {MARKER}" * 2000, MARKER * 9000]).results(return_errors=True)
        assert all(isinstance(each, Exception) for each in refused)
        wait_until(lambda: (told := other.activity()[""].requests) is not None and told.total == 1, 200)
        seen = [other.snapshot(), other.history(), other.activity(), watcher.activity()]
        running.cancel()
    return repr(seen)


def command_lines(pid: int) -> list[str]:
    """What every user of the machine sees of a process and its children."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return [" ".join(process.cmdline()) for process in family]


def ask(port: int) -> None:
    for path, body in BODIES:
        answer = httpx2.post(f"http://127.0.0.1:{port}/v1/{path}", json=body, timeout=240)
        assert answer.status_code in (200, 400, 404, 422), answer.text


@pytest.mark.timeout(900)
def test_every_process_tells_its_events_and_prompts_only_if_asked(
    run: tuple[bool, list[dict[str, Any]], str],
) -> None:
    asked_for, lines, everything = run
    stages = {line["stage"] for line in lines}
    assert {"supervisor", "scheduler", "predictor", "loader", "compute"} <= stages
    assert all({"time", "level", "stage", "pid", "event"} <= line.keys() for line in lines)
    ready = [(line["stage"], line["epoch"]) for line in lines if line["event"].startswith("ready")]
    assert ("compute", 2) in ready and len(ready) == 5, "compute came back as its second start"
    events = " ".join(line["event"] for line in lines)
    for words in ("budgets: 192 of 192 experts", "expert memory: 14.0 MB: all 192", "every stage is ready", "SIGKILL"):
        assert words in events
    assert (MARKER in everything) == asked_for
    assert any("prompt [" in line["event"] for line in lines) == asked_for
