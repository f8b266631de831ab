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
    """Clock that runs callbacks in the order of their times; equal times run in the order of `call_after`."""

    def __init__(self) -> None:
        self.now_ns = 0
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def call_after(self, delay_ns: int, callback: Callable[[], None]) -> None:
        """Call `callback` after this delay."""
        heapq.heappush(self._events, (self.now_ns + delay_ns, next(self._order), callback))

    def run(self) -> None:
        """Run callbacks until none is left."""
        while self._events:
            self.now_ns, _, callback = heapq.heappop(self._events)
            callback()


class VirtualLink:
    """Link that carries chunks one by one, urgent ones first. It calls `done(slot)` when a slot is complete.

    A reader takes its next chunk when the last one has arrived. So up to `readers` chunks are committed to the link,
    and an urgent chunk waits for these.
    """

    def __init__(self, machine: Machine, clock: VirtualClock, done: Callable[[int], None]) -> None:
        self._machine, self._clock, self._done = machine, clock, done
        self._queue: list[tuple[int, int, int, int]] = []
        """Heap of (0 if urgent, order, slot, bytes)."""
        self._order = itertools.count()
        self._left: dict[int, int] = {}
        """Slot -> number of chunks that have not arrived."""
        self._idle, self._free_at_ns = machine.readers, 0

    def start(self, slot: int, urgent: bool) -> None:
        """Queue the chunks of one expert for a slot."""
        whole, rest = divmod(self._machine.expert_bytes, self._machine.chunk_bytes)
        chunks = [self._machine.chunk_bytes] * whole + [rest] * (rest > 0)
        self._left[slot] = len(chunks)
        for size in chunks:
            heapq.heappush(self._queue, (0 if urgent else 1, next(self._order), slot, size))
        self._take()

    def promote(self, slot: int) -> None:
        """Make the remaining chunks of a slot urgent."""
        self._queue = [(0 if entry[2] == slot else entry[0], *entry[1:]) for entry in self._queue]
        heapq.heapify(self._queue)

    def _take(self) -> None:
        while self._idle and self._queue:
            _, _, slot, size = heapq.heappop(self._queue)
            self._idle -= 1
            start_ns = max(self._clock.now_ns, self._free_at_ns)
            self._free_at_ns = start_ns + math.ceil(size * 1e9 / self._machine.link_bytes_per_s)
            self._clock.call_after(self._free_at_ns - self._clock.now_ns, lambda slot=slot: self._arrived(slot))

    def _arrived(self, slot: int) -> None:
        self._idle += 1
        self._left[slot] -= 1
        if not self._left[slot]:
            del self._left[slot]
            self._done(slot)
        self._take()


class VirtualLoader:
    """The loader process: the real ledger, which handles one event after the other, and its link.

    It calls `send_to_compute` with each message when the message arrives there.
    """

    def __init__(
        self,
        ledger: Ledger,
        machine: Machine,
        clock: VirtualClock,
        send_to_compute: Callable[[HeldFromLoader], None],
    ) -> None:
        self._ledger, self._machine, self._clock, self._send_to_compute = ledger, machine, clock, send_to_compute
        self._link = VirtualLink(machine, clock, lambda slot: self.receive(FillDone(slot)))
        self._free_at_ns = 0

    def receive(self, event: LedgerEvent) -> None:
        """Queue an event for the ledger."""
        self._free_at_ns = max(self._clock.now_ns, self._free_at_ns) + self._machine.decide_ns
        self._clock.call_after(self._free_at_ns - self._clock.now_ns, lambda: self._decide(event))

    def _decide(self, event: LedgerEvent) -> None:
        for action in self._ledger.handle(event):
            match action:
                case StartFill():
                    self._link.start(action.slot, action.urgent)
                case PromoteFill():
                    self._link.promote(action.slot)
                case _:
                    self._clock.call_after(
                        self._machine.message_ns, lambda message=action: self._send_to_compute(message)
                    )
