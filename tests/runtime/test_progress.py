"""Progress: lines where nobody watches, bars on a terminal, silence for what is quick."""

from __future__ import annotations

import io
import threading
import time

import pytest
from expertflow.ipc.messages import Progress
from expertflow.runtime.monitor import progress
from expertflow.runtime.monitor.progress import ProgressView, _LineView
from rich.console import Console


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_lines_come_at_the_start_and_every_two_seconds() -> None:
    """A log with a line a megabyte cannot be read; one without lines looks like a hang."""
    out, clock = io.StringIO(), Clock()
    with ProgressView(Console(file=out, width=200), clock) as view:
        for step in range(100):
            clock.now_s = step / 10
            view(Progress("loader", "filling", step, 100))
        view(Progress("loader", "filling", 100, 100))
    assert out.getvalue().splitlines() == [
        "loader: filling …",
        "loader: filling: 20 of 100",
        "loader: filling: 40 of 100",
        "loader: filling: 60 of 100",
        "loader: filling: 80 of 100",
    ]


def test_bytes_are_shown_as_a_share() -> None:
    out, clock = io.StringIO(), Clock()
    with ProgressView(Console(file=out, width=200), clock) as view:
        view(Progress("widen", "writing", 0, 10**9))
        clock.now_s = 3.0
        view(Progress("widen", "writing", 10**9 // 4, 10**9))
    assert out.getvalue().splitlines()[1] == "widen: writing: 25 %"


def test_what_is_done_at_once_is_not_told() -> None:
    out = io.StringIO()
    ProgressView(Console(file=out), Clock())(Progress("supervisor", "allocating", 5, 5))
    assert out.getvalue() == ""


def test_a_terminal_has_bars_that_vanish() -> None:
    out = io.StringIO()
    with ProgressView(Console(file=out, force_terminal=True, width=100)) as view:
        view(Progress("compute", "loading", 0, 10))
        view(Progress("compute", "loading", 4, 10))
        view(Progress("compute", "loading", 10, 10))
        view(Progress("checkpoint", "surveying", 0, 1))
    text = out.getvalue()
    assert "surveying" in text and "\x1b[2K" in text


def test_what_is_silent_for_long_is_told_of_again() -> None:
    """A check of minutes wrote nothing into a log, as if it hung."""
    out, clock = io.StringIO(), Clock()
    with ProgressView(Console(file=out, width=200), clock) as view:
        lines = view._view
        assert isinstance(lines, _LineView)
        view(Progress("verify", "comparing", 0, 1))
        view(Progress("engine", "starting", 0, 8))
        for clock.now_s in (1.0, 4.9, 5.0, 6.0, 9.9):
            lines.remind()
        view(Progress("engine", "starting", 3, 8))
        view(Progress("verify", "comparing", 1, 1))
        clock.now_s = 30.0
        lines.remind()
    assert out.getvalue().splitlines() == [
        "verify: comparing …",
        "engine: starting …",
        "verify: comparing: 5 s so far",
        "engine: starting: 5 s so far",
        "engine: starting: 3 of 8",
        "engine: starting: 3 of 8, 30 s so far",
    ]


def test_the_reminder_comes_by_itself_and_ends_with_the_view(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "REMINDER_S", 0.05)
    monkeypatch.setattr(progress, "CHECK_INTERVAL_S", 0.01)
    out = io.StringIO()
    with ProgressView(Console(file=out, width=200)) as view:
        view(Progress("verify", "comparing", 0, 1))
        deadline_s = time.monotonic() + 10
        while "so far" not in out.getvalue() and time.monotonic() < deadline_s:
            time.sleep(0.01)
    assert "verify: comparing: 0 s so far" in out.getvalue()
    assert not [thread for thread in threading.enumerate() if thread.name == "expertflow-progress"]


def test_ctrl_c_in_the_start_of_the_reminder_leaves_nothing_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Thread.join` refuses a thread whose start was interrupted, and the user would be told of a bug."""

    def interrupt(thread: threading.Thread) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupt)
    with pytest.raises(KeyboardInterrupt), ProgressView(Console(file=io.StringIO(), width=200)) as view:
        view(Progress("verify", "comparing", 0, 1))
