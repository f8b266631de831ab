"""`expertflow batch` as a process on the built-in model: killed without warning, resumed, and equal in every byte."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import expertflow
import pytest
from expertflow.configs.schema import Config
from expertflow.runtime.client.watching import Watcher
from expertflow.runtime.engine.supervisor import Supervisor

MODEL = Path(expertflow.__file__).parent / "examples" / "model"
PATIENCE_S = 300.0
LINES = 24

pytestmark = [pytest.mark.skipif(not MODEL.is_dir(), reason="the built-in model is not here"), pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def address(runtime_base: Path) -> Iterator[str]:
    config = Config.load(model=MODEL, batch_size=8, compute_threads=1, batch_invariant=True)
    with Supervisor(config) as engine:
        yield engine.address


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    """Requests of both kinds of prompt, drawn at random, among them lines that cannot run."""
    text = (MODEL.parent / "held_out.txt").read_text()
    lines = []
    for number in range(LINES):
        start = 97 * number
        body = {"prompt": text[start : start + 40], "max_tokens": 12, "temperature": 1.0}
        lines.append({"custom_id": f"request {number}", "method": "POST", "url": "/v1/completions", "body": body})
    lines[7]["body"] = {"prompt": [10**6]}
    file = tmp_path / "in.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines[:20]) + "not JSON\n")
    with file.open("a") as opened:
        opened.writelines(json.dumps(line) + "\n" for line in lines[20:])
    return file


def command(requests: Path, results: Path, address: str, *more: str) -> list[str]:
    words = ["batch", str(requests), str(results), "--address", address, "--batch-invariant", *more]
    return [sys.executable, "-P", "-m", "expertflow", *words]


def run(requests: Path, results: Path, address: str, *more: str) -> subprocess.CompletedProcess[str]:
    words = command(requests, results, address, *more)
    return subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def kill_after(words: list[str], results: Path, lines: int) -> None:
    """Start the command and kill it with SIGKILL when so many results are there."""
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as process:
        deadline_s = time.monotonic() + PATIENCE_S
        while not results.exists() or results.read_bytes().count(b"\n") < lines:
            assert process.poll() is None and time.monotonic() < deadline_s
            time.sleep(0.005)
        process.kill()


def test_a_killed_batch_is_resumed_and_equals_one_left_alone(address: str, requests: Path, tmp_path: Path) -> None:
    """Killed twice, its last line torn, compute killed under the third run: line for line the undisturbed results."""
    results, errors = tmp_path / "out.jsonl", tmp_path / "out.errors.jsonl"
    for lines in (3, 10):
        kill_after(command(requests, results, address), results, lines)
    with results.open("ab") as file:
        file.write(b'{"id":"batch_req_1","custom_id":"request 1')
    before, reported = (file.read_bytes().count(b"\n") for file in (results, errors))
    assert 10 <= before < LINES
    with Watcher(address) as watcher:
        watcher.kill("compute")
    ended = run(requests, results, address, "--sort", "input")
    assert ended.returncode == 2, ended.stderr  # two lines could not run
    assert f", {before + reported} were done before" in ended.stderr

    alone = tmp_path / "alone.jsonl"
    assert run(requests, alone, address, "--sort", "input", "--order", "input").returncode == 2
    assert results.read_bytes() == alone.read_bytes()
    assert errors.read_bytes() == (tmp_path / "alone.errors.jsonl").read_bytes()
    ids = [json.loads(line)["custom_id"] for line in results.read_bytes().splitlines()]
    assert ids == [f"request {number}" for number in range(LINES) if number != 7]
    assert [json.loads(line)["line"] for line in errors.read_bytes().splitlines()] == [8, 21]

    again = run(requests, results, address)
    assert again.returncode == 2 and again.stderr.startswith(f"0 lines, {LINES + 1} were done before")
    refused = run(requests, results, address, "--served-model-name", "x", "--errors", str(tmp_path / "other"))
    assert refused.returncode == 2 and "another job" in refused.stderr


def test_stdin_and_stdout(address: str, requests: Path) -> None:
    """A pipe gets results and errors as they end, and nothing else."""
    words = command(Path("-"), Path("-"), address)
    with requests.open("rb") as stdin:
        done = subprocess.run(words, stdin=stdin, capture_output=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 2
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == LINES + 1 and sum("line" in line for line in lines) == 2


def test_a_check_runs_nothing(requests: Path, tmp_path: Path) -> None:
    """It needs the model's folder, and no engine."""
    words = [sys.executable, "-P", "-m", "expertflow", "batch", str(requests), "--check", "--model", str(MODEL)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 2 and f"{LINES + 1} lines, 2 that cannot run" in done.stderr
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == [
        f"{requests}, line 8",
        f"{requests}, line 21",
    ]


@pytest.mark.slow
def test_an_engine_that_is_gone_stops_the_batch(requests: Path, tmp_path: Path) -> None:
    """Exit code 1, what has ended stays; an engine of the command's own goes on with it."""
    results = tmp_path / "out.jsonl"
    config = Config.load(model=MODEL, batch_size=4, compute_threads=1)
    with Supervisor(config) as engine:
        words = command(requests, results, engine.address)
        words.remove("--batch-invariant")
        process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
        while not results.exists() or results.read_bytes().count(b"\n") < 5:
            assert process.poll() is None
            time.sleep(0.005)
    stderr = process.communicate(timeout=PATIENCE_S)[1]
    assert process.returncode == 1 and "error: " in stderr, stderr
    before = results.read_bytes()
    assert 5 <= before.count(b"\n") < LINES
    words = ["batch", str(requests), str(results), "--model", str(MODEL), "--compute-threads", "1"]
    own = [sys.executable, "-P", "-m", "expertflow", *words]
    done = subprocess.run(own, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 2, done.stderr
    assert results.read_bytes().startswith(before) and results.read_bytes().count(b"\n") == LINES - 1
