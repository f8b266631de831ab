"""Notices reads of experts that take far longer than usual, and logs them: one line in a while, with their number."""

from __future__ import annotations

import logging
from collections import deque
from statistics import median

from .transfer.transfers import Transfer

SLOW_NS, MANY_TIMES = 200_000_000, 10
"""A read is slow if it takes this long, and so many times the median of those before it."""
REMEMBERED = 64
QUIET_NS = 10_000_000_000
"""Least time between two lines."""


class SlowReads:
    """Watches the times of transfers."""

    def __init__(self) -> None:
        self._times: deque[int] = deque(maxlen=REMEMBERED)
        self._slow = 0
        self._logged_ns = -QUIET_NS

    def watch(self, transfer: Transfer, now_ns: int) -> None:
        """Take in a transfer that has ended, and log if it was slow and nothing was logged for a while."""
        took_ns = transfer.ended_ns - transfer.started_ns
        usual_ns = median(self._times) if len(self._times) > REMEMBERED // 8 else 0
        self._times.append(took_ns)
        if not usual_ns or took_ns < max(SLOW_NS, MANY_TIMES * usual_ns):
            return
        self._slow += 1
        if now_ns - self._logged_ns < QUIET_NS:
            return
        self._logged_ns = now_ns
        words = "slow read: expert %d of MoE layer %d took %.0f ms, the median is %.1f ms; %d since the start"
        numbers = (transfer.expert, transfer.layer, took_ns / 1e6, usual_ns / 1e6, self._slow)
        logging.getLogger(__name__).warning(words, *numbers)
