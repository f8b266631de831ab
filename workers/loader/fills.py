"""Carries out the ledger's fills: reads into slots of shared memory, or into a host store and on to a device."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

import numpy as np

from ...ipc.messages import Cause, Copy
from ..checkpoint.survey import Survey
from .events import FillDone
from .host_tier import HostAction, HostTier, PromoteRead, ReadInto
from .transfer.expert_sources import ExpertSource, FileSource, StoreSource
from .transfer.link import EmulatedLink
from .transfer.store_references import StoreReferences
from .transfer.transfers import Transfer, TransferEngine


class Fills(Protocol):
    """Ways in which experts get into slots."""

    announced: bool
    """Compute learns of an expert by its `Copy`, before the expert is in the slot; it needs no `Filled`."""

    def start(self, slot: int, layer: int, expert: int, urgent: bool, cause: Cause) -> None:
        """Begin to fill `slot`. The transfer carries `cause`."""
        ...

    def promote(self, slot: int) -> None:
        """Make the fill of `slot` urgent: compute waits for it."""
        ...

    def on_read(self, transfer: Transfer) -> list[FillDone]:
        """Take a transfer that a reader thread has ended; return the fills that this completes."""
        ...

    def on_copied(self, numbers: Iterable[int]) -> list[FillDone]:
        """Take the numbers of copies that compute has ended; return the fills that this completes."""
        ...

    def on_compute_joined(self) -> None:
        """Send copies under way again: a new compute process knows of none."""
        ...

    def counters(self) -> dict[str, int | float]:
        """Return counters to publish besides the ledger's."""
        ...

    def close(self) -> None: ...


class SharedFills:
    """Fills slots in shared memory: reader threads write into them."""

    announced = False

    def __init__(self, engine: TransferEngine) -> None:
        self._engine = engine
        self.start, self.promote, self.close = engine.start, engine.promote, engine.close

    def on_read(self, transfer: Transfer) -> list[FillDone]:
        return [FillDone(transfer.slot)]

    def on_copied(self, numbers: Iterable[int]) -> list[FillDone]:
        return []

    def on_compute_joined(self) -> None:
        """Do nothing: the new process maps the same slots."""

    def counters(self) -> dict[str, int | float]:
        return {}


class DeviceFills:
    """Fills slots in memory of a device: reader threads fill the host store, compute enqueues the copies (design §6).

    `reader` fills places of the store; None: the store holds every expert.
    """

    announced = True

    def __init__(self, tier: HostTier, reader: TransferEngine | None, send: Callable[[Copy], None]) -> None:
        self._tier, self._reader, self._send = tier, reader, send

    def start(self, slot: int, layer: int, expert: int, urgent: bool, cause: Cause) -> None:
        self._perform(self._tier.fetch(slot, layer, expert, urgent, cause))

    def promote(self, slot: int) -> None:
        self._perform(self._tier.promote(slot))

    def on_read(self, transfer: Transfer) -> list[FillDone]:
        return self._perform(self._tier.on_read(transfer.slot))

    def on_copied(self, numbers: Iterable[int]) -> list[FillDone]:
        return self._perform(self._tier.on_copied(numbers))

    def on_compute_joined(self) -> None:
        self._perform(self._tier.reissue_copies())

    def counters(self) -> dict[str, int | float]:
        """Return hits and misses of the host store."""
        return {"store_hits": self._tier.hits, "store_misses": self._tier.misses}

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


class SharedSlots(NamedTuple):
    """Slots in shared memory, uint8, filled from the checkpoint's files, or from a full host store if there is one."""

    memory: np.ndarray
    store: np.ndarray | None = None
    """Host store that holds every expert, uint8."""
    link: EmulatedLink | None = None
    """Holds copies from the store to a rate."""


class ReferenceSlots(NamedTuple):
    """Slots that refer to experts of a full host store, uint8 [slots * REFERENCE_BYTES], each after its time on a link.

    The loader does not read the store.
    """

    memory: np.ndarray
    link: EmulatedLink


class DeviceSlots(NamedTuple):
    """Slots in memory of a device, behind a host store of `places` experts."""

    places: int
    store: np.ndarray | None = None
    """The store, uint8, if the loader fills it; None: it holds every expert, and only compute reads it."""


Slots = SharedSlots | ReferenceSlots | DeviceSlots


def open_fills(
    survey: Survey,
    slots: Slots,
    open_engine: Callable[[ExpertSource, np.ndarray], TransferEngine],
    send: Callable[[Copy], None],
    open_files: Callable[[Survey], ExpertSource] = FileSource,
) -> Fills:
    """Return the fills for these slots; `open_files` opens the checkpoint's files.

    `open_engine` starts reader threads that fill memory, uint8 [bytes]; `send` sends a copy to compute. Raises
    CheckpointError if a file is gone or changed since the survey.
    """
    if isinstance(slots, ReferenceSlots):
        return SharedFills(open_engine(StoreReferences(survey, slots.link), slots.memory))
    if isinstance(slots, SharedSlots):
        source = open_files(survey) if slots.store is None else StoreSource(slots.store, survey, slots.link)
        return SharedFills(open_engine(source, slots.memory))
    tier = HostTier(slots.places, survey.experts, full=slots.store is None)
    reader = None if slots.store is None else open_engine(open_files(survey), slots.store)
    return DeviceFills(tier, reader, send)
