"""Notes for a timeline: reasons of misses, causes of evictions, unused prefetches.

An `Explainer` decides nothing: a ledger without one takes the same actions. `expertflow why` reads the notes.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import NamedTuple

from ...ipc.messages import NO_CAUSE, Cause, Hint, StepPrediction
from .prefetch_plan import PrefetchPlan
from .slots import NO_KEY, Slot, SlotTable

LIKELY_SCORE = 128
"""Least score, of 255, of a late prediction for the miss to be explained by its lateness."""


class Reason(StrEnum):
    """Reasons why an expert was not resident when its layer began."""

    NEVER = "never predicted"
    LOW = "predicted too low"
    LATE = "predicted too late"
    NO_ROOM = "no room"
    DROPPED = "dropped"
    FAILED = "failed before"


class MissExplained(NamedTuple):
    """Compute waits for an expert.

    `chance` is its chance of use, 0 to 1, or -1 without a prediction; `wanted` the least chance for a prefetch.
    `cause` belongs to a fill that was under way already. `slots` is the number that may hold experts of this layer.
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
    """A slot was released. `cause`: why it was recalled (NO_CAUSE: its compute process died)."""

    slot: int
    layer: int
    expert: int
    cause: Cause


class PrefetchUnused(NamedTuple):
    """An expert was prefetched for `step`, which did not use it."""

    step: int
    layer: int
    expert: int


Explanation = MissExplained | Evicted | PrefetchUnused


class Explainer:
    """Reads the ledger's parts and takes notes; changes none of them."""

    def __init__(
        self, table: SlotTable, plan: PrefetchPlan, experts: int, fills_in_flight: int, failed_keys: set[int]
    ) -> None:
        self._table, self._plan, self._experts = table, plan, experts
        self._fills_in_flight, self._failed_keys = fills_in_flight, failed_keys
        self._notes: list[Explanation] = []
        self._unpredicted: dict[int, MissExplained] = {}
        """Key -> miss of the newest step, in layers without a prediction or hint."""

    def take(self) -> list[Explanation]:
        """Return the notes taken since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def on_miss(self, step: int, keys: Iterable[int]) -> None:
        """Note why these keys are missing. Call it before anything is done about them."""
        self._unpredicted = {key: miss for key, miss in self._unpredicted.items() if miss.step == step}
        for key in keys:
            slot = self._table.where.get(key)
            if slot is None or slot.cause.kind != "miss":
                self._note_miss(step, key, slot)

    def on_prediction(self, prediction: StepPrediction | Hint) -> None:
        """Note the misses of a step that this prediction would have prevented, had it come in time."""
        for key, miss in list(self._unpredicted.items()):
            if miss.step == prediction.step and _score(prediction, miss, key) >= LIKELY_SCORE:
                del self._unpredicted[key]
                self._notes.append(miss._replace(reason=Reason.LATE))

    def on_evicted(self, slot: Slot, was_unused: bool) -> None:
        """Note the expert in a slot that is about to be released."""
        if slot.key == NO_KEY:
            return
        layer, expert = divmod(slot.key, self._experts)
        self._notes.append(Evicted(slot.number, layer, expert, slot.recall_cause))
        if was_unused:
            self._notes.append(PrefetchUnused(slot.cause.step, layer, expert))

    def on_unused(self, step: int, keys: Iterable[int]) -> None:
        """Note the keys that were prefetched for a step that did not use them."""
        self._notes += [PrefetchUnused(step, *divmod(key, self._experts)) for key in keys]

    def _note_miss(self, step: int, key: int, slot: Slot | None) -> None:
        layer, expert = divmod(key, self._experts)
        live = self._plan.plan_for(step)
        known = live is not None and bool(live.known[layer, 0])
        chance = float(live.chances[layer, expert]) if live is not None and known else -1.0
        reason, cause = self._reason(step, key, slot), slot.cause if slot is not None else NO_CAUSE
        slots = self._table.quota(self._table.group_of(key))
        miss = MissExplained(step, layer, expert, reason, chance, self._plan.wanted_chance, cause, slots)
        self._notes.append(miss)
        if not known:
            self._unpredicted[key] = miss

    def _reason(self, step: int, key: int, slot: Slot | None) -> Reason:
        live = self._plan.plan_for(step)
        if slot is not None:
            return Reason.LATE
        if key in self._failed_keys:
            return Reason.FAILED
        if live is None or not live.mentions(*divmod(key, self._experts)):
            return Reason.NEVER
        return self._obstacle(key) if live.wants(key) else Reason.LOW

    def _obstacle(self, key: int) -> Reason:
        """Return what kept a wanted expert from being filled.

        LATE: its slot was about to return. NO_ROOM: no slot was to be had. DROPPED: the link was busy.
        """
        group = self._table.group_of(key)
        if self._table.room(group) <= 0:
            return Reason.LATE if self._table.returning(group) else Reason.NO_ROOM
        return Reason.DROPPED if len(self._table.filling) >= self._fills_in_flight else Reason.NO_ROOM


def _score(prediction: StepPrediction | Hint, miss: MissExplained, key: int) -> int:
    """Return the score, 0 to 255, that a late prediction gives a missed expert."""
    if isinstance(prediction, StepPrediction):
        return prediction.scores[key] if key < len(prediction.scores) else 0
    is_scored = prediction.layer == miss.layer and miss.expert < len(prediction.scores)
    return prediction.scores[miss.expert] if is_scored else 0
