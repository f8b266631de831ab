"""Progress of work that takes more than two seconds: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event, Lock, Thread
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from ...ipc.messages import Progress

LINE_INTERVAL_S = 2.0
"""Least time between two lines about the same task."""
REMINDER_S = 5.0
"""Time after which a task without news gets a line again."""
CHECK_INTERVAL_S = 0.5
MAX_COUNT = 100_000
"""Larger totals are shown as a percentage."""


@dataclass
class _Task:
    """A task under way: its last progress, its start, and the time of its last line."""

    progress: Progress
    started_s: float
    printed_s: float | None = None


class ProgressView:
    """Shows the `Progress` messages it is called with, from any thread. A context manager: its end clears the bars."""

    def __init__(self, console: Console | None = None, now_s: Callable[[], float] = time.monotonic) -> None:
        self._console = console or Console(stderr=True)
        self._view = _BarView(self._console) if self._console.is_terminal else _LineView(self._console, now_s)

    def __enter__(self) -> ProgressView:
        return self

    def __exit__(self, cls: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Clear the bars, or stop printing lines."""
        self._view.close()

    def __call__(self, progress: Progress) -> None:
        self._view.show(progress)


class _BarView:
    """One bar a task; a task without intermediate steps only pulses."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        self._bars = Bars(*columns, console=console, transient=True)
        self._tasks: dict[tuple[str, str], TaskID] = {}
        self._bars.start()

    def show(self, progress: Progress) -> None:
        key = (progress.stage, progress.what)
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task(describe(progress), total=None)
        if progress.total > 1 or progress.done:
            self._bars.update(self._tasks[key], completed=progress.done, total=progress.total)
        if progress.done >= progress.total:
            self._bars.remove_task(self._tasks.pop(key))

    def close(self) -> None:
        self._bars.stop()


class _LineView:
    """Lines for logs and pipes: one at the start of a task, then at most one every two seconds.

    A thread adds a line with the elapsed seconds for a task without progress for `REMINDER_S`.
    """

    def __init__(self, console: Console, now_s: Callable[[], float]) -> None:
        self._console, self._now_s = console, now_s
        self._open: dict[tuple[str, str], _Task] = {}
        self._lock = Lock()
        self._closed = Event()
        self._thread: Thread | None = None

    def show(self, progress: Progress) -> None:
        key = (progress.stage, progress.what)
        with self._lock:
            if progress.done >= progress.total:
                self._open.pop(key, None)
                return
            now_s = self._now_s()
            task = self._open.setdefault(key, _Task(progress, now_s))
            task.progress = progress
            if task.printed_s is None or now_s - task.printed_s >= LINE_INTERVAL_S:
                self._print(progress, " …" if task.printed_s is None else f": {_position(progress)}")
                task.printed_s = now_s
        self._watch()

    def remind(self) -> None:
        """Print a line for every task whose last line is `REMINDER_S` old."""
        with self._lock:
            now_s = self._now_s()
            for task in self._open.values():
                if task.printed_s is not None and now_s - task.printed_s >= REMINDER_S:
                    position = f"{_position(task.progress)}, " if task.progress.done else ""
                    self._print(task.progress, f": {position}{now_s - task.started_s:.0f} s so far")
                    task.printed_s = now_s

    def close(self) -> None:
        """Stop the thread; printed lines stay."""
        self._closed.set()
        if self._thread and self._thread.is_alive():  # not when Ctrl-C interrupted its start
            self._thread.join()

    def _watch(self) -> None:
        if self._thread is None and not self._closed.is_set():
            self._thread = Thread(target=self._remind_until_closed, name="expertflow-progress", daemon=True)
            self._thread.start()

    def _remind_until_closed(self) -> None:
        while not self._closed.wait(CHECK_INTERVAL_S):
            self.remind()

    def _print(self, progress: Progress, position: str) -> None:
        self._console.print(describe(progress) + position, markup=False, highlight=False, soft_wrap=True)


def _position(progress: Progress) -> str:
    """Return small numbers as they are, large ones (mostly bytes) as a percentage."""
    if progress.total < MAX_COUNT:
        return f"{progress.done:,} of {progress.total:,}"
    return f"{100 * progress.done // progress.total} %"


def describe(progress: Progress) -> str:
    """Return `STAGE: WHAT`."""
    return f"{progress.stage}: {progress.what}"
