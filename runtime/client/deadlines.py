"""When requests that nobody works on yet run out of time. No clock: the time is told."""

from __future__ import annotations

import heapq
from itertools import count

from .request import ClientRequest


class Deadlines:
    """Of orders; those without one are not kept."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, ClientRequest]] = []
        self._counter = count()

    def add(self, order: ClientRequest, now_ns: int) -> None:
        """From the first time it is handed in."""
        if order.deadline_ns is None and order.submit.deadline_ms is not None:
            order.deadline_ns = now_ns + order.submit.deadline_ms * 1_000_000
        if order.deadline_ns is not None:
            heapq.heappush(self._heap, (order.deadline_ns, next(self._counter), order))

    def end_overdue(self, now_ns: int) -> None:
        """The scheduler looks after those that are under way."""
        while self._heap and self._heap[0][0] <= now_ns:
            order = heapq.heappop(self._heap)[2]
            if not order.ended and not order.under_way:
                order.end_here("deadline")

    @property
    def next_ns(self) -> int | None:
        return self._heap[0][0] if self._heap else None
