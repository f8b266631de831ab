"""Progress of a batch: rates of the last minute, the time left, and the lines of a log."""

from __future__ import annotations

import io

import pytest
from expertflow.runtime.batch_files.progress import BatchProgress, duration_text
from expertflow.runtime.batch_files.view import BatchView
from rich.console import Console


def run_for(progress: BatchProgress, start_s: int, seconds: int, lines: int, tokens: int) -> None:
    """End so many lines and tokens each second."""
    for second in range(start_s, start_s + seconds):
        progress.mark(second)
        progress.add_tokens(tokens)
        for _ in range(lines):
            progress.end_line(failed=False)
    progress.mark(start_s + seconds)


def test_rates_are_those_of_the_last_minute() -> None:
    """A start that was slow is forgotten, so that the time left is what it will be."""
    progress = BatchProgress(total=10_000, before=0, started_s=0)
    run_for(progress, 0, 100, lines=0, tokens=1)
    run_for(progress, 100, 200, lines=2, tokens=50)
    assert progress.tokens_per_s(300) == pytest.approx(50)
    assert progress.left_s(300) == pytest.approx((10_000 - 400) / 2)
    assert progress.text(300) == "400 of 10,000 lines, 50.0 tokens/s, about 80 min left"


def test_lines_of_earlier_runs_count_as_ended_but_not_for_the_rate() -> None:
    progress = BatchProgress(total=100, before=50, started_s=0)
    run_for(progress, 0, 10, lines=1, tokens=7)
    assert progress.left == 40 and progress.left_s(10) == pytest.approx(40)
    assert progress.text(10).startswith("60 of 100 lines, 7.0 tokens/s")
    assert progress.summary(10) == "10 lines, 50 were done before; 70 tokens in 10 s: 7.0 tokens/s"


def test_the_time_left_is_stated_when_it_is_known() -> None:
    progress = BatchProgress(total=100, before=0, started_s=0)
    assert progress.left_s(5) is None and "left" not in progress.text(5)
    run_for(progress, 0, 4, lines=1, tokens=1)
    run_for(progress, 4, 100, lines=0, tokens=1)
    assert progress.left_s(104) == pytest.approx(96 * 104 / 4)
    progress.end_line(failed=True)
    assert "(1 failed)" in progress.text(104)


def test_marks_do_not_grow() -> None:
    progress = BatchProgress(total=10, before=0, started_s=0)
    run_for(progress, 0, 10_000, lines=0, tokens=1)
    assert len(progress._marks) < 70


@pytest.mark.parametrize(("seconds", "text"), [(5, "5 s"), (99, "99 s"), (130, "2 min"), (12_000, "3 h 20 min")])
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_a_log_gets_a_line_now_and_then() -> None:
    """Seldom enough for a job of a night, soon enough to see that it runs."""
    log = io.StringIO()
    progress = BatchProgress(total=100, before=0, started_s=0)
    with BatchView(Console(file=log)) as view:
        for second in range(3600):
            view(progress, second)
    lines = log.getvalue().splitlines()
    assert all(line.startswith("batch: 0 of 100 lines") for line in lines)
    assert 50 < len(lines) < 80


def test_a_terminal_gets_a_bar() -> None:
    screen = io.StringIO()
    progress = BatchProgress(total=100, before=20, started_s=0)
    with BatchView(Console(file=screen, force_terminal=True, width=100)) as view:
        view(progress, 1)
    assert "20 of 100 lines" in screen.getvalue()
