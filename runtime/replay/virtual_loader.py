"""Clock, link and loader of a timed replay, in virtual time: what `workers/loader/` does with threads and sockets."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable

from ...ipc.messages import HeldFromLoader
from ...workers.loader.events import FillDone, LedgerEvent, PromoteFill, StartFill
from ...workers.loader.ledger import Ledger
from .machine import Machine


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


class VirtualLoader:
    """`reach_compute` is called with each message when it arrives there."""

    def __init__(
        self,
        ledger: Ledger,
        machine: Machine,
        clock: VirtualClock,
        reach_compute: Callable[[HeldFromLoader], None],
    ) -> None:
        self._ledger, self._machine, self._clock, self._reach_compute = ledger, machine, clock, reach_compute
        self._link = VirtualLink(machine, clock, lambda slot: self.receive(FillDone(slot)))
        self._free_at_ns = 0

    def receive(self, event: LedgerEvent) -> None:
        """Something has arrived; it waits for its turn."""
        self._free_at_ns = max(self._clock.now_ns, self._free_at_ns) + self._machine.decide_ns
        self._clock.after(self._free_at_ns - self._clock.now_ns, lambda: self._decide(event))

    def _decide(self, event: LedgerEvent) -> None:
        for action in self._ledger.handle(event):
            match action:
                case StartFill():
                    self._link.start(action.slot, action.urgent)
                case PromoteFill():
                    self._link.promote(action.slot)
                case _:
                    self._clock.after(self._machine.message_ns, lambda message=action: self._reach_compute(message))
