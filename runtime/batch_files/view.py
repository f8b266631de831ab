"""Progress of a batch on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from .progress import BatchProgress

FIRST_LINE_S, MAX_INTERVAL_S = 2.0, 60.0
"""Time of the first line in a log, and the longest between two; in between it doubles."""


class BatchView:
    """Shows the progress it is called with. A context manager: its end clears the bar."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._next_s, self._interval_s = 0.0, FIRST_LINE_S

    def __enter__(self) -> BatchView:
        if self._console.is_terminal:
            columns = (TextColumn("batch:"), BarColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task("", total=None)
        return self

    def __exit__(self, cls: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, progress: BatchProgress, now_s: float) -> None:
        """Show the progress at a time of `time.monotonic`."""
        if self._bar is not None:
            done = progress.before + progress.ended
            self._bar.update(self._task, description=progress.text(now_s), completed=done, total=progress.total)
        elif now_s >= max(self._next_s, progress.started_s + FIRST_LINE_S):
            self._console.print(f"batch: {progress.text(now_s)}", markup=False, highlight=False, soft_wrap=True)
            self._next_s, self._interval_s = now_s + self._interval_s, min(2 * self._interval_s, MAX_INTERVAL_S)
