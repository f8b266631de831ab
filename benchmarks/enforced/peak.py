"""The most memory that a tree of processes takes while it runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from pathlib import Path

EVERY_S = 0.5


class PeakPss:
    """The largest sum of the processes' proportional set sizes (shared pages count once), asked for twice a second."""

    def __init__(self, pids: Callable[[], Iterable[int]]) -> None:
        self.peak_bytes = 0
        self._pids, self._stopped = pids, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        self._stopped.set()
        self._thread.join()
        return self.peak_bytes

    def _watch(self) -> None:
        while not self._stopped.wait(EVERY_S):
            self.peak_bytes = max(self.peak_bytes, sum(pss_bytes(pid) for pid in self._pids()))


def pss_bytes(pid: int) -> int:
    """0 for a process that has gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:")), 0)
