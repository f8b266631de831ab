"""The commands as a person runs them: real processes on the built-in model (hardly widened: it is quick)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import expertflow
import pytest

MODEL = Path(expertflow.__file__).parent / "examples" / "model"
PATIENCE_S = 300.0

pytestmark = [
    pytest.mark.skipif(not MODEL.is_dir(), reason="the built-in model is not here"),
    pytest.mark.timeout(600),
]


def command(*words: str) -> list[str]:
    return [sys.executable, "-P", "-m", "expertflow", *words]


def ran(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def _heed_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def started(*words: str) -> Iterator[subprocess.Popen[str]]:
    """As from a terminal: what a shell starts in the background ignores Ctrl-C, and so would all that pytest starts."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command(*words), stdout=pipe, stderr=pipe, text=True, preexec_fn=_heed_ctrl_c) as process:
        try:
            yield process
        finally:
            process.kill()


def read_when_there(file: Path, process: subprocess.Popen[str]) -> str:
    deadline_s = time.monotonic() + PATIENCE_S
    while not file.exists():
        assert process.poll() is None and time.monotonic() < deadline_s, process.communicate()
        time.sleep(0.1)
    return file.read_text(errors="replace").strip()  # a recording is no text


def test_serve_generate_and_top(tmp_path: Path) -> None:
    """A second terminal must find the engine, use it and see it; SIGTERM must end it in good order (I6)."""
    file = tmp_path / "address"
    with started("serve", "--model", str(MODEL), "--address-file", str(file)) as server:
        address = read_when_there(file, server)
        one = ran("generate", "--address", address, "--prompt", "And it came to pass in", "--max-new-tokens", "3")
        assert one.returncode == 0 and one.stdout.strip() and "3 tokens" in one.stderr
        top = ran("top", "--once", "--json", "--address", address, "--interval-s", "1.2")
        reading = json.loads(top.stdout)
        wrong = ran("generate", "--address", address, "--prompt", "word " * 2000)
        server.send_signal(signal.SIGTERM)
        told, _ = server.communicate(timeout=PATIENCE_S)
    assert {line["stage"] for line in reading["stages"]} >= {"compute", "loader", "scheduler", "supervisor"}
    assert reading["experts"]["hits"] + reading["experts"]["misses"] > 0
    assert wrong.returncode == 2 and "--prompt 1" in wrong.stderr and "Traceback" not in wrong.stderr
    assert (server.returncode, f"Address: {address}" in told) == (0, True)
    assert not file.exists() and not os.path.exists(address)


def test_ctrl_c_in_the_middle_of_generating(tmp_path: Path, runtime_base: Path) -> None:
    """It must stop the engine that was started for it, and say no more than that it stopped."""
    record = tmp_path / "record"
    prompts = [f"--prompt=In the beginning {number}" for number in range(40)]
    words = [*prompts, "--max-new-tokens", "400", "--record", str(record)]
    with started("generate", "--model", str(MODEL), *words) as process:
        read_when_there(record / "steps.1.msgpack", process)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert told.endswith("stopped\n") and "Traceback" not in told
    assert not list(runtime_base.glob("expertflow-*"))


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
