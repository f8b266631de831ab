"""The loader's side of the residency protocol: what happens to the slots. What is brought next and what goes is decided
in prefetch_scheduler.py.

A pure core: `handle(event)` returns what to do. The rules R1–R9 are told in docs/architecture.md.
"""

from __future__ import annotations

from collections import defaultdict
from typing import assert_never

import numpy as np

from ...ipc.messages import NO_CAUSE, Cause, Hint, Miss, Released, ResidentTable, StepPrediction, StepRouting
from ..traces.routing import read_partial_routing, used_keys
from .events import ComputeJoined, FillDone, LedgerAction, LedgerEvent
from .eviction import EvictionRanking
from .explanations import Explainer, Explanation
from .ledger_actions import LedgerActions
from .policies import Policy
from .policies.popularity import Popularity
from .prefetch_accounting import PrefetchAccounting
from .prefetch_plan import MAX_STEPS, PrefetchPlan
from .prefetch_scheduler import PrefetchLimits, PrefetchScheduler
from .slots import NO_KEY, NOW, Owner, Slot, SlotTable
from .statistics import LedgerStatistics


class Ledger:
    """The owner of all slots that compute does not hold. It fills nothing before it has heard `ResidentTable` (R9).

    `fills_in_flight` transfers run at a time, besides as many urgent ones. `recalls_ahead` (None: chosen) slots at most
    are free or asked for in favour of prefetches. `by_layer`: every layer has as many slots as any other,
    else all share them. `rank_victims`: always, never or auto (see eviction.py). `uncalibrated`: plans and
    hints are taken at their word. `volatile`: what compute holds goes when it dies (memory of a device).
    `explain`: notes are taken of why experts are missing (`explanations`); it decides the same without.
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
        uncalibrated: bool = False,
        volatile: bool = False,
        explain: bool = False,
    ) -> None:
        self._layers, self._experts = layers, experts
        self._table = SlotTable(slots, layers, experts, by_layer)
        self._prefetch_plan = PrefetchPlan(layers, experts, uncalibrated)
        self._policy = policy or Popularity(layers, experts, top_k)
        self._prefetched = PrefetchAccounting(layers * experts)
        self._eviction = EvictionRanking(layers, experts, self._prefetch_plan, self._policy, rank_victims)
        self._orders = LedgerActions(self._table, layers, experts)
        fully_resident = slots >= layers * experts
        limits = PrefetchLimits(
            fills_in_flight=fills_in_flight,
            recalls_ahead=2 * max(fills_in_flight, top_k) if recalls_ahead is None else recalls_ahead,
            prefetches=slots if fully_resident else max(slots - max(top_k, 1), 0),
            fully_resident=fully_resident,
        )
        parts = (self._table, self._orders, self._prefetch_plan, self._eviction, self._prefetched)
        self._prefetching = PrefetchScheduler(*parts, limits)
        self._heard, self._volatile = False, volatile
        self._need: dict[int, None] = {}
        self._need_cause = NO_CAUSE
        seen = (self._table, self._prefetch_plan, experts, fills_in_flight, self._prefetching.failed_keys)
        self._explainer = Explainer(*seen) if explain else None
        self._counts: defaultdict[str, int] = defaultdict(int)

    def handle(self, event: LedgerEvent) -> list[LedgerAction]:
        """Takes one event in; what to do about it comes back, in the order in which it has to be done."""
        self._on_event(event)
        if not isinstance(event, FillDone | Released):  # a slot changes hands: nothing is worth more or less for that
            self._eviction.refresh()
        if self._heard:
            self._prefetching.serve(self._need, self._need_cause)
            if not self._need:
                self._prefetching.prefetch()
        return self._orders.take()

    def explanations(self) -> list[Explanation]:
        """Return the notes taken since the last call; none without `explain`."""
        return [] if self._explainer is None else self._explainer.take()

    def _on_event(self, event: LedgerEvent) -> None:
        match event:
            case FillDone():
                self._on_fill_done(event)
            case Released():
                self._on_released(event)
            case Miss():
                self._on_miss(event)
            case StepRouting():
                self._on_step_routing(event)
            case StepPrediction() | Hint():
                self._on_advice(event)
            case ResidentTable():
                self._on_resident_table(event)
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
            self._prefetching.failed_keys.discard(slot.key)
            self._table.hold(slot)
            self._orders.announce(slot)
        else:
            self._counts["failed"] += 1
            self._prefetching.failed_keys.add(slot.key)
            self._prefetched.void(slot.key)
            self._table.release(slot)

    def _on_advice(self, advice: StepPrediction | Hint) -> None:
        known = (
            self._prefetch_plan.take(advice)
            if isinstance(advice, StepPrediction)
            else self._prefetch_plan.receive(advice)
        )
        self._counts["invalid"] += not known
        if self._explainer is not None:
            self._explainer.advised(advice)

    def _on_released(self, given: Released) -> None:
        self._move(given.step, given.layer)
        for number in given.slots:
            slot = self._slot(number, Owner.HELD)
            if slot is not None:
                self._counts["evictions"] += 1
                self._let_go(slot)

    def _on_miss(self, need: Miss) -> None:
        if not self._move(need.step, need.layer):
            return
        first_key = need.layer * self._experts
        keys = [first_key + expert for expert in need.experts if 0 <= expert < self._experts]
        self._counts["invalid"] += len(need.experts) - len(keys)
        self._touch([key for key in need.found if 0 <= key < self._layers * self._experts] + keys, need.step)
        self._need.clear()
        self._need_cause = Cause("miss", need.step, need.layer)
        if self._explainer is not None:
            self._explainer.missed(need.step, keys)
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

    def _on_step_routing(self, used: StepRouting) -> None:
        routing = read_partial_routing(used, self._layers, self._experts)
        if routing is None or not 0 <= used.step < MAX_STEPS:
            self._counts["invalid"] += 1
            return
        keys = used_keys(routing, self._experts)
        last_tick = (used.step + 1) * self._layers - 1
        self._policy.used(keys, used.step)
        if self._explainer is not None:
            unused = self._prefetched.unused(keys, last_tick - self._layers + 1, last_tick)
            self._explainer.unused(used.step, unused)
        self._prefetched.judge(keys, self._table.placed, last_tick)
        if last_tick > self._prefetch_plan.position:
            self._move_to(last_tick)
        was_used = np.zeros(self._layers * self._experts, dtype=bool)
        was_used[keys] = True
        self._prefetch_plan.learn(used.step, was_used.reshape(self._layers, self._experts))

    def _on_resident_table(self, holding: ResidentTable) -> None:
        """Only a ledger that has heard nothing yet learns from the table; another knows better than a new compute."""
        if not self._heard:
            self._heard = True
            self._adopt(holding.slots)
        if holding.need is not None:
            self._on_miss(holding.need)

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
        self._orders.recall(useless, NOW, Cause("policy"))

    def _on_compute_joined(self) -> None:
        self._need.clear()
        self._table.void_recalls()
        for slot in list(self._table.held()):
            if slot.key == NO_KEY or self._volatile:
                self._let_go(slot)
            else:
                self._orders.announce(slot)

    def _let_go(self, slot: Slot) -> None:
        """The slot was given back, or what compute held in it died with it."""
        wasted = slot.key != NO_KEY and self._prefetched.evicted(slot.key, self._prefetch_plan.position)
        if self._explainer is not None:
            self._explainer.evicted(slot, wasted)
        self._table.release(slot)

    def _move(self, step: int, layer: int) -> bool:
        """Compute says where it is; a negative step says that it has not begun. False: that cannot be."""
        if step < 0:
            return False
        if not 0 <= layer < self._layers or step >= MAX_STEPS:
            self._counts["invalid"] += 1
            return False
        self._move_to(step * self._layers + layer)
        return True

    def _move_to(self, tick: int) -> None:
        if tick == self._prefetch_plan.position:
            return
        self._eviction.refresh()
        begun = self._prefetch_plan.move(tick)
        dropped = int(np.count_nonzero(~self._table.placed[begun]))
        self._counts["dropped"] += dropped
        if len(begun):
            on_the_way = any(slot.key in begun for slot in self._table.filling.values())
            self._prefetch_plan.settle(late=on_the_way)

    # Small steps

    def _slot(self, number: int, owner: Owner) -> Slot | None:
        """The slot if it exists and belongs to `owner`; otherwise the message makes no sense and is counted."""
        slot = self._table.slots[number] if 0 <= number < len(self._table.slots) else None
        if slot is None or slot.owner is not owner:
            self._counts["invalid"] += 1
            return None
        return slot

    def _key(self, layer: int, expert: int) -> int:
        """NO_KEY if there is no such expert, or if it is in a slot already."""
        key = layer * self._experts + expert
        if 0 <= layer < self._layers and 0 <= expert < self._experts and key not in self._table.where:
            return key
        self._counts["invalid"] += 1
        return NO_KEY

    def statistics(self) -> LedgerStatistics:
        """How it went so far."""
        named = ("loads", "failed", "promoted", "evictions", "dropped", "invalid")
        free, filling = len(self._table.free), len(self._table.filling)
        return LedgerStatistics(
            **{name: self._counts[name] for name in named},
            prefetches=self._prefetching.prefetches,
            useful=self._prefetched.useful,
            wasted=self._prefetched.wasted,
            free=free,
            filling=filling,
            held=len(self._table.slots) - free - filling,
            accuracy=round(self._prefetch_plan.calibration.accuracy, 3),
            wanted_chance=round(self._prefetch_plan.wanted_chance, 3),
            ranks_victims=int(self._eviction.ranks_victims),
        )
