"""What the tests on a real Ray share: the model's texts, HTTP streams, the commands, and addresses of processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import expertflow
from expertflow.runtime.client import Client
from expertflow.runtime.engine.supervisor import Supervisor

ROOT = Path(expertflow.__file__).resolve().parent
MODEL = ROOT / "examples" / "model"
PROMPTS = [line for line in (ROOT / "examples" / "prompts.txt").read_text().splitlines() if line][:8]
ENGINE = {"expert_memory": "4MB", "compute_threads": 1, "dtype": "float32", "predictor": "none"}
OPTIONS = [f"--{name.replace('_', '-')}={value}" for name, value in ENGINE.items()]
TOKENS = 40
PATIENCE_S = 300.0


def undisturbed_texts() -> list[str]:
    """Return the texts of one engine: greedy ones and seeded ones in turn."""
    from expertflow.configs.schema import Config

    with Supervisor(Config.load(model=str(MODEL), **ENGINE)) as engine, Client(engine.address) as client:
        return [
            client.generate([prompt], max_new_tokens=TOKENS, seed=number, temperature=0.8 * (number % 2))[0].text
            for number, prompt in enumerate(PROMPTS)
        ]


def body_of(number: int, **more: Any) -> dict[str, Any]:
    return {
        "model": "model", "prompt": PROMPTS[number], "max_tokens": TOKENS, "temperature": 0.8 * (number % 2),
        "top_p": 1, "top_k": 0, "seed": number, **more,
    }  # fmt: skip


def get(url: str) -> int:
    """Return the status of an address; 0: nothing answers."""
    try:
        return urllib.request.urlopen(url, timeout=10).status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def wait_for(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not reached():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.2)


def open_stream(url: str, number: int) -> Any:
    data = json.dumps(body_of(number, stream=True)).encode()
    request = urllib.request.Request(f"{url}/v1/completions", data, {"content-type": "application/json"})
    return urllib.request.urlopen(request, timeout=PATIENCE_S)


def read_events(stream: Any) -> Iterator[str]:
    """Yield the texts of a stream; fails unless it ends as a whole one does."""
    for line in stream:
        if line.startswith(b"data: [DONE]"):
            return
        if line.startswith(b"data: "):
            event = json.loads(line[6:])
            assert "error" not in event, event
            yield event["choices"][0]["text"]
    raise AssertionError("the stream was cut off")


def texts_with(url: str, disturb: Callable[[], None]) -> list[str]:
    """Return the texts of streams that all run when `disturb` is called."""
    readers = [read_events(open_stream(url, number)) for number in range(len(PROMPTS))]
    begun = [next(reader) for reader in readers]
    disturb()
    return [text + "".join(reader) for text, reader in zip(begun, readers, strict=True)]


def write_lines(file: Path) -> None:
    """Write all prompts as a file of requests."""
    lines = [
        {"custom_id": str(number), "method": "POST", "url": "/v1/completions", "body": body_of(number)}
        for number in range(len(PROMPTS))
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def read_texts(results: Path) -> list[str]:
    """Return the texts of results by number; fails unless there is one for each prompt."""
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    texts = {row["custom_id"]: row["response"]["body"]["choices"][0]["text"] for row in rows}
    assert len(rows) == len(texts) == len(PROMPTS)
    return [texts[str(number)] for number in range(len(PROMPTS))]


def start_command(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "expertflow", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run_command(*arguments: str) -> tuple[int, str, str]:
    """Return exit code, output and errors of a command."""
    process = start_command(*arguments)
    output, errors = process.communicate(timeout=PATIENCE_S)
    return process.returncode, output, errors


def kill(pid: int) -> None:
    os.kill(pid, 9)


def listening_at(pids: set[int]) -> set[str]:
    """Return the addresses at which processes listen for TCP, in hexadecimal as the kernel shows them."""
    sockets = {link for pid in pids for link in _links(pid)}
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return {words[1].partition(":")[0] for words in lines if words[3] == "0A" and f"socket:[{words[9]}]" in sockets}


def _links(pid: int) -> Iterator[str]:
    """Yield what the descriptors of a process are, as long as it runs."""
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            yield os.readlink(entry)
    except OSError:
        return
