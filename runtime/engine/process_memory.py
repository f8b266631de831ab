"""Memory of processes, measured in a thread of its own and so seldom that it costs next to nothing (I7)."""

from __future__ import annotations

import time
from pathlib import Path
from threading import Thread

WATCHED_INTERVAL_NS = 1_000_000_000
UNWATCHED_INTERVAL_NS = 10_000_000_000
WATCHED_FOR_NS = 5_000_000_000
"""Time for which somebody who asked counts as watching."""
REST = 500
"""The thread rests this many times the processor time of its last measurement: it takes 0.2 % of a core."""


class MemorySampler:
    """The newest PSS of each process.

    For it the kernel walks the page tables of a process: 13 ms for 1 GB in pages of 4 KiB, once for each process that
    maps them. So the supervisor neither waits for a measurement nor begins one whenever it is asked.
    """

    def __init__(self) -> None:
        self.pss_bytes: dict[str, int] = {}
        """Process -> bytes at the last measurement."""
        self._due_ns = self._asked_ns = self._soonest_ns = 0
        self._cost_ns = 0
        self._thread: Thread | None = None

    def note_watcher(self) -> None:
        """Measure more often for a while, since somebody looks."""
        now_ns = time.monotonic_ns()
        if now_ns - self._asked_ns > WATCHED_FOR_NS:
            self._due_ns = min(self._due_ns, now_ns + WATCHED_INTERVAL_NS)
        self._asked_ns = now_ns

    def tick(self, pids: dict[str, int]) -> None:
        """Begin a measurement of these processes if it is time for one, or if one of them was never measured.

        Call it in the thread of one owner.
        """
        now_ns = time.monotonic_ns()
        is_due = now_ns >= self._due_ns or (pids.keys() - self.pss_bytes.keys() and now_ns >= self._soonest_ns)
        if not is_due or (self._thread is not None and self._thread.is_alive()):
            return
        self._soonest_ns = now_ns + WATCHED_INTERVAL_NS
        is_watched = now_ns - self._asked_ns < WATCHED_FOR_NS
        interval_ns = WATCHED_INTERVAL_NS if is_watched else UNWATCHED_INTERVAL_NS
        self._due_ns = now_ns + max(interval_ns, REST * self._cost_ns)
        self._thread = Thread(target=self._measure, args=(dict(pids),), name="expertflow-memory", daemon=True)
        self._thread.start()

    def _measure(self, pids: dict[str, int]) -> None:
        started_ns = time.thread_time_ns()
        self.pss_bytes = {name: pss_bytes(pid) for name, pid in pids.items()}
        self._cost_ns = time.thread_time_ns() - started_ns


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
