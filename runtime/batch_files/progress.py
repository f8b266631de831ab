"""Progress of a batch: lines, tokens a second, and the time that is left. No clock: every call is told the time."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

WINDOW_S = 60.0
"""Rates are those of the last minute, so that a slow start does not weigh for hours."""
MIN_LINES = 3
"""Ended lines after which the time left is stated."""


@dataclass
class BatchProgress:
    """Counts of one run. Lines of earlier runs count as ended, but not for the rates."""

    total: int
    """Lines that end in a result or an error."""
    before: int
    """Lines that had ended before this run."""
    started_s: float
    ended: int = 0
    failed: int = 0
    tokens: int = 0
    _marks: deque[tuple[float, int, int]] = field(default_factory=deque)
    """Time, ended lines and tokens at moments of the last minute, at most one a second."""

    def add_tokens(self, count: int) -> None:
        """Count tokens that a request has generated."""
        self.tokens += count

    def end_line(self, failed: bool) -> None:
        """Count a line that has ended."""
        self.ended += 1
        self.failed += failed

    @property
    def left(self) -> int:
        """Return the number of lines that have not ended."""
        return self.total - self.before - self.ended

    def mark(self, now_s: float) -> None:
        """Note the counts for the rates of the coming minute."""
        if self._marks and now_s - self._marks[-1][0] < 1:
            return
        self._marks.append((now_s, self.ended, self.tokens))
        while len(self._marks) > 2 and now_s - self._marks[1][0] >= WINDOW_S:
            self._marks.popleft()

    def tokens_per_s(self, now_s: float) -> float:
        """Return the tokens a second of the last minute."""
        since_s, _, tokens = self._since()
        return (self.tokens - tokens) / max(now_s - since_s, 1e-9)

    def left_s(self, now_s: float) -> float | None:
        """Return the seconds that the other lines will take; None as long as too few have ended."""
        if self.ended < MIN_LINES:
            return None
        since_s, ended, _ = self._since()
        if self.ended == ended:  # long outputs: the rate of the whole run
            since_s, ended = self.started_s, 0
        return self.left * (now_s - since_s) / (self.ended - ended)

    def text(self, now_s: float) -> str:
        """Return the state in one line: `1,200 of 10,000 lines (3 failed), 56.7 tokens/s, about 12 min left`."""
        failed = f" ({self.failed:,} failed)" if self.failed else ""
        left_s = self.left_s(now_s)
        left = "" if left_s is None else f", about {duration_text(left_s)} left"
        count = self.before + self.ended
        return f"{count:,} of {self.total:,} lines{failed}, {self.tokens_per_s(now_s):.1f} tokens/s{left}"

    def summary(self, now_s: float) -> str:
        """Return the last line of a run."""
        seconds = max(now_s - self.started_s, 1e-9)
        earlier = f", {self.before:,} were done before" if self.before else ""
        failed = f", {self.failed:,} of them with an error" if self.failed else ""
        rate = f"{self.tokens:,} tokens in {duration_text(seconds)}: {self.tokens / seconds:.1f} tokens/s"
        return f"{self.ended:,} lines{failed}{earlier}; {rate}"

    def _since(self) -> tuple[float, int, int]:
        return self._marks[0] if self._marks else (self.started_s, 0, 0)


def duration_text(seconds: float) -> str:
    """Return a time in the two units that matter: `45 s`, `12 min`, `3 h 20 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
