"""Who owns each slot, and what is in it. An expert's key is layer * experts + expert."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import numpy as np

from ...ipc.messages import NO_CAUSE, Cause

NO_KEY = -1
NOW = -1
"""Recalled without delay. Other recalls carry the tick (step * layers + layer) after which compute returns the slot."""
NOT_RECALLED = -2


class Owner(Enum):
    """FREE and FILLING slots are the loader's, HELD ones are compute's (R1)."""

    FREE = "free"
    FILLING = "filling"
    HELD = "held"


@dataclass(slots=True)
class Slot:
    """One slot. `urgent` matters while it is filling, `recall` while it is held.

    `cause` says why it was filled, `recall_cause` what it was asked for last since then.
    """

    number: int
    owner: Owner = Owner.FREE
    key: int = NO_KEY
    urgent: bool = False
    recall: int = NOT_RECALLED
    cause: Cause = NO_CAUSE
    recall_cause: Cause = NO_CAUSE


class SlotTable:
    """All slots and the only ways in which they change hands: free → filling → held → free.

    The layers share all slots, or (`by_layer`) each layer may occupy as many as any other; who shares is a group.
    """

    def __init__(self, count: int, layers: int, experts: int, by_layer: bool = False) -> None:
        keys, groups = layers * experts, layers if by_layer else 1
        self._group_keys = keys // groups
        self._quota = np.full(groups, count // groups)
        self._quota[: count % groups] += 1
        self._occupied = np.zeros(groups, dtype=np.int64)
        self._returning = np.zeros(groups, dtype=np.int64)
        self.slots = [Slot(number) for number in range(count)]
        self.free = {slot.number: slot for slot in reversed(self.slots)}
        self.where: dict[int, Slot] = {}
        """Key → the one slot that is filling with it or holds it."""
        self.filling: dict[int, Slot] = {}
        self.recalled: dict[int, Slot] = {}
        """Slots that compute was asked for and has not returned yet."""
        self.placed = np.zeros(keys, dtype=bool)
        """By key: in `where`."""
        self.evictable = np.zeros(keys, dtype=bool)
        """By key: held, and not recalled."""

    def group_of(self, key: int) -> int:
        return key // self._group_keys

    def room(self, group: int) -> int:
        """Slots that can be filled for this group at once."""
        return min(int(self._quota[group] - self._occupied[group]), len(self.free))

    def quota(self, group: int) -> int:
        """Return how many slots this group may occupy."""
        return int(self._quota[group])

    def returning(self, group: int) -> int:
        """Slots of this group that compute was asked for and has not returned yet."""
        return int(self._returning[group])

    def evictable_for(self, group: int) -> np.ndarray:
        """bool by key: what may go for an expert of this group."""
        if len(self._quota) == 1:
            return self.evictable
        mine = np.zeros_like(self.evictable)
        part = slice(group * self._group_keys, (group + 1) * self._group_keys)
        mine[part] = self.evictable[part]
        return mine

    def start(self, key: int, urgent: bool) -> Slot:
        """A free slot begins to fill with `key`: that of its own number if it can be (slots for all: see SlotViews)."""
        slot = self.free.pop(key, None) or self.free.popitem()[1]
        slot.owner, slot.urgent = Owner.FILLING, urgent
        self.filling[slot.number] = slot
        self._place(slot, key)
        return slot

    def hold(self, slot: Slot) -> None:
        """A filled slot becomes compute's."""
        self.filling.pop(slot.number, None)
        slot.owner, slot.urgent = Owner.HELD, False
        self.evictable[slot.key] = True

    def adopt(self, slot: Slot, key: int) -> None:
        """A free slot turns out to be held by compute, with `key` in it (NO_KEY: with something of no use)."""
        del self.free[slot.number]
        slot.owner = Owner.HELD
        if key != NO_KEY:
            self._place(slot, key)
            self.evictable[key] = True

    def _place(self, slot: Slot, key: int) -> None:
        slot.key = key
        self.where[key] = slot
        self.placed[key] = True
        self._occupied[self.group_of(key)] += 1

    def recall(self, slot: Slot, tick: int) -> None:
        """Compute is asked to return the slot after `tick` (or NOW)."""
        if slot.key != NO_KEY and slot.number not in self.recalled:
            self.evictable[slot.key] = False
            self._returning[self.group_of(slot.key)] += 1
        slot.recall = tick
        self.recalled[slot.number] = slot

    def release(self, slot: Slot) -> None:
        """The slot is free again, whatever it was."""
        self.filling.pop(slot.number, None)
        was_recalled = self.recalled.pop(slot.number, None) is not None
        if slot.key != NO_KEY:
            group = self.group_of(slot.key)
            self._occupied[group] -= 1
            self._returning[group] -= was_recalled
            del self.where[slot.key]
            self.placed[slot.key] = self.evictable[slot.key] = False
        slot.owner, slot.key, slot.urgent, slot.recall = Owner.FREE, NO_KEY, False, NOT_RECALLED
        self.free[slot.number] = slot

    def void_recalls(self) -> None:
        """Nobody is asked for anything any more."""
        for slot in self.recalled.values():
            slot.recall, slot.recall_cause = NOT_RECALLED, NO_CAUSE
            if slot.key != NO_KEY:
                self.evictable[slot.key] = True
        self.recalled.clear()
        self._returning[:] = 0

    def held(self) -> Iterator[Slot]:
        return (slot for slot in self.slots if slot.owner is Owner.HELD)

    def urgent_fills(self) -> int:
        return sum(slot.urgent for slot in self.filling.values())

    def returning_now(self, group: int) -> int:
        """Slots for this group that compute returns as soon as it does not use them."""
        return sum(slot.recall == NOW and self._serves(slot, group) for slot in self.recalled.values())

    def returning_later(self, group: int) -> list[Slot]:
        """Slots for this group that compute keeps for some time yet."""
        return [slot for slot in self.recalled.values() if slot.recall != NOW and self._serves(slot, group)]

    def _serves(self, slot: Slot, group: int) -> bool:
        return slot.key == NO_KEY or self.group_of(slot.key) == group
