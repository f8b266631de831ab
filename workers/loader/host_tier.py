"""The host store between disk and a device: its contents, and the experts on their way through it to a slot.

A pure core: every call returns the actions to perform, in order. A place is overwritten only when no copy reads it any
more. Compute runs the copies and reports the end of each.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from ...ipc.messages import NO_CAUSE, Cause, Copy
from .events import FillDone

NO_PLACE = -1


class ReadInto(msgspec.Struct, frozen=True):
    """Read this expert from its files into `place` of the store."""

    place: int
    layer: int
    expert: int
    urgent: bool
    cause: Cause = NO_CAUSE


class PromoteRead(msgspec.Struct, frozen=True):
    """Make the read into this place urgent."""

    place: int


HostAction = ReadInto | PromoteRead | Copy | FillDone


@dataclass
class _Fetch:
    """An expert on its way into a slot: it waits for a place, is being read into one, or is being copied out of it."""

    slot: int
    key: int
    urgent: bool
    cause: Cause = NO_CAUSE
    place: int = NO_PLACE
    number: int = 0
    """Number of its copy, 0 before the copy is sent."""


class HostTier:
    """LRU cache of experts in the `places` of the store, for models of `experts` a layer.

    With `full`, every expert lies in the place of its key from the start. Else the least recently copied is evicted.
    """

    def __init__(self, places: int, experts: int, full: bool) -> None:
        self._experts, self._copies = experts, 0
        self._where: OrderedDict[int, int] = OrderedDict((key, key) for key in range(places) if full)
        """Key -> place of each expert in the store, the least recently used first."""
        self._free = [] if full else list(reversed(range(places)))
        self._busy: set[int] = set()
        """Places with a read or a copy under way."""
        self._waiting: deque[_Fetch] = deque()
        self._reading: dict[int, _Fetch] = {}
        """Place -> fetch."""
        self._copying: dict[int, _Fetch] = {}
        """Number of the copy -> fetch."""
        self.hits = 0
        """Fetches that found the expert in the store."""
        self.misses = 0
        """Fetches that read the expert from its files."""

    def fetch(self, slot: int, layer: int, expert: int, urgent: bool, cause: Cause = NO_CAUSE) -> list[HostAction]:
        """Bring this expert into `slot`; `FillDone` reports its arrival. Its actions carry `cause`."""
        fetch = _Fetch(slot, layer * self._experts + expert, urgent, cause)
        found = self._where.get(fetch.key)
        if found is not None:
            self.hits += 1
            fetch.place = found
            return [self._copy(fetch)]
        self.misses += 1
        self._enqueue(fetch)
        return self._start_reads()

    def on_read(self, place: int) -> list[HostAction]:
        """Send the copy out of `place`: the read into it has ended."""
        fetch = self._reading.pop(place)
        self._busy.discard(place)
        self._where[fetch.key] = place
        return [self._copy(fetch)]

    def on_copied(self, numbers: Iterable[int]) -> list[HostAction]:
        """Report the fills whose copies have ended and read into the places so freed.

        Unknown numbers belong to copies of a predecessor and are ignored.
        """
        ended = [self._copying.pop(number) for number in numbers if number in self._copying]
        self._busy.difference_update(fetch.place for fetch in ended)
        return [*(FillDone(fetch.slot) for fetch in ended), *self._start_reads()]

    def promote(self, slot: int) -> list[HostAction]:
        """Make the fetch into `slot` urgent: compute waits for it."""
        for fetch in self._waiting:
            if fetch.slot == slot:
                self._waiting.remove(fetch)
                fetch.urgent = True
                self._enqueue(fetch)
                return []
        for fetch in self._reading.values():
            if fetch.slot == slot:
                fetch.urgent = True
                return [PromoteRead(fetch.place)]
        return []  # its copy is under way

    def reissue_copies(self) -> list[HostAction]:
        """Send all copies under way again, to a new compute process that knows of none."""
        lost, self._copying = list(self._copying.values()), {}
        return [self._copy(fetch) for fetch in lost]

    def _enqueue(self, fetch: _Fetch) -> None:
        """Add to the waiting fetches: urgent ones first, in order of arrival."""
        before = sum(other.urgent for other in self._waiting) if fetch.urgent else len(self._waiting)
        self._waiting.insert(before, fetch)

    def _start_reads(self) -> list[HostAction]:
        actions: list[HostAction] = []
        while self._waiting and (place := self._take_place()) != NO_PLACE:
            fetch = self._waiting.popleft()
            fetch.place = place
            self._busy.add(place)
            self._reading[place] = fetch
            actions.append(ReadInto(place, *divmod(fetch.key, self._experts), fetch.urgent, fetch.cause))
        return actions

    def _take_place(self) -> int:
        """Return a place that may be overwritten now, evicting its expert; NO_PLACE if all are busy."""
        if self._free:
            return self._free.pop()
        for key, place in self._where.items():
            if place not in self._busy:
                del self._where[key]
                return place
        return NO_PLACE

    def _copy(self, fetch: _Fetch) -> Copy:
        self._copies += 1
        fetch.number = self._copies
        self._copying[fetch.number] = fetch
        self._pin(fetch.place)
        self._where.move_to_end(fetch.key)
        return Copy(fetch.number, fetch.slot, *divmod(fetch.key, self._experts), fetch.place, fetch.urgent, fetch.cause)

    def _pin(self, place: int) -> None:
        """Forbid reads into `place` until its copy has ended."""
        self._busy.add(place)
