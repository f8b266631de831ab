"""Measure how long a text stands still in a reload, and how soon everything is gone when the supervisor is killed.

python -m expertflow.benchmarks.recovery --repeats 3 --out recovery.json

The pause of a reload is the longest time between two tokens of a text in whose middle it comes. A supervisor in its own
process is killed with SIGKILL while it serves; the time is until the last of its processes has ended.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import psutil
from expertflow import Client, Config, Supervisor
from rich.console import Console

from .machine import cpu_kind
from .report import write_json

EXAMPLE = Path(__file__).parents[1] / "examples" / "model"
TOKENS, BEFORE = 60, 20
RELOADS: dict[str, list[dict[str, str]]] = {
    "policy": [{"policy": "lru"}, {"policy": "popularity"}],
    "predictor": [{"predictor": "table"}, {"predictor": "auto"}],
    "memory": [{"expert_memory": "50%"}, {"expert_memory": "25%"}],
}
"""Changes that are made in turn."""


def reload_pause(engine: Supervisor, client: Client, changes: dict[str, str]) -> float:
    """Return the longest time between two tokens of a text, in seconds."""
    reload = Thread(target=engine.reload, kwargs=changes)
    gaps: list[float] = []
    last_s = 0.0
    for number, _ in enumerate(client.submit([[3, 5, 7]], max_new_tokens=TOKENS, eos_ids=[])):
        now_s = time.monotonic()
        gaps += [now_s - last_s] if last_s else []
        last_s = now_s
        if number == BEFORE:
            reload.start()
    reload.join()
    return round(max(gaps), 3)


def reload_pauses(repeats: int) -> dict[str, list[float]]:
    """Return what was changed -> its pauses."""
    with Supervisor(Config.load(model=EXAMPLE, expert_memory="25%")) as engine, Client(engine.address) as client:
        return {
            name: [reload_pause(engine, client, turns[number % 2]) for number in range(repeats)]
            for name, turns in RELOADS.items()
        }


def kill_time(address_file: Path) -> float:
    """Return the seconds from the kill of a serving supervisor to the end of its last process."""
    words = [sys.executable, "-P", "-m", "expertflow", "serve", "--model", str(EXAMPLE)]
    address_file.unlink(missing_ok=True)
    with subprocess.Popen([*words, "--address-file", str(address_file)], stdout=subprocess.DEVNULL) as served:
        while not address_file.exists():
            time.sleep(0.05)
        stages = psutil.Process(served.pid).children(recursive=True)
        served.kill()
        killed_s = time.monotonic()
        while any(stage.is_running() and stage.status() != psutil.STATUS_ZOMBIE for stage in stages):
            time.sleep(0.005)
        return round(time.monotonic() - killed_s, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("recovery.json"))
    options = parser.parse_args()
    pauses = reload_pauses(options.repeats)
    gone = [kill_time(options.out.with_suffix(".address")) for _ in range(options.repeats)]
    options.out.with_suffix(".address").unlink(missing_ok=True)
    result = {"machine": cpu_kind(), "reload_pause_s": pauses, "gone_after_kill_s": gone}
    write_json(options.out, result)
    Console().print(result)


if __name__ == "__main__":
    main()
