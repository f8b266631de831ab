"""Bounds the spans that a stage makes while somebody watches."""

from __future__ import annotations

SECOND_NS = 1_000_000_000
PERIOD_S = 3
"""Spans are made in one second of so many: what watching costs falls as much, and the last steps are as clear."""
WATCHED_SPANS = {"loader": 512, "compute": 256}
"""Stage -> its spans in such a second, each some 3 µs to make, send and read. A wait of compute has several of them."""
DEFAULT_SPANS = 64


class SpanQuota:
    """Lets through the first spans of every third second (`PERIOD_S`) and none of the rest.

    Seconds are those of the machine's monotonic clock, so spans that all stages have made cover the same time.
    """

    def __init__(self, limit: int) -> None:
        self._limit = self._left = limit
        self._second = -1

    def is_open(self, now_ns: int) -> bool:
        """Return whether a span may be made now."""
        second = now_ns // SECOND_NS
        if second != self._second:
            self._second, self._left = second, 0 if second % PERIOD_S else self._limit
        return self._left > 0

    def take(self) -> None:
        """Count a span."""
        self._left -= 1


def quota_of(stage: str) -> SpanQuota:
    """Return the quota of a stage."""
    return SpanQuota(WATCHED_SPANS.get(stage, DEFAULT_SPANS))
