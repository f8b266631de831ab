"""The host store between disk and a device: which experts lie in it, and what is on its way through it to a slot.

A pure core: every call returns what to do, in order. A place is overwritten only when nothing reads it any more: the
copies out of it are compute's, who says when each has ended.
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
    """Read this expert from its files into a place of the store."""

    place: int
    layer: int
    expert: int
    urgent: bool
    cause: Cause = NO_CAUSE


class PromoteRead(msgspec.Struct, frozen=True):
    """The read into this place has become urgent."""

    place: int


HostAction = ReadInto | PromoteRead | Copy | FillDone


@dataclass
class _Fetch:
    """An expert on its way into a slot: it waits for a place, is read into one, or is copied out of it."""

    slot: int
    key: int
    urgent: bool
    cause: Cause = NO_CAUSE
    place: int = NO_PLACE
    number: int = 0
    """Of the copy, once it was ordered."""


class HostTier:
    """`places` of the store for `experts` a layer. `whole`: every expert lies in the place of its own key from the
    start; else the least recently copied makes room."""

    def __init__(self, places: int, experts: int, whole: bool) -> None:
        self._experts, self._copies = experts, 0
        self._where: OrderedDict[int, int] = OrderedDict((key, key) for key in range(places) if whole)
        """Key → place of what is there; the least recently used first."""
        self._free = [] if whole else list(reversed(range(places)))
        self._busy: set[int] = set()
        """Places that are read into or copied out of."""
        self._waiting: deque[_Fetch] = deque()
        self._reading: dict[int, _Fetch] = {}
        """By place."""
        self._copying: dict[int, _Fetch] = {}
        """By number of the copy."""
        self.hits = self.misses = 0

    def fetch(self, slot: int, layer: int, expert: int, urgent: bool, cause: Cause = NO_CAUSE) -> list[HostAction]:
        """Bring this expert into `slot`; `FillDone` says that it is there. `cause` goes along."""
        fetch = _Fetch(slot, layer * self._experts + expert, urgent, cause)
        found = self._where.get(fetch.key)
        if found is not None:
            self.hits += 1
            fetch.place = found
            return [self._copy(fetch)]
        self.misses += 1
        self._wait(fetch)
        return self._read_on()

    def read(self, place: int) -> list[HostAction]:
        """The read into `place` has ended."""
        fetch = self._reading.pop(place)
        self._busy.discard(place)
        self._where[fetch.key] = place
        return [self._copy(fetch)]

    def copied(self, numbers: Iterable[int]) -> list[HostAction]:
        """These copies have ended; numbers that nobody waits for are those of a predecessor."""
        ended = [self._copying.pop(number) for number in numbers if number in self._copying]
        self._busy.difference_update(fetch.place for fetch in ended)
        return [*(FillDone(fetch.slot) for fetch in ended), *self._read_on()]

    def hurry(self, slot: int) -> list[HostAction]:
        """A need waits for what is on its way into `slot`."""
        for fetch in self._waiting:
            if fetch.slot == slot:
                self._waiting.remove(fetch)
                fetch.urgent = True
                self._wait(fetch)
                return []
        for fetch in self._reading.values():
            if fetch.slot == slot:
                fetch.urgent = True
                return [PromoteRead(fetch.place)]
        return []  # its copy is under way

    def reissue_copies(self) -> list[HostAction]:
        """A new compute knows of no copy: those that its predecessor was told are ordered once more."""
        lost, self._copying = list(self._copying.values()), {}
        return [self._copy(fetch) for fetch in lost]

    def _wait(self, fetch: _Fetch) -> None:
        """Urgent ones first, each kind in its order."""
        before = sum(other.urgent for other in self._waiting) if fetch.urgent else len(self._waiting)
        self._waiting.insert(before, fetch)

    def _read_on(self) -> list[HostAction]:
        actions: list[HostAction] = []
        while self._waiting and (place := self._room()) != NO_PLACE:
            fetch = self._waiting.popleft()
            fetch.place = place
            self._busy.add(place)
            self._reading[place] = fetch
            actions.append(ReadInto(place, *divmod(fetch.key, self._experts), fetch.urgent, fetch.cause))
        return actions

    def _room(self) -> int:
        """A place that may be overwritten now."""
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
        self._keep(fetch.place)
        self._where.move_to_end(fetch.key)
        return Copy(fetch.number, fetch.slot, *divmod(fetch.key, self._experts), fetch.place, fetch.urgent, fetch.cause)

    def _keep(self, place: int) -> None:
        """Nothing is read into it until its copy has ended."""
        self._busy.add(place)
