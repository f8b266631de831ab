"""An emulated link between host store and slots, held to a rate. Its results are labelled as emulated."""

from __future__ import annotations

import threading
from collections.abc import Callable

GRACE_NS = 300_000
"""A copy that starts this soon after the last one ended follows it without a gap: waking up takes as long."""


class EmulatedLink:
    """Carries one chunk after the other, at `rate_bytes_per_s`; shared by all reader threads.

    An expert takes `latency_ns` on the link before its first byte.
    """

    def __init__(
        self,
        rate_bytes_per_s: int,
        clock_ns: Callable[[], int],
        sleep_s: Callable[[float], None],
        latency_ns: int = 0,
    ) -> None:
        self._rate, self.clock_ns, self._sleep_s = rate_bytes_per_s, clock_ns, sleep_s
        self._latency_ns = latency_ns
        self._lock = threading.Lock()
        self._free_at_ns = 0

    def carry(self, count_bytes: int, copy: Callable[[], None], opens: bool = False) -> None:
        """Run `copy`, and return when the link would have carried `count_bytes`. `opens`: the first of an expert."""
        end_ns = self._reserve(count_bytes, opens, None)
        copy()
        self._wait_until(end_ns)

    def delay(self, count_bytes: int, ordered_ns: int, opens: bool = False) -> None:
        """Return when the link would have carried `count_bytes` that it was ordered to carry at `ordered_ns`.

        Nothing is copied. A caller that comes late, since cores were busy, leaves no gap on the link: an engine that
        copies by itself would have gone on.
        """
        self._wait_until(self._reserve(count_bytes, opens, ordered_ns))

    def _reserve(self, count_bytes: int, opens: bool, ordered_ns: int | None) -> int:
        with self._lock:
            self._free_at_ns = self._start_ns(ordered_ns) + count_bytes * 10**9 // self._rate
            self._free_at_ns += self._latency_ns * opens
            return self._free_at_ns

    def _start_ns(self, ordered_ns: int | None) -> int:
        if ordered_ns is not None:
            return max(self._free_at_ns, ordered_ns)
        now_ns = self.clock_ns()
        return self._free_at_ns if now_ns - self._free_at_ns < GRACE_NS else now_ns

    def _wait_until(self, end_ns: int) -> None:
        left_ns = end_ns - self.clock_ns()
        if left_ns > 0:
            self._sleep_s(left_ns / 1e9)
