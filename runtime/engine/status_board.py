"""Last statistics and memory of all stages, for snapshots (I7)."""

from __future__ import annotations

import os
import time
from pathlib import Path
from threading import Lock

from ...ipc.messages import Snapshot, StageStats

SAMPLE_INTERVAL_NS = 1_000_000_000

Facts = dict[str, int | float | str]


class StatusBoard:
    """Written by the engine's thread, read by any thread. `snapshot` samples memory at most once a second."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._stats: dict[str, StageStats] = {}
        self._facts: dict[str, Facts] = {}
        self._pids: dict[str, int] = {"supervisor": os.getpid()}
        self._restarts: dict[str, int] = {}
        self._down: dict[str, int] = {}
        self._pss: dict[str, int] = {}
        self._sampled_ns = -SAMPLE_INTERVAL_NS

    def on_started(self, stage: str, epoch: int, pid: int) -> None:
        """Note the process of a started stage."""
        with self._lock:
            self._pids[stage] = pid
            self._restarts[stage] = epoch - 1
            self._pids.pop(_spare_name(stage), None)

    def set_spare(self, stage: str, pid: int | None) -> None:
        """Note the spare process of a stage, whose memory counts too; None: there is none."""
        with self._lock:
            if pid is None:
                self._pids.pop(_spare_name(stage), None)
            else:
                self._pids[_spare_name(stage)] = pid

    def on_died(self, stage: str, epoch: int) -> None:
        """Note that a stage is down until its successor is ready."""
        with self._lock:
            self._down[stage] = epoch

    def on_ready(self, stage: str, facts: Facts) -> None:
        """Note the facts of a stage that is ready."""
        with self._lock:
            self._facts[stage] = facts
            self._down.pop(stage, None)

    def on_published(self, stage: str, stats: StageStats) -> None:
        """Note the statistics of a stage."""
        with self._lock:
            self._stats[stage] = stats

    def snapshot(self) -> Snapshot:
        """Return the last statistics of all stages and the memory of their processes."""
        with self._lock:
            self._sample()
            return Snapshot(
                time_ns=time.monotonic_ns(),
                stages=dict(self._stats),
                pss_bytes=dict(self._pss),
                restarts=dict(self._restarts),
                facts=dict(self._facts),
                down=dict(self._down),
            )

    def _sample(self) -> None:
        now_ns = time.monotonic_ns()
        if now_ns - self._sampled_ns >= SAMPLE_INTERVAL_NS:
            self._pss = {name: pss_bytes(pid) for name, pid in self._pids.items()}
            self._sampled_ns = now_ns


def _spare_name(stage: str) -> str:
    return f"{stage} spare"


def pss_bytes(pid: int) -> int:
    """Return the PSS of a process: a page shared by n processes counts 1/n; 0 if the process has ended."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0
    for line in text.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0
