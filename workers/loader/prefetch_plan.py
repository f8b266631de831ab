"""Live step predictions and hints, checked and merged, and the position of compute (R5).

A tick is step * layers + layer: the time at which a layer of a step runs.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...ipc.messages import Cause, Hint, StepPrediction
from .calibration import UNKNOWN, Calibration, levels

NOWHERE = -1
MAX_STEPS = 1 << 40
"""Step numbers are below this, so ticks fit into 64 bits."""
MAX_PLANS = 4
SCAN_KEYS = 128
MIN_PREFETCH_PROBABILITY, MAX_PREFETCH_PROBABILITY = 0.36, 0.6
"""Bounds of the chance of use from which on an expert is prefetched."""
THRESHOLD_DECREASE, THRESHOLD_INCREASE = 0.005, 0.02
"""Change of that threshold after each layer that found all its prefetches, and after each that did not."""
UNHINTED_MARGIN = 0.12
"""Added to the threshold while a hint, which knows more, is still to come for the layer."""
HORIZON_STEPS = 8
"""Predictions for steps further ahead than this are rejected."""


class LivePlan:
    """Prediction and hints of one step, until the step's routing is known."""

    def __init__(self, step: int, layers: int, experts: int) -> None:
        self.step, self._layers, self._experts = step, layers, experts
        self.plan = np.full((layers, experts), UNKNOWN, dtype=np.intp)
        """intp [layers, experts]: levels of the step prediction, as stated."""
        self.hint = np.full((layers, experts), UNKNOWN, dtype=np.intp)
        """intp [layers, experts]: levels of the hints, as stated."""
        self.known = np.zeros((layers, 1), dtype=bool)
        """bool [layers, 1]: layers with a prediction or a hint."""
        self.chances = np.zeros((layers, experts))
        """float64 [layers, experts]: measured chance of use, 0 to 1; 0 in layers that are not known."""
        self.ticks = step * layers + np.arange(layers)[:, None]
        """int64 [layers, 1]."""
        self._ranked = np.tile(np.arange(experts), (layers, 1))
        """[layers, experts]: the experts of each layer by falling chance."""
        self._hinted = np.zeros((layers, 1), dtype=bool)
        self._keys = np.empty(0, dtype=np.intp)
        self._due = np.empty(0, dtype=np.intp)
        self._passed = 0

    def set_prediction(self, plan: np.ndarray, calibration: Calibration) -> None:
        """Take the predictor's levels, intp [layers, experts]."""
        self.plan = plan
        self.known[:] = True
        self.chances = calibration.chances(np.arange(self._layers)[:, None], plan, self.hint)
        self._ranked = np.argsort(-self.chances, axis=1, kind="stable")

    def set_hint(self, layer: int, hint: np.ndarray, calibration: Calibration) -> None:
        """Take compute's levels for one layer, intp [experts]."""
        self.hint[layer] = hint
        self.known[layer] = self._hinted[layer] = True
        self.chances[layer] = calibration.chances(layer, self.plan[layer], hint)
        self._ranked[layer] = np.argsort(-self.chances[layer], kind="stable")

    @property
    def hinted(self) -> np.ndarray:
        """Return the layers that have a hint, bool [layers, 1]."""
        return self._hinted

    def mentions(self, layer: int, expert: int) -> bool:
        """Return whether prediction or hint gave this expert any chance."""
        stated = (self.plan[layer, expert], self.hint[layer, expert])
        return any(0 < level < UNKNOWN for level in stated)

    def wants(self, key: int) -> bool:
        """Return whether the expert was worth prefetching, its layer begun or not."""
        return bool((self._keys == key).any())

    def rows_between(self, first: int, end: int | None) -> slice:
        """Return the layers whose ticks are `first` or later, and before `end`."""
        start = self.step * self._layers
        last = self._layers if end is None else min(max(end - start, 0), self._layers)
        return slice(min(max(first - start, 0), self._layers), last)

    def rank(self, wanted_chance: float, hints_come: np.ndarray, position: int) -> None:
        """Rank the experts worth prefetching by (layer, -chance), in layers that have not begun at tick `position`.

        `hints_come`, bool [layers, 1]: layers for which a hint is expected.
        """
        rows = self.rows_between(position + 1, None)
        chances = np.take_along_axis(self.chances[rows], self._ranked[rows], axis=1)
        threshold = wanted_chance + UNHINTED_MARGIN * (hints_come[rows] & ~self._hinted[rows])
        layers, ranks = np.nonzero(chances >= threshold)
        layers += rows.start
        self._keys = layers * self._experts + self._ranked[layers, ranks]
        self._due = self.ticks[layers, 0]
        self._passed = 0

    def advance(self, position: int) -> np.ndarray:
        """Pass the layers that have begun at tick `position`; return the keys wanted for them, intp [count]."""
        before = self._passed
        self._passed = max(before, int(np.searchsorted(self._due, position, side="right")))
        return self._keys[before : self._passed]

    @property
    def wanted(self) -> tuple[np.ndarray, np.ndarray]:
        """Return keys and due ticks, intp [count] each, wanted for layers that have not begun."""
        return self._keys[self._passed :], self._due[self._passed :]


class PrefetchPlan:
    """Keeps the live plans of the nearest steps."""

    def __init__(self, layers: int, experts: int, uncalibrated: bool = False) -> None:
        self._layers, self._experts = layers, experts
        self.wanted_chance = (MIN_PREFETCH_PROBABILITY + MAX_PREFETCH_PROBABILITY) / 2
        """Least chance of use, 0 to 1, for which an expert is prefetched; adapts to what the link carries."""
        self._hints_come = np.zeros((layers, 1), dtype=bool)
        """Layers that had a hint in the last step."""
        self.calibration = Calibration(layers, uncalibrated)
        self.plans: list[LivePlan] = []
        """Ordered by step."""
        self.position = NOWHERE
        """Tick of the last layer known to have begun."""
        self.late = 0
        """Predictions and hints that came when their step, or layer, had begun: no fault, and of no use."""

    def add_prediction(self, prediction: StepPrediction) -> bool:
        """Add a step prediction, in place of an older one for that step, unless it is late.

        Return False if it is malformed or too early.
        """
        if len(prediction.scores) != self._layers * self._experts or not self._is_near(prediction.step):
            return False
        if self._is_late((prediction.step + 1) * self._layers):
            return True
        live = self._get_or_add(prediction.step)
        if live is not None:
            stated = levels(np.frombuffer(prediction.scores, dtype=np.uint8)).reshape(self._layers, self._experts)
            live.set_prediction(stated, self.calibration)
            live.rank(self.wanted_chance, self._hints_come, self.position)
        return True

    def add_hint(self, hint: Hint) -> bool:
        """Merge a hint into the plan of its step, unless it is late. Return False if it is malformed or too early."""
        tick = hint.step * self._layers + hint.layer
        is_valid = 0 <= hint.layer < self._layers and len(hint.scores) == self._experts
        if not is_valid or not self._is_near(hint.step):
            return False
        if self._is_late(tick):
            return True
        live = self._get_or_add(hint.step)
        if live is not None:
            live.set_hint(hint.layer, levels(np.frombuffer(hint.scores, dtype=np.uint8)), self.calibration)
            live.rank(self.wanted_chance, self._hints_come, self.position)
        return True

    def learn(self, step: int, used: np.ndarray) -> None:
        """Calibrate by the routing of a finished step, bool [layers, experts], and drop the step's plan."""
        for live in self.plans:
            if live.step == step:
                self._hints_come = live.hinted
                for layer in np.flatnonzero(live.known).tolist():
                    self.calibration.learn(layer, live.plan[layer], live.hint[layer], used[layer])
        self.plans = [live for live in self.plans if live.step != step]

    def cause(self, due: int, key: int) -> Cause:
        """Return the source by which `key` is wanted at tick `due`: a hint that mentions it, else the prediction."""
        step, layer = divmod(due, self._layers)
        live = self.plan_for(step)
        hinted = live is not None and 0 < live.hint[layer, key % self._experts] < UNKNOWN
        return Cause("hint" if hinted else "prediction", step, layer)

    def plan_for(self, step: int) -> LivePlan | None:
        """Return the plan of this step, None if there is none."""
        return next((live for live in self.plans if live.step == step), None)

    def _get_or_add(self, step: int) -> LivePlan | None:
        """Return the plan of this step, new if there is none; None when nearer steps take all `MAX_PLANS`."""
        for live in self.plans:
            if live.step == step:
                return live
        ordered = sorted([*self.plans, LivePlan(step, self._layers, self._experts)], key=lambda live: live.step)
        self.plans = ordered[:MAX_PLANS]
        return next((live for live in self.plans if live.step == step), None)

    def _is_near(self, step: int) -> bool:
        if self.position == NOWHERE:
            return 0 <= step < MAX_STEPS
        return 0 <= step <= self.position // self._layers + HORIZON_STEPS

    def _is_late(self, end_tick: int) -> bool:
        """Count and return whether compute has reached `end_tick`, from which on the statement is of no use."""
        is_late = end_tick <= self.position
        self.late += is_late
        return is_late

    def advance(self, tick: int) -> np.ndarray:
        """Move to `tick` and drop plans that are over; return the keys wanted for layers begun since, intp [count]."""
        current = tick // self._layers
        if current < self.position // self._layers:
            self.plans.clear()  # steps are counted anew: the scheduler was restarted
        self.position = tick
        begun = [plan.advance(tick) for plan in self.plans]
        self.plans = [plan for plan in self.plans if plan.step >= current - 1 and plan.step <= current + HORIZON_STEPS]
        return np.concatenate(begun) if begun else np.empty(0, dtype=np.intp)

    def adapt_threshold(self, late: bool) -> None:
        """Raise the prefetch threshold after a layer whose prefetches came late, lower it after one that found all."""
        chance = self.wanted_chance + (THRESHOLD_INCREASE if late else -THRESHOLD_DECREASE)
        self.wanted_chance = min(max(chance, MIN_PREFETCH_PROBABILITY), MAX_PREFETCH_PROBABILITY)

    def wanted(self, placed: np.ndarray) -> Iterator[tuple[int, int]]:
        """Yield (due tick, key) of wanted experts that are not `placed` (bool [layers * experts]), first due first."""
        for plan in self.plans:
            keys, due = plan.wanted
            for start in range(0, len(keys), SCAN_KEYS):  # callers take only the first few
                part = slice(start, start + SCAN_KEYS)
                absent = ~placed[keys[part]]
                yield from zip(due[part][absent].tolist(), keys[part][absent].tolist(), strict=True)
