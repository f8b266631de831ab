"""Why experts were missing, what was evicted for what, which prefetches nobody used: notes for a timeline.

Nothing here decides anything: a ledger without an `Explainer` does the same. `expertflow why` reads the notes.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

from ...ipc.messages import NO_CAUSE, Cause, Hint, StepPrediction
from .prefetch_plan import PrefetchPlan
from .slots import NO_KEY, Slot, SlotTable

LIKELY_SCORE = 128
"""Of 255: what a plan or hint that came too late must have said for it to be blamed on its lateness."""


class Reason(StrEnum):
    """Why an expert was not there when its layer began."""

    NEVER = "never predicted"
    LOW = "predicted too low"
    LATE = "predicted too late"
    NO_ROOM = "no room"
    DROPPED = "dropped"
    FAILED = "failed before"


class MissExplained(NamedTuple):
    """Compute waits for an expert. `chance` of use and the least chance `wanted`, 0 to 1; -1 where nothing was said.

    `cause` is that of a fill that was under way already. `slots`: so many may hold experts of this layer.
    """

    step: int
    layer: int
    expert: int
    reason: Reason
    chance: float
    wanted: float
    cause: Cause
    slots: int


class Evicted(NamedTuple):
    """A slot was given back. `cause`: what it was asked for (none: it died with its compute)."""

    slot: int
    layer: int
    expert: int
    cause: Cause


class PrefetchUnused(NamedTuple):
    """An expert was brought in for `step`, which did not use it."""

    step: int
    layer: int
    expert: int


Explanation = MissExplained | Evicted | PrefetchUnused


class Explainer:
    """Reads the ledger's parts and takes notes; changes none of them."""

    def __init__(
        self, table: SlotTable, advice: PrefetchPlan, experts: int, fills_in_flight: int, failed_keys: set[int]
    ) -> None:
        self._table, self._prefetch_plan, self._experts = table, advice, experts
        self._fills_in_flight, self._failed_keys = fills_in_flight, failed_keys
        self._notes: list[Explanation] = []
        self._unforetold: dict[int, MissExplained] = {}
        """By key: misses of the newest step of which nothing had been said."""

    def take(self) -> list[Explanation]:
        """Return what was noted since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def missed(self, step: int, keys: Iterable[int]) -> None:
        """Note why compute does not find these keys; to be called before anything is done about them."""
        self._unforetold = {key: miss for key, miss in self._unforetold.items() if miss.step == step}
        for key in keys:
            slot = self._table.where.get(key)
            if slot is None or slot.cause.kind != "miss":
                self._note_miss(step, key, slot)

    def advised(self, advice: StepPrediction | Hint) -> None:
        """Note which misses of a step this advice would have prevented, had it come in time."""
        for key, miss in list(self._unforetold.items()):
            if miss.step == advice.step and _score(advice, miss, key) >= LIKELY_SCORE:
                del self._unforetold[key]
                self._notes.append(miss._replace(reason=Reason.LATE))

    def evicted(self, slot: Slot, was_unused: bool) -> None:
        """Note what a slot held that is about to be released."""
        if slot.key == NO_KEY:
            return
        layer, expert = divmod(slot.key, self._experts)
        self._notes.append(Evicted(slot.number, layer, expert, slot.recall_cause))
        if was_unused:
            self._notes.append(PrefetchUnused(slot.cause.step, layer, expert))

    def unused(self, step: int, keys: Iterable[int]) -> None:
        """Note which keys were brought in for a step that did not use them."""
        self._notes += [PrefetchUnused(step, *divmod(key, self._experts)) for key in keys]

    def _note_miss(self, step: int, key: int, slot: Slot | None) -> None:
        layer, expert = divmod(key, self._experts)
        live = self._prefetch_plan.plan_for(step)
        known = live is not None and bool(live.known[layer, 0])
        chance = float(live.chances[layer, expert]) if live is not None and known else -1.0
        reason, cause = self._reason(step, key, slot), slot.cause if slot is not None else NO_CAUSE
        slots = self._table.quota(self._table.group_of(key))
        miss = MissExplained(step, layer, expert, reason, chance, self._prefetch_plan.wanted_chance, cause, slots)
        self._notes.append(miss)
        if not known:
            self._unforetold[key] = miss

    def _reason(self, step: int, key: int, slot: Slot | None) -> Reason:
        live = self._prefetch_plan.plan_for(step)
        if slot is not None:
            return Reason.LATE
        if key in self._failed_keys:
            return Reason.FAILED
        if live is None or not live.names(*divmod(key, self._experts)):
            return Reason.NEVER
        return self._obstacle(key) if live.wants(key) else Reason.LOW

    def _obstacle(self, key: int) -> Reason:
        """Return what kept a wanted expert from being filled: its slot was on the way, was not to be had, or the link
        was taken."""
        group = self._table.group_of(key)
        if self._table.room(group) <= 0:
            return Reason.LATE if self._table.returning(group) else Reason.NO_ROOM
        return Reason.DROPPED if len(self._table.filling) >= self._fills_in_flight else Reason.NO_ROOM


def _score(advice: StepPrediction | Hint, miss: MissExplained, key: int) -> int:
    """Return what late advice says of a missed expert, 0 to 255."""
    if isinstance(advice, StepPrediction):
        return advice.scores[key] if key < len(advice.scores) else 0
    says = advice.layer == miss.layer and miss.expert < len(advice.scores)
    return advice.scores[miss.expert] if says else 0
