"""The live plans of the predictor, checked, and where compute is (R5).

A tick is step * layers + layer: the time at which a layer of a step runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ...ipc.messages import Plan

UNKNOWN = -1
MOST_STEPS = 1 << 40
"""No step has such a number: ticks fit into 64 bits."""
MOST_PLANS = 4
HORIZON_STEPS = 8
"""Plans for steps further ahead than this are taken for nonsense."""


@dataclass(slots=True)
class LivePlan:
    """A plan whose step is not over."""

    step: int
    chances: np.ndarray
    """float64 [layers, experts]: probability of use."""
    keys: np.ndarray
    """Of the wanted experts, by (layer, −probability)."""
    ticks: np.ndarray
    """At which they are due, ascending."""
    passed: int = 0
    """How many of them, the first ones, belong to layers that have begun."""


class Advice:
    """Keeps the plans of the nearest steps. From score `wanted_score` on an expert is worth being brought in ahead."""

    def __init__(self, layers: int, experts: int, wanted_score: int = 127) -> None:
        self._layers, self._experts = layers, experts
        self.wanted_chance = wanted_score / 255
        self.plans: list[LivePlan] = []
        """By step."""
        self.position = UNKNOWN
        """The tick of the last layer that is known to have begun."""

    def take(self, plan: Plan) -> bool:
        """Adds a plan, in place of an older one for that step. False: it is malformed, too late or too early."""
        if len(plan.scores) != self._layers * self._experts or not self._is_near(plan.step):
            return False
        others = [live for live in self.plans if live.step != plan.step]
        ordered = sorted([*others, self._read(plan)], key=lambda live: live.step)
        self.plans = ordered[:MOST_PLANS]
        return True

    def _is_near(self, step: int) -> bool:
        if self.position == UNKNOWN:
            return 0 <= step < MOST_STEPS
        current = self.position // self._layers
        return current <= step <= current + HORIZON_STEPS

    def _read(self, plan: Plan) -> LivePlan:
        chances = np.frombuffer(plan.scores, dtype=np.uint8) / 255
        wanted = np.flatnonzero(chances >= self.wanted_chance)
        keys = wanted[np.lexsort((-chances[wanted], wanted // self._experts))]
        ticks = plan.step * self._layers + keys // self._experts
        live = LivePlan(plan.step, chances.reshape(self._layers, self._experts), keys, ticks)
        self._pass(live)
        return live

    def move(self, tick: int) -> np.ndarray:
        """Compute is at `tick`. Returns the keys wanted for layers that have begun since; drops finished plans."""
        if tick // self._layers < self.position // self._layers:
            self.plans.clear()  # steps are counted anew: the scheduler was restarted
        self.position = tick
        begun = [self._pass(plan) for plan in self.plans]
        self.plans = [plan for plan in self.plans if self._is_near(plan.step) and self._end_of(plan) > tick]
        return np.concatenate(begun) if begun else np.empty(0, dtype=np.int64)

    def _pass(self, plan: LivePlan) -> np.ndarray:
        first = plan.passed
        plan.passed = max(first, int(np.searchsorted(plan.ticks, self.position, side="right")))
        return plan.keys[first : plan.passed]

    def _end_of(self, plan: LivePlan) -> int:
        return (plan.step + 1) * self._layers - 1

    @property
    def end(self) -> int:
        """The last tick of which anything is foretold; the position when there is no plan."""
        return self._end_of(self.plans[-1]) if self.plans else self.position

    def wanted(self, placed: np.ndarray) -> Iterator[tuple[int, int]]:
        """(due tick, key) of what is wanted and not `placed` (bool by key), the first due first."""
        for plan in self.plans:
            keys, ticks = plan.keys[plan.passed :], plan.ticks[plan.passed :]
            absent = ~placed[keys]
            yield from zip(ticks[absent].tolist(), keys[absent].tolist(), strict=True)
