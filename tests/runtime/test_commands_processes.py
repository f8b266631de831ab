"""The commands as a person runs them: real processes on the built-in model (hardly widened: it is quick)."""

from __future__ import annotations

import json
import os
import signal
import socket
import urllib.request
from pathlib import Path

import pytest
from expertflow.runtime.bundle.file import read_bundle
from expertflow.runtime.service.listening import bind
from expertflow.tests.forking.forks import StageForks
from expertflow.tests.runtime.processes import MODEL, PATIENCE_S, ran, read_when_there, started

pytestmark = [
    pytest.mark.skipif(not MODEL.is_dir(), reason="the built-in model is not here"),
    pytest.mark.timeout(600),
]


def test_serve_generate_and_top(
    tmp_path: Path, runtime_base: Path, monkeypatch: pytest.MonkeyPatch, stage_forks: StageForks
) -> None:
    """A second terminal must find the engine, use it and see it; SIGTERM must end it in good order (I6).

    Every process is a new one, so what a module uses without importing it is missed here.
    """
    file, pid_file, fixed = tmp_path / "address", tmp_path / "pid", runtime_base / "fixed"
    with bind("127.0.0.1", 0) as free:
        port = str(free.getsockname()[1])
    files = ["--address-file", str(file), "--address", str(fixed), "--pid-file", str(pid_file), "--metrics", port]
    systemd = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    systemd.bind(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with stage_forks.afresh(), systemd, started("serve", "--model", str(MODEL), *files) as server:
        address = read_when_there(file, server)
        assert (address, pid_file.read_text()) == (str(fixed), f"{server.pid}\n")
        assert systemd.recv(100) == b"READY=1"
        second = ran("serve", "--model", str(MODEL), "--address", str(fixed))
        assert second.returncode == 2 and f"error: --address {fixed} has a running engine" in second.stderr
        one = ran("generate", "--address", address, "--prompt", "And it came to pass in", "--max-new-tokens", "3")
        assert one.returncode == 0 and one.stdout.strip() and "3 tokens" in one.stderr
        top = ran("top", "--once", "--json", "--address", address, "--interval-s", "1.2")
        reading = json.loads(top.stdout)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_S) as reply:
            metrics = reply.read().decode()
        bundle = ran("bundle", str(tmp_path / "engine.zip"), "--address", address, "--seconds", "0")
        wrong = ran("generate", "--address", address, "--prompt", "word " * 2000)
        server.send_signal(signal.SIGTERM)
        told, _ = server.communicate(timeout=PATIENCE_S)
        assert systemd.recv(100) == b"STOPPING=1"
    assert not pid_file.exists()
    assert {line["stage"] for line in reading["stages"]} >= {"compute", "loader", "scheduler", "supervisor"}
    assert reading["experts"]["hits"] + reading["experts"]["misses"] > 0
    assert 'expertflow_generation_tokens_total{device="cpu"} 3.0' in metrics
    assert bundle.returncode == 0 and read_bundle(tmp_path / "engine.zip").configurations[""]["model"]
    assert wrong.returncode == 2 and "--prompt 1" in wrong.stderr and "Traceback" not in wrong.stderr
    assert (server.returncode, f"Address: {address}" in told) == (0, True)
    assert not file.exists() and not os.path.exists(address)


def test_the_demonstration_survives_a_kill_and_proves_it(tmp_path: Path) -> None:
    """The main job of the product: text goes on after the death of compute, with the bits of the resident model."""
    timeline, model = tmp_path / "timeline.json", tmp_path / "widened"
    widened = ran("widen", str(MODEL), str(model), "--factor", "2")
    assert widened.returncode == 0, widened.stderr
    words = ["--count", "3", "--max-new-tokens", "12", "--kill", "compute", "--timeline", str(timeline)]
    done = ran("demo", "--model", str(model), *words)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "Killed compute" in done.stdout and "the text paused for" in done.stdout
    assert sum(line.startswith("[") for line in lines) == 3
    claims = [line for line in lines if line.startswith(("bit-identical to", "tokens equal to"))]
    assert len(claims) == 2 and all(": yes (" in line for line in claims)
    assert any(line.split()[0] == "compute" and line.split()[-3] == "1" for line in lines if line)
    assert {event["name"] for event in json.loads(timeline.read_text())} >= {"decode", "load"}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["serve"], 2, "no model given"),
        (["serve", "--model", "/etc/passwd"], 2, "is a file"),
        (["serve", "--model", str(MODEL), "--expert-memory", "1KB"], 2, "holds no expert"),
        pytest.param(["plan", "--model", str(MODEL), "--kv-memory", "1000000GB"], 1, "", marks=pytest.mark.slow),
        (["generate", "--address", "/nowhere", "--prompt", "a"], 1, "no engine"),
    ],
)
def test_what_is_wrong_is_said_without_a_traceback(words: list[str], code: int, said: str) -> None:
    done = ran(*words)
    assert done.returncode == code and said in done.stderr and "Traceback" not in done.stderr
