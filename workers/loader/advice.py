"""The live plans of the predictor, checked, and where compute is: what will be used next, and when.

A tick is step * layers + layer: the time at which a layer of a step runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np

from ...ipc.messages import Plan

UNKNOWN = -1
MOST_PLANS = 4
HORIZON_STEPS = 8
"""Plans for steps further ahead than this are taken for nonsense."""


@dataclass(slots=True)
class LivePlan:
    """A plan whose step is not over. `entries` are (tick, key) of the wanted experts by (layer, −probability)."""

    step: int
    scores: bytes
    entries: list[tuple[int, int]]
    passed: int = 0
    """Entries whose layer has begun; they are the first ones."""


class Advice:
    """Keeps the plans of the nearest steps; an expert counts as predicted from score `wanted_score` on (R5)."""

    def __init__(self, layers: int, experts: int, wanted_score: int = 127) -> None:
        self._layers, self._experts, self._wanted_score = layers, experts, wanted_score
        self._plans: list[LivePlan] = []
        self.position = UNKNOWN
        """The tick of the last layer that is known to have begun."""

    def take(self, plan: Plan) -> bool:
        """Adds a plan, in place of an older one for that step. False: it is malformed, too late or too early."""
        if len(plan.scores) != self._layers * self._experts or not self._is_near(plan.step):
            return False
        others = [live for live in self._plans if live.step != plan.step]
        ordered = sorted([*others, self._read(plan)], key=lambda live: live.step)
        self._plans = ordered[: MOST_PLANS]
        return True

    def _is_near(self, step: int) -> bool:
        if self.position == UNKNOWN:
            return step >= 0
        current = self.position // self._layers
        return current <= step <= current + HORIZON_STEPS

    def _read(self, plan: Plan) -> LivePlan:
        scores = np.frombuffer(plan.scores, dtype=np.uint8)
        keys = np.flatnonzero(scores >= self._wanted_score)
        order = np.lexsort((-scores[keys].astype(np.int16), keys // self._experts))
        first_tick = plan.step * self._layers
        entries = [(first_tick + key // self._experts, key) for key in keys[order].tolist()]
        live = LivePlan(plan.step, plan.scores, entries)
        self._pass_entries(live)
        return live

    def move(self, tick: int) -> list[int]:
        """Compute is at `tick`. Returns the keys predicted for layers that have begun since; drops finished plans."""
        if tick // self._layers < self.position // self._layers:
            self._plans.clear()  # steps are counted anew: the scheduler was restarted
        self.position = tick
        begun = list(chain.from_iterable(map(self._pass_entries, self._plans)))
        self._plans = [plan for plan in self._plans if self._is_live(plan)]
        return begun

    def _is_live(self, plan: LivePlan) -> bool:
        return plan.passed < len(plan.entries) and self._is_near(plan.step)

    def _pass_entries(self, plan: LivePlan) -> list[int]:
        first = plan.passed
        while plan.passed < len(plan.entries) and plan.entries[plan.passed][0] <= self.position:
            plan.passed += 1
        return [key for _, key in plan.entries[first : plan.passed]]

    def uses(self, key: int) -> list[int]:
        """The ticks to come at which the expert is predicted to be used, ascending."""
        layer = key // self._experts
        predicted = (plan.step * self._layers + layer for plan in self._plans if plan.scores[key] >= self._wanted_score)
        return [tick for tick in predicted if tick > self.position]

    def coming(self) -> Iterator[tuple[int, int]]:
        """(tick, key) of all that is predicted, in the order it will be used."""
        return chain.from_iterable(plan.entries[plan.passed :] for plan in self._plans)
