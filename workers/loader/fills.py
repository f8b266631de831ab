"""Carries out what the ledger orders: reads into slots of shared memory, or into a host store and on to a device."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from ...ipc.messages import Cause, Copy
from .events import FillDone
from .host_tier import HostAction, HostTier, PromoteRead, ReadInto
from .transfer.transfers import Transfer, TransferEngine


class Fills(Protocol):
    """How experts get into slots."""

    announced: bool
    """Whether compute knows of an expert before it is there."""

    def start(self, slot: int, layer: int, expert: int, urgent: bool, cause: Cause) -> None:
        """Begin to fill `slot`; `cause` goes along with the transfer."""
        ...

    def promote(self, slot: int) -> None:
        """A need waits for what is on its way into `slot`."""
        ...

    def read(self, transfer: Transfer) -> list[FillDone]:
        """A reader thread has ended a transfer; which slots are filled by that."""
        ...

    def copied(self, numbers: Iterable[int]) -> list[FillDone]:
        """Compute says that copies have ended; which slots are filled by that."""
        ...

    def compute_joined(self) -> None:
        """A compute is there that was not told of any copy."""
        ...

    def close(self) -> None: ...


class SharedFills:
    """Slots in shared memory: reader threads fill them."""

    announced = False

    def __init__(self, engine: TransferEngine) -> None:
        self._engine = engine
        self.start, self.promote, self.close = engine.start, engine.promote, engine.close

    def read(self, transfer: Transfer) -> list[FillDone]:
        return [FillDone(transfer.slot)]

    def copied(self, numbers: Iterable[int]) -> list[FillDone]:
        return []

    def compute_joined(self) -> None:
        """It finds the slots as they are."""


class DeviceFills:
    """Slots in memory of a device: reader threads fill the host store, compute enqueues the copies (design §6).

    `reader` fills places of the store; None: it holds every expert.
    """

    announced = True

    def __init__(self, tier: HostTier, reader: TransferEngine | None, send: Callable[[Copy], None]) -> None:
        self._tier, self._reader, self._send = tier, reader, send

    def start(self, slot: int, layer: int, expert: int, urgent: bool, cause: Cause) -> None:
        self._perform(self._tier.fetch(slot, layer, expert, urgent, cause))

    def promote(self, slot: int) -> None:
        self._perform(self._tier.hurry(slot))

    def read(self, transfer: Transfer) -> list[FillDone]:
        return self._perform(self._tier.read(transfer.slot))

    def copied(self, numbers: Iterable[int]) -> list[FillDone]:
        return self._perform(self._tier.copied(numbers))

    def compute_joined(self) -> None:
        self._perform(self._tier.reissue_copies())

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()

    def _perform(self, actions: list[HostAction]) -> list[FillDone]:
        done: list[FillDone] = []
        for action in actions:
            match action:
                case Copy():
                    self._send(action)
                case FillDone():
                    done.append(action)
                case ReadInto() if self._reader is not None:
                    self._reader.start(action.place, action.layer, action.expert, action.urgent, action.cause)
                case PromoteRead() if self._reader is not None:
                    self._reader.promote(action.place)
                case _:
                    pass
        return done
