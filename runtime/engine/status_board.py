"""The board on which stages are seen: what they published last, and what memory they hold (I7)."""

from __future__ import annotations

import os
import time
from pathlib import Path
from threading import Lock

from ...ipc.messages import Snapshot, StageStats

SAMPLE_EVERY_NS = 1_000_000_000

Facts = dict[str, int | float | str]


class StatusBoard:
    """Written by the engine's thread, read by any. Memory is sampled when somebody looks, at most once a second."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._stats: dict[str, StageStats] = {}
        self._facts: dict[str, Facts] = {}
        self._pids: dict[str, int] = {"supervisor": os.getpid()}
        self._restarts: dict[str, int] = {}
        self._down: dict[str, int] = {}
        self._pss: dict[str, int] = {}
        self._sampled_ns = -SAMPLE_EVERY_NS

    def started(self, stage: str, epoch: int, pid: int) -> None:
        with self._lock:
            self._pids[stage] = pid
            self._restarts[stage] = epoch - 1
            self._pids.pop(_spare_of(stage), None)

    def spare(self, stage: str, pid: int | None) -> None:
        """A spare process waits to become this stage, or none does; its memory counts."""
        with self._lock:
            if pid is None:
                self._pids.pop(_spare_of(stage), None)
            else:
                self._pids[_spare_of(stage)] = pid

    def died(self, stage: str, epoch: int) -> None:
        """Note that a stage is down until its successor is ready."""
        with self._lock:
            self._down[stage] = epoch

    def learned(self, source: str, facts: Facts) -> None:
        with self._lock:
            self._facts[source] = facts
            self._down.pop(source, None)

    def published(self, stage: str, stats: StageStats) -> None:
        with self._lock:
            self._stats[stage] = stats

    def snapshot(self) -> Snapshot:
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
        if now_ns - self._sampled_ns >= SAMPLE_EVERY_NS:
            self._pss = {name: pss_bytes(pid) for name, pid in self._pids.items()}
            self._sampled_ns = now_ns


def _spare_of(stage: str) -> str:
    return f"{stage} spare"


def pss_bytes(pid: int) -> int:
    """Memory of a process, shared pages counted by their share; 0 if it has gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0
    for line in text.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0
