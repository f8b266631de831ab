"""An emulated link between host store and slots: real copies, held to a rate. Its results are labelled as emulated."""

from __future__ import annotations

import threading
from collections.abc import Callable

GRACE_NS = 300_000
"""A copy that starts this soon after the last one ended follows it without a gap: waking up takes as long."""


class EmulatedLink:
    """Carries one copy after the other, at `rate_bytes_per_s`; shared by all reader threads."""

    def __init__(self, rate_bytes_per_s: int, clock_ns: Callable[[], int], sleep_s: Callable[[float], None]) -> None:
        self._rate, self._clock_ns, self._sleep_s = rate_bytes_per_s, clock_ns, sleep_s
        self._lock = threading.Lock()
        self._free_at_ns = 0

    def carry(self, count_bytes: int, copy: Callable[[], None]) -> None:
        """Run `copy`, and return when the link would have carried `count_bytes`."""
        end_ns = self._reserve(count_bytes)
        copy()
        left_ns = end_ns - self._clock_ns()
        if left_ns > 0:
            self._sleep_s(left_ns / 1e9)

    def _reserve(self, count_bytes: int) -> int:
        with self._lock:
            now_ns = self._clock_ns()
            start_ns = self._free_at_ns if now_ns - self._free_at_ns < GRACE_NS else now_ns
            self._free_at_ns = start_ns + count_bytes * 10**9 // self._rate
            return self._free_at_ns
