"""Times of what ends on purpose: pauses of reloads, and how soon everything is gone after the supervisor's kill."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Thread

import psutil
from expertflow import Client, Supervisor

from ..chaos.faults import STAGES
from ..models import EXAMPLES

BEFORE, AFTER = 20, 40
PATIENCE_S = 120.0
RELOADS: dict[str, list[dict[str, str]]] = {
    "policy": [{"policy": "lru"}, {"policy": "popularity"}],
    "predictor": [{"predictor": "table"}, {"predictor": "auto"}],
    "memory": [{"expert_memory": "50%"}, {"expert_memory": "25%"}],
}
"""Changes that are made in turn."""


def reload_pauses(engine: Supervisor, client: Client, repeats: int) -> dict[str, list[float]]:
    """Return what was changed -> the pauses of a text in whose middle that came, in seconds."""
    return {
        name: [_reload_pause(engine, client, turns[number % 2]) for number in range(repeats)]
        for name, turns in RELOADS.items()
    }


def _reload_pause(engine: Supervisor, client: Client, changes: dict[str, str]) -> float:
    reload = Thread(target=engine.reload, kwargs=changes)
    gaps: list[float] = []
    last_s = 0.0
    for number, _ in enumerate(client.submit([[3, 5, 7]], max_new_tokens=BEFORE + AFTER, eos_ids=[])):
        now_s = time.monotonic()
        gaps += [now_s - last_s] if last_s else []
        last_s = now_s
        if number == BEFORE:
            reload.start()
    reload.join()
    return max(gaps)


def end_times(repeats: int) -> dict[str, list[float]]:
    """Return times of a supervisor that is killed while it serves, in seconds.

    `gone`: until its last process has ended. `again`: until another is ready at the same address file.
    """
    gone, again = [], []
    with tempfile.TemporaryDirectory(prefix="efr") as folder:
        file = Path(folder) / "address"
        for _ in range(repeats):
            served, start_s = _start(file)
            again.append(start_s)
            gone.append(_kill(served))
        served, start_s = _start(file)
        again.append(start_s)
        served.terminate()
        served.wait(PATIENCE_S)
    return {"gone": gone, "again": again[1:]}


def _start(file: Path) -> tuple[subprocess.Popen[bytes], float]:
    """Start an engine; return it, and the seconds until it is ready."""
    begun_s, before = time.monotonic(), file.read_text() if file.exists() else ""
    words = ["--model", str(EXAMPLES / "model"), "--expert-memory", "25%", "--address-file", str(file)]
    command = [sys.executable, "-P", "-m", "expertflow", "serve", *words]
    served = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not file.exists() or file.read_text() in ("", before):
        if served.poll() is not None or time.monotonic() - begun_s > PATIENCE_S:
            raise RuntimeError(f"the engine did not start: {served.poll()}")
        time.sleep(0.02)
    return served, time.monotonic() - begun_s


def _kill(served: subprocess.Popen[bytes]) -> float:
    """Kill a supervisor; return the seconds until none of its processes is left."""
    stages = psutil.Process(served.pid).children(recursive=True)
    if len(stages) < len(STAGES):
        raise RuntimeError(f"the engine has {len(stages)} processes")
    served.kill()
    killed_s = time.monotonic()
    while any(map(_is_alive, stages)):
        if time.monotonic() - killed_s > PATIENCE_S:
            raise RuntimeError("processes stay after the supervisor's kill")
        time.sleep(0.005)
    served.wait()
    return time.monotonic() - killed_s


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def rounded(values: Sequence[float]) -> list[float]:
    """Return seconds to the millisecond."""
    return [round(value, 3) for value in values]
