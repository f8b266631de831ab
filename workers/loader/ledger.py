"""The loader's side of the residency protocol: what happens to the slots. What is brought next and what goes is decided
in fetching.py.

A pure core: `handle(event)` returns what to do. The rules R1–R9 are told in docs/architecture.md.
"""

from __future__ import annotations

from collections import defaultdict
from typing import assert_never

import numpy as np

from ...ipc.messages import Given, Hint, Holding, Need, Plan, Used
from ..routing import read_partial_routing, used_keys
from .advice import MOST_STEPS, Advice
from .events import ComputeJoined, FillDone, LedgerAction, LedgerEvent
from .fetching import Fetching, Limits
from .orders import Orders
from .outlook import Outlook
from .policies import Policy
from .policies.popularity import Popularity
from .prefetched import Prefetched
from .slots import NO_KEY, NOW, Owner, Slot, SlotTable
from .statistics import LedgerStatistics


class Ledger:
    """The owner of all slots that compute does not hold. It fills nothing before it has heard `Holding` (R9).

    `fills_in_flight` transfers run at a time, besides as many urgent ones. `recalls_ahead` (None: chosen) slots at most
    are free or asked for in favour of prefetches. `by_layer`: every layer has as many slots as any other,
    else all share them. `rank_victims`: always, never or auto (see outlook.py). `literal`: plans and
    hints are taken at their word. `volatile`: what compute holds goes when it dies (memory of a device).
    """

    def __init__(
        self,
        slots: int,
        layers: int,
        experts: int,
        top_k: int,
        policy: Policy | None = None,
        *,
        fills_in_flight: int = 2,
        recalls_ahead: int | None = None,
        by_layer: bool = False,
        rank_victims: str = "auto",
        literal: bool = False,
        volatile: bool = False,
    ) -> None:
        self._layers, self._experts = layers, experts
        self._table = SlotTable(slots, layers, experts, by_layer)
        self._advice = Advice(layers, experts, literal)
        self._policy = policy or Popularity(layers, experts, top_k)
        self._prefetched = Prefetched(layers * experts)
        self._outlook = Outlook(layers, experts, self._advice, self._policy, rank_victims)
        self._orders = Orders(self._table, layers, experts)
        roomy = slots >= layers * experts
        limits = Limits(
            fills_in_flight=fills_in_flight,
            recalls_ahead=2 * max(fills_in_flight, top_k) if recalls_ahead is None else recalls_ahead,
            prefetches=slots if roomy else max(slots - max(top_k, 1), 0),
            roomy=roomy,
        )
        parts = (self._table, self._orders, self._advice, self._outlook, self._prefetched)
        self._fetching = Fetching(*parts, limits)
        self._heard, self._volatile = False, volatile
        self._need: dict[int, None] = {}
        self._counts: defaultdict[str, int] = defaultdict(int)

    def handle(self, event: LedgerEvent) -> list[LedgerAction]:
        """Takes one event in; what to do about it comes back, in the order in which it has to be done."""
        self._take_in(event)
        if not isinstance(event, FillDone | Given):  # a slot changes hands: nothing is worth more or less for that
            self._outlook.refresh()
        if self._heard:
            self._fetching.serve(self._need)
            if not self._need:
                self._fetching.prefetch()
        return self._orders.take()

    def _take_in(self, event: LedgerEvent) -> None:
        match event:
            case FillDone():
                self._on_fill_done(event)
            case Given():
                self._on_given(event)
            case Need():
                self._on_need(event)
            case Used():
                self._on_used(event)
            case Plan():
                self._counts["strange"] += not self._advice.take(event)
            case Hint():
                self._counts["strange"] += not self._advice.hear(event)
            case Holding():
                self._on_holding(event)
            case ComputeJoined():
                self._on_compute_joined()
            case _:
                assert_never(event)

    # What happens

    def _on_fill_done(self, done: FillDone) -> None:
        slot = self._slot(done.slot, Owner.FILLING)
        if slot is None:
            return
        if done.ok:
            self._counts["loads"] += 1
            self._need.pop(slot.key, None)
            self._fetching.failed_keys.discard(slot.key)
            self._table.hold(slot)
            self._orders.announce(slot)
        else:
            self._counts["failed"] += 1
            self._fetching.failed_keys.add(slot.key)
            self._prefetched.void(slot.key)
            self._table.release(slot)

    def _on_given(self, given: Given) -> None:
        self._move(given.step, given.layer)
        for number in given.slots:
            slot = self._slot(number, Owner.HELD)
            if slot is not None:
                self._counts["evictions"] += 1
                if slot.key != NO_KEY:
                    self._prefetched.evicted(slot.key, self._advice.position)
                self._table.release(slot)

    def _on_need(self, need: Need) -> None:
        if not self._move(need.step, need.layer):
            return
        first_key = need.layer * self._experts
        keys = [first_key + expert for expert in need.experts if 0 <= expert < self._experts]
        self._counts["strange"] += len(need.experts) - len(keys)
        self._touch([key for key in need.found if 0 <= key < self._layers * self._experts] + keys, need.step)
        self._need.clear()
        for key in keys:
            slot = self._table.where.get(key)
            if slot is None or slot.owner is Owner.FILLING:  # a held one is announced: compute is about to hear of it
                self._need[key] = None
                self._promote(slot)

    def _touch(self, keys: list[int], step: int) -> None:
        self._policy.touched(np.array(keys, dtype=np.int64), step)

    def _promote(self, slot: Slot | None) -> None:
        if slot is not None and not slot.urgent:
            self._orders.promote(slot)
            self._counts["promoted"] += self._prefetched.void(slot.key)

    def _on_used(self, used: Used) -> None:
        routing = read_partial_routing(used, self._layers, self._experts)
        if routing is None or not 0 <= used.step < MOST_STEPS:
            self._counts["strange"] += 1
            return
        keys = used_keys(routing, self._experts)
        last_tick = (used.step + 1) * self._layers - 1
        self._policy.used(keys, used.step)
        self._prefetched.judge(keys, self._table.placed, last_tick)
        if last_tick > self._advice.position:
            self._move_to(last_tick)
        was_used = np.zeros(self._layers * self._experts, dtype=bool)
        was_used[keys] = True
        self._advice.learn(used.step, was_used.reshape(self._layers, self._experts))

    def _on_holding(self, holding: Holding) -> None:
        """Only a ledger that has heard nothing yet learns from the table; another knows better than a new compute."""
        if not self._heard:
            self._heard = True
            self._adopt(holding.slots)
        if holding.need is not None:
            self._on_need(holding.need)

    def _adopt(self, slots: dict[int, tuple[int, int]]) -> None:
        useless = []
        for number, (layer, expert) in slots.items():
            slot = self._slot(number, Owner.FREE)
            if slot is None:
                continue
            key = self._key(layer, expert)
            self._table.adopt(slot, key)
            if key == NO_KEY:
                useless.append(slot)
        self._orders.recall(useless, NOW)

    def _on_compute_joined(self) -> None:
        self._need.clear()
        self._table.void_recalls()
        for slot in list(self._table.held()):
            if slot.key == NO_KEY or self._volatile:
                self._lose(slot)
            else:
                self._orders.announce(slot)

    def _lose(self, slot: Slot) -> None:
        """What compute held died with it."""
        if slot.key != NO_KEY:
            self._prefetched.evicted(slot.key, self._advice.position)
        self._table.release(slot)

    def _move(self, step: int, layer: int) -> bool:
        """Compute says where it is; a negative step says that it has not begun. False: that cannot be."""
        if step < 0:
            return False
        if not 0 <= layer < self._layers or step >= MOST_STEPS:
            self._counts["strange"] += 1
            return False
        self._move_to(step * self._layers + layer)
        return True

    def _move_to(self, tick: int) -> None:
        if tick == self._advice.position:
            return
        self._outlook.refresh()
        begun = self._advice.move(tick)
        dropped = int(np.count_nonzero(~self._table.placed[begun]))
        self._counts["dropped"] += dropped
        if len(begun):
            on_the_way = any(slot.key in begun for slot in self._table.filling.values())
            self._advice.settle(late=on_the_way)

    # Small steps

    def _slot(self, number: int, owner: Owner) -> Slot | None:
        """The slot if it exists and belongs to `owner`; otherwise the message makes no sense and is counted."""
        slot = self._table.slots[number] if 0 <= number < len(self._table.slots) else None
        if slot is None or slot.owner is not owner:
            self._counts["strange"] += 1
            return None
        return slot

    def _key(self, layer: int, expert: int) -> int:
        """NO_KEY if there is no such expert, or if it is in a slot already."""
        key = layer * self._experts + expert
        if 0 <= layer < self._layers and 0 <= expert < self._experts and key not in self._table.where:
            return key
        self._counts["strange"] += 1
        return NO_KEY

    def statistics(self) -> LedgerStatistics:
        """How it went so far."""
        named = ("loads", "failed", "promoted", "evictions", "dropped", "strange")
        free, filling = len(self._table.free), len(self._table.filling)
        return LedgerStatistics(
            **{name: self._counts[name] for name in named},
            prefetches=self._fetching.prefetches,
            useful=self._prefetched.useful,
            wasted=self._prefetched.wasted,
            free=free,
            filling=filling,
            held=len(self._table.slots) - free - filling,
            accuracy=round(self._advice.reliability.accuracy, 3),
            wanted_chance=round(self._advice.wanted_chance, 3),
            ranks_victims=int(self._outlook.ranks_victims),
        )
