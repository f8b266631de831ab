"""Shows how far something is that takes more than two seconds: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from ...ipc.messages import Progress

QUIET_S = 2.0
"""Between two lines about the same thing."""
COUNTED = 100_000
"""From here on a number says less than a percentage."""


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
    """For logs and pipes: a line when something begins, and while it lasts one every two seconds."""

    def __init__(self, console: Console, now_s: Callable[[], float]) -> None:
        self._console, self._now_s = console, now_s
        self._told_s: dict[tuple[str, str], float] = {}

    def show(self, news: Progress) -> None:
        key = (news.stage, news.what)
        told_s = self._told_s.get(key)
        if news.done >= news.total or (told_s is not None and self._now_s() - told_s < QUIET_S):
            return
        self._told_s[key] = self._now_s()
        how_far = " …" if told_s is None else f": {_how_far(news)}"
        self._console.print(describe(news) + how_far, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Lines stay."""


def _how_far(news: Progress) -> str:
    """Small numbers as they are; large ones are bytes or the like."""
    if news.total < COUNTED:
        return f"{news.done:,} of {news.total:,}"
    return f"{100 * news.done // news.total} %"


def describe(news: Progress) -> str:
    """Who does what."""
    return f"{news.stage}: {news.what}"
