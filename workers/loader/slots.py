"""Ownership of the slots and their contents. An expert's key is layer * experts + expert."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import numpy as np

from ...ipc.messages import NO_CAUSE, Cause, Filled, Recall
from .events import LedgerAction, PromoteFill, StartFill

NO_KEY = -1
NOW = -1
"""Tick of a recall without delay. Other recalls carry the tick (step * layers + layer) after which compute returns the
slot."""
NOT_RECALLED = -2
COMING, HELD, GOING = 1, 2, 3
"""States of an expert that has a slot (`CacheHeat.residence`)."""
ALL_LAYERS = 0
"""The only group of slots, where all layers share them."""


class Owner(Enum):
    """FREE and FILLING slots are the loader's, HELD ones are compute's (R1)."""

    FREE = "free"
    FILLING = "filling"
    HELD = "held"


@dataclass(slots=True)
class Slot:
    """State of one slot. `urgent` matters while it is filling, `recall` (a tick, or NOW) while it is held.

    `cause` says why it was filled, `recall_cause` why it was recalled last since then.
    """

    number: int
    owner: Owner = Owner.FREE
    key: int = NO_KEY
    urgent: bool = False
    recall: int = NOT_RECALLED
    cause: Cause = NO_CAUSE
    recall_cause: Cause = NO_CAUSE


class SlotTable:
    """Ownership table of all slots. Its methods are the only ways from free to filling to held to free.

    A group is the experts that share slots: those of all layers, or with `by_layer` those of one layer. Each layer then
    has an equal share of the slots.
    """

    def __init__(self, count: int, layers: int, experts: int, by_layer: bool = False) -> None:
        keys, groups = layers * experts, layers if by_layer else 1
        self.fully_resident = count >= keys
        """Every expert has a slot of its own: all are loaded sooner or later, and none is evicted."""
        self._group_keys = keys // groups
        self._quota = np.full(groups, count // groups)
        self._quota[: count % groups] += 1
        self._occupied = np.zeros(groups, dtype=np.int64)
        self._returning = np.zeros(groups, dtype=np.int64)
        self.slots = [Slot(number) for number in range(count)]
        self.free = {slot.number: slot for slot in reversed(self.slots)}
        self.where: dict[int, Slot] = {}
        """Key -> the one slot that holds it or is filling with it."""
        self.filling: dict[int, Slot] = {}
        """Slots that are filling, by number."""
        self.recalled: dict[int, Slot] = {}
        """Slots that compute was asked for and has not returned yet, by number."""
        self.placed = np.zeros(keys, dtype=bool)
        """bool [layers * experts]: the key is in `where`."""
        self.evictable = np.zeros(keys, dtype=bool)
        """bool [layers * experts]: the key is held and its slot is not recalled."""

    @property
    def is_shared(self) -> bool:
        """Return whether all layers share the slots."""
        return len(self._quota) == 1

    def group_of(self, key: int) -> int:
        return key // self._group_keys

    def room(self, group: int) -> int:
        """Return how many free slots this group may fill now."""
        return min(int(self._quota[group] - self._occupied[group]), len(self.free))

    def quota(self, group: int) -> int:
        """Return how many slots this group may occupy."""
        return int(self._quota[group])

    def returning(self, group: int) -> int:
        """Return how many slots of this group are recalled and not returned yet."""
        return int(self._returning[group])

    def evictable_for(self, group: int) -> np.ndarray:
        """Return the keys that may be evicted for an expert of this group, bool [layers * experts]."""
        if self.is_shared:
            return self.evictable
        evictable = np.zeros_like(self.evictable)
        part = slice(group * self._group_keys, (group + 1) * self._group_keys)
        evictable[part] = self.evictable[part]
        return evictable

    def start(self, key: int, urgent: bool) -> Slot:
        """Begin to fill a free slot with `key`, and return the slot.

        It is the slot whose number is the key, if that is free: compute stacks experts that lie so (`SlotViews.stack`).
        """
        slot = self.free.pop(key, None) or self.free.popitem()[1]
        slot.owner, slot.urgent = Owner.FILLING, urgent
        self.filling[slot.number] = slot
        self._place(slot, key)
        return slot

    def hold(self, slot: Slot) -> None:
        """Pass a filled slot to compute."""
        self.filling.pop(slot.number, None)
        slot.owner, slot.urgent = Owner.HELD, False
        self.evictable[slot.key] = True

    def adopt(self, slot: Slot, key: int) -> None:
        """Mark a free slot as held by compute with `key` in it (NO_KEY: with nothing of use)."""
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
        """Mark a held slot as recalled: compute returns it after `tick` (or NOW)."""
        if slot.key != NO_KEY and slot.number not in self.recalled:
            self.evictable[slot.key] = False
            self._returning[self.group_of(slot.key)] += 1
        slot.recall = tick
        self.recalled[slot.number] = slot

    def release(self, slot: Slot) -> None:
        """Free a slot, filling or held."""
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
        """Forget all recalls: the compute process that received them is dead."""
        for slot in self.recalled.values():
            slot.recall, slot.recall_cause = NOT_RECALLED, NO_CAUSE
            if slot.key != NO_KEY:
                self.evictable[slot.key] = True
        self.recalled.clear()
        self._returning[:] = 0

    def held(self) -> Iterator[Slot]:
        return (slot for slot in self.slots if slot.owner is Owner.HELD)

    def residence(self) -> np.ndarray:
        """Return the state of each key, uint8 [layers * experts]; see `CacheHeat.residence`."""
        states = np.zeros(len(self.placed), dtype=np.uint8)
        states[self.placed] = GOING
        states[self.evictable] = HELD
        states[[slot.key for slot in self.filling.values()]] = COMING
        return states

    def urgent_fills(self) -> int:
        return sum(slot.urgent for slot in self.filling.values())

    def returning_now(self, group: int) -> int:
        """Return how many recalled slots for this group come back as soon as compute stops using them."""
        return sum(slot.recall == NOW and self._serves(slot, group) for slot in self.recalled.values())

    def returning_later(self, group: int) -> list[Slot]:
        """Return the recalled slots for this group that compute keeps until a later tick."""
        return [slot for slot in self.recalled.values() if slot.recall != NOW and self._serves(slot, group)]

    def _serves(self, slot: Slot, group: int) -> bool:
        return slot.key == NO_KEY or self.group_of(slot.key) == group


class LedgerActions:
    """Decisions of the ledger: each changes the slot table at once and queues the action that tells others."""

    def __init__(self, table: SlotTable, layers: int, experts: int) -> None:
        self._table, self._layers, self._experts = table, layers, experts
        self._actions: list[LedgerAction] = []

    def take(self) -> list[LedgerAction]:
        """Return the queued actions in order, each once."""
        actions, self._actions = self._actions, []
        return actions

    def start(self, key: int, urgent: bool, cause: Cause) -> None:
        """Begin to fill a free slot with `key`."""
        slot = self._table.start(key, urgent)
        slot.cause, slot.recall_cause = cause, NO_CAUSE
        self._actions.append(StartFill(slot.number, *divmod(key, self._experts), urgent, cause))

    def promote(self, slot: Slot) -> None:
        """Make the fill of this slot urgent."""
        slot.urgent = True
        self._actions.append(PromoteFill(slot.number))

    def announce(self, slot: Slot) -> None:
        """Tell compute what this slot holds."""
        self._actions.append(Filled(slot.number, *divmod(slot.key, self._experts), slot.cause))

    def recall(self, slots: list[Slot], tick: int, cause: Cause) -> None:
        """Ask compute for these slots after `tick`, or NOW."""
        for slot in slots:
            self._table.recall(slot, tick)
            slot.recall_cause = cause
        if slots:
            step, layer = (-1, -1) if tick == NOW else divmod(tick, self._layers)
            self._actions.append(Recall([slot.number for slot in slots], step, layer, cause))
