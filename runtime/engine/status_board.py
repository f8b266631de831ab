"""Last statistics and memory of all stages, for snapshots (I7)."""

from __future__ import annotations

import os
import time
from threading import Lock

from ...ipc.messages import History, Snapshot, StageStats, StageTotals
from ..monitor.history import HistoryRing
from ..monitor.totals import NOTHING, add_epoch
from .process_memory import MemorySampler

Facts = dict[str, int | float | str]


class StatusBoard:
    """Written by the engine's thread, read by any thread.

    The engine's thread calls `tick` all the time. It adds a point to the history once a second, and measures memory.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._stats: dict[str, StageStats] = {}
        self._facts: dict[str, Facts] = {}
        self._pids: dict[str, int] = {"supervisor": os.getpid()}
        self._restarts: dict[str, int] = {}
        self._down: dict[str, int] = {}
        self._ended: dict[str, StageTotals] = {}
        self._released: dict[str, int] = {}
        """Stage -> its ends that were asked for, which are no restarts."""
        self._failures: dict[str, dict[str, int]] = {}
        self._memory = MemorySampler()
        self._history = HistoryRing()

    def on_started(self, stage: str, epoch: int, pid: int) -> None:
        """Note the process of a started stage."""
        with self._lock:
            self._pids[stage] = pid
            self._restarts[stage] = epoch - 1 - self._released.get(stage, 0)
            self._pids.pop(_spare_name(stage), None)

    def set_spare(self, stage: str, pid: int | None) -> None:
        """Note the spare process of a stage, whose memory counts too; None: there is none."""
        with self._lock:
            if pid is None:
                self._pids.pop(_spare_name(stage), None)
            else:
                self._pids[_spare_name(stage)] = pid

    def on_died(self, stage: str, epoch: int, reason: str = "died") -> None:
        """Note that a stage is down until its successor is ready, and for which of a few reasons."""
        with self._lock:
            self._down[stage] = epoch
            failures = self._failures.get(stage, {})
            self._failures[stage] = {**failures, reason: failures.get(reason, 0) + 1}

    def on_released(self, stage: str, epoch: int) -> None:
        """Note that a stage is down until its successor is ready, as it was asked to end."""
        with self._lock:
            self._down[stage] = epoch
            self._released[stage] = self._released.get(stage, 0) + 1

    def set_state(self, facts: Facts) -> None:
        """Note what the supervisor itself says of the engine, under its own name."""
        with self._lock:
            self._facts["supervisor"] = facts

    def on_ready(self, stage: str, facts: Facts) -> None:
        """Note the facts of a stage that is ready."""
        with self._lock:
            self._facts[stage] = facts
            self._down.pop(stage, None)

    def on_published(self, stage: str, stats: StageStats) -> None:
        """Note the statistics of a stage."""
        with self._lock:
            last = self._stats.get(stage)
            if last is not None and last.epoch != stats.epoch:
                self._ended[stage] = add_epoch(self._ended.get(stage, NOTHING), last)
            self._stats[stage] = stats

    def snapshot(self) -> Snapshot:
        """Return the last statistics of all stages and the memory of their processes; 0: not measured yet."""
        with self._lock:
            self._memory.note_watcher()
            return self._snapshot()

    def tick(self) -> None:
        """Add a point to the history and measure memory, each if it is time for it."""
        with self._lock:
            self._memory.tick(self._pids)
            if time.monotonic_ns() >= self._history.next_ns:
                self._history.add(self._snapshot())

    def history(self, since_ns: int = 0) -> History:
        """Return the points of the last hour after `since_ns`, of the machine's monotonic clock."""
        with self._lock:
            return History(device=self.device, points=self._history.since(since_ns))

    @property
    def device(self) -> str:
        """Return the device of compute; empty if it is not known, or none."""
        return str(self._facts.get("compute", {}).get("device", ""))

    def _snapshot(self) -> Snapshot:
        measured = self._memory.pss_bytes
        return Snapshot(
            time_ns=time.monotonic_ns(),
            stages=dict(self._stats),
            pss_bytes={name: measured.get(name, 0) for name in self._pids},
            restarts=dict(self._restarts),
            facts=dict(self._facts),
            down=dict(self._down),
            ended=dict(self._ended),
            failures=dict(self._failures),
        )


def _spare_name(stage: str) -> str:
    return f"{stage} spare"
