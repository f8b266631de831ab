"""Read the counters of a running engine, and the processor time of its stages."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
from expertflow import Client

PUBLISHED_S = 1.3
"""Seconds after which every stage has published its counters."""


def read_counters(client: Client) -> dict[str, float]:
    """Return the counters of all stages together, once they are published; those that carry `_ns` are nanoseconds.

    `cpu_s` is the processor time of all stages in seconds, `busy_ns` the time that compute was at work.
    """
    time.sleep(PUBLISHED_S)
    stages = client.stats().stages
    counters = {name: float(value) for stage in stages.values() for name, value in stage.counters.items()}
    times = [psutil.Process(stage.pid).cpu_times() for stage in stages.values()]
    cpu_s = sum(spent.user + spent.system for spent in times)
    return {**counters, "busy_ns": float(stages["compute"].busy_ns), "cpu_s": cpu_s}


def subtract_counters(after: dict[str, float], before: dict[str, float]) -> dict[str, float]:
    """Return by how much each counter grew; one that was not there before grew from 0."""
    return {name: value - before.get(name, 0.0) for name, value in after.items()}


def thread_ns(pid: int) -> int:
    """Return the processor time of all threads of a process in nanoseconds."""
    return sum(int(file.read_text().split()[0]) for file in Path(f"/proc/{pid}/task").glob("*/schedstat"))
