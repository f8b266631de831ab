"""The live plans of the predictor and the hints of compute, checked and merged, and where compute is (R5).

A tick is step * layers + layer: the time at which a layer of a step runs.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...ipc.messages import Cause, Hint, StepPrediction
from .calibration import UNKNOWN, Calibration, levels

NOWHERE = -1
MAX_STEPS = 1 << 40
"""No step has such a number: ticks fit into 64 bits."""
MAX_PLANS = 4
LOOK_AHEAD = 128
MIN_PREFETCH_PROBABILITY, MAX_PREFETCH_PROBABILITY = 0.36, 0.6
"""Bounds of the chance of use from which on an expert is worth bringing in ahead."""
BOLDER, SHYER = 0.005, 0.02
"""It falls so much with each layer that found what was wanted for it, and rises so much with each that did not."""
EARLY = 0.12
"""A plan must be surer by so much while a better-informed hint is still to come for its layer."""
HORIZON_STEPS = 8
"""Plans for steps further ahead than this are taken for nonsense."""


class LivePlan:
    """What is foretold of one step, until the step's routing is known."""

    def __init__(self, step: int, layers: int, experts: int) -> None:
        self.step, self._layers, self._experts = step, layers, experts
        self.plan = np.full((layers, experts), UNKNOWN, dtype=np.intp)
        self.hint = np.full((layers, experts), UNKNOWN, dtype=np.intp)
        """Levels, as they were said."""
        self.known = np.zeros((layers, 1), dtype=bool)
        """Layers of which anything was said."""
        self.chances = np.zeros((layers, experts))
        """float64: measured chance of use, 0 in layers that are not known."""
        self.ticks = step * layers + np.arange(layers)[:, None]
        self._ranked = np.tile(np.arange(experts), (layers, 1))
        """Of each layer: its experts by falling chance."""
        self._hinted = np.zeros((layers, 1), dtype=bool)
        self._keys = np.empty(0, dtype=np.intp)
        self._due = np.empty(0, dtype=np.intp)
        self._passed = 0

    def take(self, plan: np.ndarray, calibration: Calibration) -> None:
        """The predictor's levels [layers, experts]."""
        self.plan = plan
        self.known[:] = True
        self.chances = calibration.chances(np.arange(self._layers)[:, None], plan, self.hint)
        self._ranked = np.argsort(-self.chances, axis=1, kind="stable")

    def receive(self, layer: int, hint: np.ndarray, calibration: Calibration) -> None:
        """Compute's levels [experts] for one layer."""
        self.hint[layer] = hint
        self.known[layer] = self._hinted[layer] = True
        self.chances[layer] = calibration.chances(layer, self.plan[layer], hint)
        self._ranked[layer] = np.argsort(-self.chances[layer], kind="stable")

    @property
    def hinted(self) -> np.ndarray:
        """bool [layers, 1]: layers that were hinted at."""
        return self._hinted

    def names(self, layer: int, expert: int) -> bool:
        """Return whether plan or hint gave this expert any chance."""
        said = (self.plan[layer, expert], self.hint[layer, expert])
        return any(0 < level < UNKNOWN for level in said)

    def wants(self, key: int) -> bool:
        """Return whether the expert was worth bringing in ahead, its layer begun or not."""
        return bool((self._keys == key).any())

    def rows_between(self, first: int, end: int | None) -> slice:
        """The layers whose ticks are `first` or later, and before `end`."""
        start = self.step * self._layers
        last = self._layers if end is None else min(max(end - start, 0), self._layers)
        return slice(min(max(first - start, 0), self._layers), last)

    def order(self, wanted_chance: float, hints_come: np.ndarray, position: int) -> None:
        """Settle what is worth bringing in, by (layer, −chance), for layers that have not begun; `hints_come` is bool
        [layers, 1]."""
        rows = self.rows_between(position + 1, None)
        chances = np.take_along_axis(self.chances[rows], self._ranked[rows], axis=1)
        least = wanted_chance + EARLY * (hints_come[rows] & ~self._hinted[rows])
        layers, places = np.nonzero(chances >= least)
        layers += rows.start
        self._keys = layers * self._experts + self._ranked[layers, places]
        self._due = self.ticks[layers, 0]
        self._passed = 0

    def move(self, position: int) -> np.ndarray:
        """The wanted keys of layers that have begun since."""
        before = self._passed
        self._passed = max(before, int(np.searchsorted(self._due, position, side="right")))
        return self._keys[before : self._passed]

    @property
    def wanted(self) -> tuple[np.ndarray, np.ndarray]:
        """Keys and ticks of what is wanted for layers that have not begun."""
        return self._keys[self._passed :], self._due[self._passed :]


class PrefetchPlan:
    """Keeps the plans of the nearest steps."""

    def __init__(self, layers: int, experts: int, uncalibrated: bool = False) -> None:
        self._layers, self._experts = layers, experts
        self.wanted_chance = (MIN_PREFETCH_PROBABILITY + MAX_PREFETCH_PROBABILITY) / 2
        """From this chance of use on an expert is brought in ahead; it follows what the link can carry."""
        self._hints_come = np.zeros((layers, 1), dtype=bool)
        """Layers that were hinted at in the last step."""
        self.calibration = Calibration(layers, uncalibrated)
        self.plans: list[LivePlan] = []
        """By step."""
        self.position = NOWHERE
        """The tick of the last layer that is known to have begun."""

    def take(self, plan: StepPrediction) -> bool:
        """Adds a plan, in place of an older one for that step. False: it is malformed, too late or too early."""
        if len(plan.scores) != self._layers * self._experts or not self._is_near(plan.step):
            return False
        live = self._plan_of(plan.step)
        if live is not None:
            said = levels(np.frombuffer(plan.scores, dtype=np.uint8)).reshape(self._layers, self._experts)
            live.take(said, self.calibration)
            live.order(self.wanted_chance, self._hints_come, self.position)
        return True

    def receive(self, hint: Hint) -> bool:
        """Merges a hint into what is foretold of its layer. False: it is malformed, or comes too late."""
        tick = hint.step * self._layers + hint.layer
        sensible = 0 <= hint.layer < self._layers and len(hint.scores) == self._experts
        if not sensible or not self._is_near(hint.step) or tick <= self.position:
            return False
        live = self._plan_of(hint.step)
        if live is not None:
            live.receive(hint.layer, levels(np.frombuffer(hint.scores, dtype=np.uint8)), self.calibration)
            live.order(self.wanted_chance, self._hints_come, self.position)
        return True

    def learn(self, step: int, used: np.ndarray) -> None:
        """A step has `used` (bool [layers, experts]): what was said of it is judged, and done with."""
        for live in self.plans:
            if live.step == step:
                self._hints_come = live.hinted
                for layer in np.flatnonzero(live.known).tolist():
                    self.calibration.learn(layer, live.plan[layer], live.hint[layer], used[layer])
        self.plans = [live for live in self.plans if live.step != step]

    def cause(self, due: int, key: int) -> Cause:
        """Return who says that `key` is wanted at tick `due`: a hint that names it, else the plan."""
        step, layer = divmod(due, self._layers)
        live = self.plan_for(step)
        hinted = live is not None and 0 < live.hint[layer, key % self._experts] < UNKNOWN
        return Cause("hint" if hinted else "prediction", step, layer)

    def plan_for(self, step: int) -> LivePlan | None:
        """Return what is foretold of this step, if anything is."""
        return next((live for live in self.plans if live.step == step), None)

    def _plan_of(self, step: int) -> LivePlan | None:
        """The plan of this step, new if there is none; None when nearer steps have all places."""
        for live in self.plans:
            if live.step == step:
                return live
        ordered = sorted([*self.plans, LivePlan(step, self._layers, self._experts)], key=lambda live: live.step)
        self.plans = ordered[:MAX_PLANS]
        return next((live for live in self.plans if live.step == step), None)

    def _is_near(self, step: int) -> bool:
        if self.position == NOWHERE:
            return 0 <= step < MAX_STEPS
        current = self.position // self._layers
        return current <= step <= current + HORIZON_STEPS

    def move(self, tick: int) -> np.ndarray:
        """Compute is at `tick`. Returns the keys wanted for layers that have begun since; drops plans long over."""
        current = tick // self._layers
        if current < self.position // self._layers:
            self.plans.clear()  # steps are counted anew: the scheduler was restarted
        self.position = tick
        begun = [plan.move(tick) for plan in self.plans]
        self.plans = [plan for plan in self.plans if plan.step >= current - 1 and plan.step <= current + HORIZON_STEPS]
        return np.concatenate(begun) if begun else np.empty(0, dtype=np.intp)

    def settle(self, late: bool) -> None:
        """A layer has begun, and what was wanted for it was there or came late: idle links make bold, busy ones shy."""
        chance = self.wanted_chance + (SHYER if late else -BOLDER)
        self.wanted_chance = min(max(chance, MIN_PREFETCH_PROBABILITY), MAX_PREFETCH_PROBABILITY)

    def wanted(self, placed: np.ndarray) -> Iterator[tuple[int, int]]:
        """(due tick, key) of what is wanted and not `placed` (bool by key), the first due first."""
        for plan in self.plans:
            keys, due = plan.wanted
            for start in range(0, len(keys), LOOK_AHEAD):  # few are asked for, of many
                part = slice(start, start + LOOK_AHEAD)
                absent = ~placed[keys[part]]
                yield from zip(due[part][absent].tolist(), keys[part][absent].tolist(), strict=True)
