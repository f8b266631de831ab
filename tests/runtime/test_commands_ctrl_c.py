"""Ctrl-C at any moment of a command: exit code 130, one line, no traceback, and nothing left behind."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import IO

import pytest
from expertflow.runtime.client.watching import Watcher
from expertflow.runtime.monitor.request_progress import count_requests
from expertflow.tests.runtime.processes import MODEL, PATIENCE_S, command, heed_ctrl_c, ran, read_when_there, started

pytestmark = [
    pytest.mark.skipif(not MODEL.is_dir(), reason="the built-in model is not here"),
    pytest.mark.timeout(600),
]
GENERATE = ["generate", "--model", str(MODEL), "--prompt", "In the beginning", "--max-new-tokens", "400"]
FIRST = "import 'expertflow.runtime' #"
"""What Python says, if told to, of the first import of `main`."""


def interrupted(process: subprocess.Popen[str], times: int = 1) -> str:
    """Press Ctrl-C, and return what the command says on stderr until it has ended."""
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    return process.communicate(timeout=PATIENCE_S)[1]


def wait_for(stream: IO[str] | None, text: str) -> str:
    """Return what the command has written to a stream up to this text."""
    assert stream is not None
    told, deadline_s = "", time.monotonic() + PATIENCE_S
    while text not in told:
        assert select.select([stream], [], [], deadline_s - time.monotonic())[0], told
        read = os.read(stream.fileno(), 65536).decode()
        assert read, told
        told += read
    return told


def check(process: subprocess.Popen[str], told: str, runtime_base: Path) -> None:
    assert process.returncode == 130, told
    assert told.endswith("stopped\n") and "Traceback" not in told, told
    assert not [*runtime_base.glob("*expertflow-*")]


@pytest.mark.parametrize("delay_s", [0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3])
def test_while_it_imports(delay_s: float, runtime_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hand is that fast after a typing error; a traceback through other people's modules says nothing.

    Before the first line of the package Python itself is starting, and answers for itself.
    """
    monkeypatch.setenv("PYTHONVERBOSE", "1")
    with started("serve", "--model", str(MODEL)) as process:
        wait_for(process.stderr, FIRST)
        time.sleep(delay_s)
        check(process, interrupted(process), runtime_base)


@pytest.mark.parametrize("words", [["--version"], ["plan", "--model", "/nowhere"]])
def test_while_python_ends(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The command is over, so its own exit code counts; the signal killed the process, without a word."""
    monkeypatch.setenv("PYTHONVERBOSE", "1")
    code = ran(*words).returncode
    with started(*words) as process:
        wait_for(process.stderr, "# clear sys.")
        interrupted(process)
        assert process.returncode == code


@pytest.mark.parametrize(
    ("moment", "delay_s"),
    [
        ("starting for", 0.0),
        pytest.param("surveying", 0.0, marks=pytest.mark.slow),
        pytest.param("surveying", 2.0, marks=pytest.mark.slow),
        pytest.param("surveying", 4.0, marks=pytest.mark.slow),
    ],
)
def test_while_it_loads(moment: str, delay_s: float, runtime_base: Path) -> None:
    with started(*GENERATE) as process:
        wait_for(process.stderr, moment)
        time.sleep(delay_s)
        check(process, interrupted(process), runtime_base)


@pytest.mark.slow
def test_in_the_prefill_and_twice(runtime_base: Path) -> None:
    """The link is so slow that the first step takes minutes. The second Ctrl-C must not break off the end."""
    address, slow = str(runtime_base / "engine"), ["--tier", "host", "--link-rate", "100KB"]
    with started("serve", "--model", str(MODEL), "--address", address, *slow) as server:
        wait_for(server.stdout, "Stop: Ctrl-C")
        with started("generate", "--address", address, "--prompt", "In the beginning " * 50) as process:
            with Watcher(address) as watcher:
                while not count_requests(watcher.snapshot()):
                    time.sleep(0.1)
            told = interrupted(process)
            assert process.returncode == 130, told
            assert told.endswith("stopped\n") and "Traceback" not in told
        told = interrupted(server, times=2)
        check(server, told, runtime_base)
        assert "once more stops at once" in told and not Path(address).exists()


def test_in_the_middle_of_generating(tmp_path: Path, runtime_base: Path) -> None:
    """It must stop the engine that was started for it, and say no more than that it stopped."""
    record = tmp_path / "record"
    prompts = [f"--prompt=In the beginning {number}" for number in range(40)]
    words = [*prompts, "--max-new-tokens", "400", "--record", str(record)]
    with started("generate", "--model", str(MODEL), *words) as process:
        read_when_there(record / "steps.1.msgpack", process)
        check(process, interrupted(process), runtime_base)


def test_while_it_reads_prompts(runtime_base: Path) -> None:
    words = command("generate", "--model", str(MODEL))
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True, preexec_fn=heed_ctrl_c) as process:
        assert "reading prompts from stdin" in wait_for(process.stderr, "\n")
        check(process, interrupted(process), runtime_base)
