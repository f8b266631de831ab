"""The loader process of a timed replay: the real ledger, one thing after the other, and its transfers."""

from __future__ import annotations

from collections.abc import Callable

from ...ipc.messages import HeldFromLoader
from ...workers.loader.events import FillDone, LedgerEvent, PromoteFill, StartFill
from ...workers.loader.ledger import Ledger
from .clock import VirtualClock
from .link import VirtualLink
from .machine import Machine


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
