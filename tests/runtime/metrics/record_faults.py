"""Records what alerts are made of while a real engine has a fault, for `promtool test rules`.

    python -m expertflow.tests.runtime.metrics.record_faults tests/data/alerts.json

A sample a second. The test stretches a second to 15, as alerts look back for minutes: counts and ages in seconds grow
with it, so that rates and shares are those recorded.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from expertflow import Client, Config, Supervisor
from expertflow.runtime.metrics.collector import engine_metrics, exposition
from prometheus_client.parser import text_string_to_metric_families

MODEL = Path(__file__).parents[3] / "examples" / "model"
SECONDS = 44
NAMES = (
    "expertflow_engine_up",
    "expertflow_stage_up",
    "expertflow_stage_restarts_total",
    "expertflow_request_queue_age_seconds",
    "expertflow_expert_stall_seconds_total",
    "expertflow_expert_hits_total",
    "expertflow_expert_misses_total",
)
Series = dict[str, list[float]]


def main() -> None:
    faults = {
        "healthy": ({"expert_memory": "75%"}, idle),
        "stall": ({"expert_memory": "30%", "tier": "host", "link_rate": "3MB"}, idle),
        "low hit rate": ({"expert_memory": "7%", "predictor": "none", "hints": "off"}, idle),
        "restart storm": ({"expert_memory": "75%"}, kill_often),
        "queue age": ({"expert_memory": "75%", "batch_size": 1}, stop_compute),
    }
    recorded = {name: record(options, fault) for name, (options, fault) in faults.items()}
    Path(sys.argv[1]).write_text(json.dumps(recorded, indent=None).replace('], "', '],\n "') + "\n")


def record(options: dict[str, object], fault: Callable[[Supervisor, int], None]) -> Series:
    """Return series of a busy engine; the fault is told of each second."""
    config = Config.load("cpu-disk", **{"model": MODEL, "kv_memory": "64MiB", "batch_size": 4, **options})
    series: Series = {}
    with Supervisor(config) as engine, under_load(engine.address):
        time.sleep(2)
        for second in range(SECONDS):
            fault(engine, second)
            for key, value in samples(engine):
                series.setdefault(key, []).append(value)
            time.sleep(1)
        resume(engine)
    return series


def samples(engine: Supervisor) -> Iterator[tuple[str, float]]:
    for family in text_string_to_metric_families(exposition(engine_metrics(engine.snapshot())).decode()):
        for sample in family.samples:
            if sample.name in NAMES:
                labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
                yield f"{sample.name}{{{labels}}}", round(sample.value, 3)


@contextmanager
def under_load(address: str) -> Iterator[None]:
    """Keep the engine busy with short requests."""
    stopping = threading.Event()

    def run() -> None:
        with Client(address) as client:
            while not stopping.is_set():
                client.generate(["Once upon a time", "The cat", "In the"], max_new_tokens=12)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def idle(engine: Supervisor, second: int) -> None:
    """Do nothing: the configuration is the fault."""


def kill_often(engine: Supervisor, second: int) -> None:
    if second in (10, 18, 26, 34):
        engine.kill("predictor")


def stop_compute(engine: Supervisor, second: int) -> None:
    if second == 5:
        os.kill(engine.snapshot().stages["compute"].pid, signal.SIGSTOP)


def resume(engine: Supervisor) -> None:
    os.kill(engine.snapshot().stages["compute"].pid, signal.SIGCONT)


if __name__ == "__main__":
    main()
