"""The drain of an engine: nothing new is accepted, and it ends once nothing is open, or at a deadline."""

from __future__ import annotations

from ....ipc.messages import StageStats


class DrainState:
    """State of one drain: statistics of the scheduler and the clock in, whether it is over out."""

    def __init__(self, until_s: float) -> None:
        self.until_s = until_s
        self.open = -1
        """Open requests, as published since the scheduler accepts none; -1: it has not said so yet."""

    def hasten(self, until_s: float) -> None:
        """Take the earlier one of two deadlines."""
        self.until_s = min(self.until_s, until_s)

    def on_stats(self, stats: StageStats) -> None:
        """Note what the scheduler published; counts from before it closed its intake do not say that all is done."""
        if stats.stage == "scheduler" and not stats.counters.get("accepting", 1):
            self.open = int(stats.counters.get("open", 0))

    def on_scheduler_lost(self) -> None:
        """Forget the count of a dead scheduler: clients submit again what it had begun."""
        self.open = -1

    def is_over(self, now_s: float) -> bool:
        """Return whether nothing is open, or the deadline has come."""
        return self.open == 0 or now_s >= self.until_s
