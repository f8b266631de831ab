"""Virtual time: what happens next, and when."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable


class VirtualClock:
    """Things happen in the order of their times; at the same time, in the order in which they were announced."""

    def __init__(self) -> None:
        self.now_ns = 0
        self._coming: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def after(self, delay_ns: int, happen: Callable[[], None]) -> None:
        """`happen` is called so much later."""
        heapq.heappush(self._coming, (self.now_ns + delay_ns, next(self._order), happen))

    def run(self) -> None:
        """Until nothing is to come."""
        while self._coming:
            self.now_ns, _, happen = heapq.heappop(self._coming)
            happen()
