"""The transfer engine and its link in virtual time: what workers/loader/transfer/ does with threads."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable

from .clock import VirtualClock
from .machine import Machine


class VirtualLink:
    """Chunks in order of urgency; each takes its turn on the link. `done(slot)` is called when all of a slot came.

    A reader takes its next chunk when the last one has arrived, so up to `readers` chunks are committed to the link,
    and an urgent chunk waits for those.
    """

    def __init__(self, machine: Machine, clock: VirtualClock, done: Callable[[int], None]) -> None:
        self._machine, self._clock, self._done = machine, clock, done
        self._queue: list[tuple[int, int, int, int]] = []
        """(0 if urgent, order, slot, bytes)."""
        self._order = itertools.count()
        self._left: dict[int, int] = {}
        """Slot → chunks that have not arrived."""
        self._idle, self._free_at_ns = machine.readers, 0

    def start(self, slot: int, urgent: bool) -> None:
        whole, rest = divmod(self._machine.expert_bytes, self._machine.chunk_bytes)
        chunks = [self._machine.chunk_bytes] * whole + [rest] * (rest > 0)
        self._left[slot] = len(chunks)
        for size in chunks:
            heapq.heappush(self._queue, (0 if urgent else 1, next(self._order), slot, size))
        self._take()

    def promote(self, slot: int) -> None:
        self._queue = [(0 if entry[2] == slot else entry[0], *entry[1:]) for entry in self._queue]
        heapq.heapify(self._queue)

    def _take(self) -> None:
        while self._idle and self._queue:
            _, _, slot, size = heapq.heappop(self._queue)
            self._idle -= 1
            start_ns = max(self._clock.now_ns, self._free_at_ns)
            self._free_at_ns = start_ns + math.ceil(size * 1e9 / self._machine.link_bytes_per_s)
            self._clock.after(self._free_at_ns - self._clock.now_ns, lambda slot=slot: self._arrived(slot))

    def _arrived(self, slot: int) -> None:
        self._idle += 1
        self._left[slot] -= 1
        if not self._left[slot]:
            del self._left[slot]
            self._done(slot)
        self._take()
