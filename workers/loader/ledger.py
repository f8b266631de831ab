"""The loader's side of the residency protocol: changes of slots. prefetch_scheduler.py chooses loads and victims.

A pure core: `handle(event)` returns the actions to perform. docs/architecture.md explains the rules R1–R9.
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
from .policies import Policy
from .policies.popularity import Popularity
from .prefetch_limits import choose_limits
from .prefetch_plan import MAX_STEPS, PrefetchPlan
from .prefetch_scheduler import PrefetchAccounting, PrefetchScheduler
from .slots import NO_KEY, NOW, LedgerActions, Owner, Slot, SlotTable
from .statistics import LedgerStatistics
from .use_shares import UseShares


class Ledger:
    """Owner of all slots that compute does not hold. It fills nothing before it has received `ResidentTable` (R9).

    `fills_in_flight` transfers run at a time, besides as many urgent ones. At most `recalls_ahead` slots (None: chosen)
    are free or recalled in favour of prefetches, and `spare_slots` (None: chosen) for the next miss. `by_layer`: each
    layer has an equal share of the slots, else all share them. `whole_layers`: a miss loads all experts of its layer,
    in their order. `rank_victims`: always, never or auto (see eviction.py).
    `uncalibrated`: stated chances are not corrected. `volatile`: slots lose their contents when compute dies (memory of
    a device). `explain`: takes notes on misses (`explanations`); the decisions are the same without.
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
        spare_slots: int | None = None,
        by_layer: bool = False,
        whole_layers: bool = False,
        rank_victims: str = "auto",
        uncalibrated: bool = False,
        volatile: bool = False,
        explain: bool = False,
    ) -> None:
        self._layers, self._experts = layers, experts
        self._table = SlotTable(slots, layers, experts, by_layer)
        self._plan = PrefetchPlan(layers, experts, uncalibrated)
        self._policy = policy or Popularity(layers, experts, top_k)
        self._accounting = PrefetchAccounting(layers * experts)
        self._ranking = EvictionRanking(layers, experts, self._plan, self._policy, rank_victims)
        self._actions = LedgerActions(self._table, layers, experts)
        limits = choose_limits(slots, layers * experts, top_k, fills_in_flight, volatile)
        if whole_layers:
            limits = limits._replace(prefetches=max(slots - max(top_k, 1), 0))
        if recalls_ahead is not None:
            limits = limits._replace(recalls_ahead=recalls_ahead)
        if spare_slots is not None:
            limits = limits._replace(spare=spare_slots)
        parts = (self._table, self._actions, self._plan, self._ranking, self._accounting)
        chances = self._policy.chances if isinstance(self._policy, Popularity) else None
        self._scheduler = PrefetchScheduler(*parts, limits, chances)
        self._table_received, self._volatile, self._whole_layers = False, volatile, whole_layers
        self._missing: dict[int, None] = {}
        """Keys that compute waits for, in its order."""
        self._miss_cause = NO_CAUSE
        observed = (self._table, self._plan, experts, fills_in_flight, self._scheduler.failed_keys)
        self._notes = Explainer(*observed)
        self._explainer = self._notes if explain else None
        self.use = UseShares(layers * experts)
        self._counts: defaultdict[str, int] = defaultdict(int)

    def handle(self, event: LedgerEvent) -> list[LedgerAction]:
        """Take one event; return the actions to perform, in order: those of `react`, then those of `prefetch`."""
        return self.react(event) + self.prefetch()

    def react(self, event: LedgerEvent) -> list[LedgerAction]:
        """Take one event; return the actions that compute may wait for, in order. `prefetch` must be called next."""
        self._on_event(event)
        if not isinstance(event, FillDone | Released):  # when a slot changes hands, no worth changes
            self._ranking.refresh()
        if self._table_received:
            self._scheduler.serve_misses(self._missing, self._miss_cause)
        return self._actions.take()

    def prefetch(self) -> list[LedgerAction]:
        """Choose prefetches and recalls for them; return the actions, in order.

        Prefetches start once nothing is missing (R6). Slots for them are recalled already when the last missing experts
        are under way: compute returns a slot only between two kernels, and the link would be idle until then.
        """
        if self._table_received and all(key in self._table.where for key in self._missing):
            self._scheduler.prefetch(may_start=not self._missing)
        return self._actions.take()

    def explain(self, on: bool) -> None:
        """Begin or stop to take notes. Notes that nobody has read are dropped at the end."""
        if not on and self._explainer is not None:
            self._notes.take()
        self._explainer = self._notes if on else None

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
                self._on_prediction(event)
            case ResidentTable():
                self._on_resident_table(event)
            case ComputeJoined():
                self._on_compute_joined()
            case _:
                assert_never(event)

    # Events

    def _on_fill_done(self, done: FillDone) -> None:
        slot = self._slot(done.slot, Owner.FILLING)
        if slot is None:
            return
        if done.ok:
            self._counts["loads"] += 1
            self._missing.pop(slot.key, None)
            self._scheduler.failed_keys.discard(slot.key)
            self._table.hold(slot)
            self._actions.announce(slot)
        else:
            self._counts["failed"] += 1
            self._scheduler.failed_keys.add(slot.key)
            self._accounting.void(slot.key)
            self._table.release(slot)

    def _on_prediction(self, prediction: StepPrediction | Hint) -> None:
        if isinstance(prediction, StepPrediction):
            is_valid = self._plan.add_prediction(prediction)
        else:
            is_valid = self._plan.add_hint(prediction)
        self._counts["invalid"] += not is_valid
        if self._explainer is not None:
            self._explainer.on_prediction(prediction)

    def _on_released(self, released: Released) -> None:
        self._move(released.step, released.layer)
        for number in released.slots:
            slot = self._slot(number, Owner.HELD)
            if slot is not None:
                self._counts["evictions"] += 1
                self._release(slot)

    def _on_miss(self, miss: Miss) -> None:
        if not self._move(miss.step, miss.layer):
            return
        first_key = miss.layer * self._experts
        keys = [first_key + expert for expert in miss.experts if 0 <= expert < self._experts]
        self._counts["invalid"] += len(miss.experts) - len(keys)
        self._touch([key for key in miss.found if 0 <= key < self._layers * self._experts] + keys, miss.step)
        self._missing.clear()
        self._miss_cause = Cause("miss", miss.step, miss.layer)
        if self._explainer is not None:
            self._explainer.on_miss(miss.step, keys)
        for key in range(first_key, first_key + self._experts) if self._whole_layers and keys else keys:
            slot = self._table.where.get(key)
            if slot is None or slot.owner is Owner.FILLING:  # a held one is announced: `Filled` is on its way
                self._missing[key] = None
                self._promote(slot)

    def _touch(self, keys: list[int], step: int) -> None:
        self._policy.touched(np.array(keys, dtype=np.int64), step)

    def _promote(self, slot: Slot | None) -> None:
        if slot is not None and not slot.urgent:
            self._actions.promote(slot)
            self._counts["promoted"] += self._accounting.void(slot.key)

    def _on_step_routing(self, routing: StepRouting) -> None:
        experts = read_partial_routing(routing, self._layers, self._experts)
        if experts is None or not 0 <= routing.step < MAX_STEPS:
            self._counts["invalid"] += 1
            return
        keys = used_keys(experts, self._experts)
        last_tick = (routing.step + 1) * self._layers - 1
        self._policy.used(keys, routing.step)
        self.use.add(keys)
        if self._explainer is not None:
            unused = self._accounting.unused(keys, last_tick - self._layers + 1, last_tick)
            self._explainer.on_unused(routing.step, unused)
        self._accounting.judge(keys, self._table.placed, last_tick)
        if last_tick > self._plan.position:
            self._move_to(last_tick)
        was_used = np.zeros(self._layers * self._experts, dtype=bool)
        was_used[keys] = True
        self._plan.learn(routing.step, was_used.reshape(self._layers, self._experts))

    def _on_resident_table(self, table: ResidentTable) -> None:
        """Adopt the slots of the first table alone: later the ledger knows more than a new compute process."""
        if not self._table_received:
            self._table_received = True
            self._adopt(table.slots)
        if table.need is not None:
            self._on_miss(table.need)

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
        self._actions.recall(useless, NOW, Cause("policy"))

    def _on_compute_joined(self) -> None:
        self._missing.clear()
        self._table.void_recalls()
        for slot in list(self._table.held()):
            if slot.key == NO_KEY or self._volatile:
                self._release(slot)
            else:
                self._actions.announce(slot)

    def _release(self, slot: Slot) -> None:
        """Free a slot that compute returned, or whose contents died with compute."""
        wasted = slot.key != NO_KEY and self._accounting.evict(slot.key, self._plan.position)
        if self._explainer is not None:
            self._explainer.on_evicted(slot, wasted)
        self._table.release(slot)

    def _move(self, step: int, layer: int) -> bool:
        """Take the position of compute (a negative step: it has not begun). Return False if there is none to take."""
        if step < 0:
            return False
        if not 0 <= layer < self._layers or step >= MAX_STEPS:
            self._counts["invalid"] += 1
            return False
        self._move_to(step * self._layers + layer)
        return True

    def _move_to(self, tick: int) -> None:
        if tick == self._plan.position:
            return
        self._ranking.refresh()
        begun = self._plan.advance(tick)
        dropped = int(np.count_nonzero(~self._table.placed[begun]))
        self._counts["dropped"] += dropped
        if len(begun):
            on_the_way = any(slot.key in begun for slot in self._table.filling.values())
            self._plan.adapt_threshold(late=on_the_way)

    # Lookups

    def _slot(self, number: int, owner: Owner) -> Slot | None:
        """Return the slot if it belongs to `owner`; else count the message as invalid and return None."""
        slot = self._table.slots[number] if 0 <= number < len(self._table.slots) else None
        if slot is None or slot.owner is not owner:
            self._counts["invalid"] += 1
            return None
        return slot

    def _key(self, layer: int, expert: int) -> int:
        """Return the key; NO_KEY, counted as invalid, if there is no such expert or it has a slot already."""
        key = layer * self._experts + expert
        if 0 <= layer < self._layers and 0 <= expert < self._experts and key not in self._table.where:
            return key
        self._counts["invalid"] += 1
        return NO_KEY

    def residence(self) -> np.ndarray:
        """Return the state of each key, uint8 [layers * experts]; see `CacheHeat`."""
        return self._table.residence()

    def statistics(self) -> LedgerStatistics:
        """Return the counters and the current state."""
        counted = ("loads", "failed", "promoted", "evictions", "dropped", "invalid")
        free, filling = len(self._table.free), len(self._table.filling)
        return LedgerStatistics(
            **{name: self._counts[name] for name in counted},
            prefetches=self._scheduler.prefetches,
            useful=self._accounting.useful,
            wasted=self._accounting.wasted,
            free=free,
            filling=filling,
            held=len(self._table.slots) - free - filling,
            late=self._plan.late,
            predicted=self._plan.calibration.predicted,
            needed=self._plan.calibration.needed,
            predicted_needed=self._plan.calibration.predicted_needed,
            accuracy=round(self._plan.calibration.accuracy, 3),
            wanted_chance=round(self._plan.wanted_chance, 3),
            ranks_victims=int(self._ranking.ranks_victims),
        )
