"""Shows how far something is that takes more than two seconds: bars on a terminal, a line now and then elsewhere."""

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

QUIET_S = 2.0
"""Between two lines about the same thing."""
SILENT_S = 5.0
"""After which a thing under way is told of again although nothing new was heard."""
LOOK_S = 0.5
COUNTED = 100_000
"""From here on a number says less than a percentage."""


@dataclass
class _Told:
    """Something under way: the newest about it, when it began, and when a line told of it."""

    news: Progress
    begun_s: float
    told_s: float | None = None


class ProgressView:
    """Takes `Progress` messages (call it with them), from any thread. A context manager: its end clears the bars."""

    def __init__(self, console: Console | None = None, now_s: Callable[[], float] = time.monotonic) -> None:
        self._console = console or Console(stderr=True)
        self._view = _BarView(self._console) if self._console.is_terminal else _LineView(self._console, now_s)

    def __enter__(self) -> ProgressView:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._view.close()

    def __call__(self, news: Progress) -> None:
        self._view.show(news)


class _BarView:
    """A bar for each thing under way; one without steps in between only pulses."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        self._bars = Bars(*columns, console=console, transient=True)
        self._tasks: dict[tuple[str, str], TaskID] = {}
        self._bars.start()

    def show(self, news: Progress) -> None:
        key = (news.stage, news.what)
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task(describe(news), total=None)
        if news.total > 1 or news.done:
            self._bars.update(self._tasks[key], completed=news.done, total=news.total)
        if news.done >= news.total:
            self._bars.remove_task(self._tasks.pop(key))

    def close(self) -> None:
        self._bars.stop()


class _LineView:
    """For logs and pipes: a line when something begins, while it lasts one every two seconds at most.

    What says nothing for `SILENT_S` gets a line with the seconds it has lasted, from a thread of its own.
    """

    def __init__(self, console: Console, now_s: Callable[[], float]) -> None:
        self._console, self._now_s = console, now_s
        self._open: dict[tuple[str, str], _Told] = {}
        self._lock = Lock()
        self._closed = Event()
        self._thread: Thread | None = None

    def show(self, news: Progress) -> None:
        key = (news.stage, news.what)
        with self._lock:
            if news.done >= news.total:
                self._open.pop(key, None)
                return
            now_s = self._now_s()
            told = self._open.setdefault(key, _Told(news, now_s))
            told.news = news
            if told.told_s is None or now_s - told.told_s >= QUIET_S:
                self._print(news, " …" if told.told_s is None else f": {_how_far(news)}")
                told.told_s = now_s
        self._watch()

    def remind(self) -> None:
        """Tell of what is under way and was not told of for long."""
        with self._lock:
            now_s = self._now_s()
            for told in self._open.values():
                if told.told_s is not None and now_s - told.told_s >= SILENT_S:
                    how_far = f"{_how_far(told.news)}, " if told.news.done else ""
                    self._print(told.news, f": {how_far}{now_s - told.begun_s:.0f} s so far")
                    told.told_s = now_s

    def close(self) -> None:
        """Lines stay."""
        self._closed.set()
        if self._thread:
            self._thread.join()

    def _watch(self) -> None:
        if self._thread is None and not self._closed.is_set():
            self._thread = Thread(target=self._remind_until_closed, name="expertflow-progress", daemon=True)
            self._thread.start()

    def _remind_until_closed(self) -> None:
        while not self._closed.wait(LOOK_S):
            self.remind()

    def _print(self, news: Progress, how_far: str) -> None:
        self._console.print(describe(news) + how_far, markup=False, highlight=False, soft_wrap=True)


def _how_far(news: Progress) -> str:
    """Small numbers as they are; large ones are bytes or the like."""
    if news.total < COUNTED:
        return f"{news.done:,} of {news.total:,}"
    return f"{100 * news.done // news.total} %"


def describe(news: Progress) -> str:
    """Who does what."""
    return f"{news.stage}: {news.what}"
