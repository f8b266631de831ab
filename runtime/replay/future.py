"""Policies that know the future: bounds on what any policy can reach."""

from __future__ import annotations

import numpy as np

from .steps import Uses


class Belady:
    """Policy that keeps the experts with the nearest next use: no policy loads less (L. A. Belady, 1966).

    This holds if an expert may be dropped right after its use when all others are used sooner (`bypass`).
    """

    def __init__(self, uses: Uses) -> None:
        self._uses = uses
        self._following = self._following_steps()
        self._layer_of = np.arange(uses.layers)[:, None]
        self._next_step = np.full(uses.layers * uses.experts, uses.steps * 2)
        self._next_step[uses.keys[::-1]] = self._step_of_use()[::-1]  # the first use is written last

    def _step_of_use(self) -> np.ndarray:
        return np.repeat(np.arange(self._uses.steps), np.diff(self._uses.starts))

    def _following_steps(self) -> np.ndarray:
        """Return int64: for every entry of `uses.keys` the step that uses this key next."""
        order = np.argsort(self._uses.keys, kind="stable")
        steps, keys = self._step_of_use()[order], self._uses.keys[order]
        same = np.append(keys[1:] == keys[:-1], False)
        following = np.empty(len(order), dtype=np.int64)
        following[order] = np.where(same, np.append(steps[1:], 0), self._uses.steps * 2)
        return following

    def touched(self, keys: np.ndarray, step: int) -> None:
        """Advance the next use of these keys, int64 [n], ascending, beyond `step`."""
        first = self._uses.starts[step]
        indices = first + np.searchsorted(self._uses.of(step), keys)
        self._next_step[keys] = self._following[indices]

    def used(self, keys: np.ndarray, step: int) -> None:
        """Ignore the event: the trace is known."""

    def worth(self, now: int, after: int | np.ndarray) -> np.ndarray:
        """Return float64 [layers, experts]: 1 ÷ the ticks from `now` to the next use."""
        ticks = self._next_step.reshape(self._uses.layers, -1) * self._uses.layers + self._layer_of
        return 1.0 / np.maximum(ticks - now, 1)


class Sch:
    """Policy SCH(m) of "Local routing consistency" (arXiv 2505.16056).

    It evicts the experts that are used least in the next m steps (which are of one token each in the paper).
    """

    def __init__(self, uses: Uses, window_steps: int) -> None:
        self._uses, self._window = uses, window_steps
        self._upcoming = np.zeros(uses.layers * uses.experts, dtype=np.int64)
        """int64 [layers * experts]: uses within the window, the layer's next m steps."""
        self._tick = -1
        """The last finished tick."""
        for step in range(min(window_steps, uses.steps)):
            self._upcoming[uses.of(step)] += 1

    def touched(self, keys: np.ndarray, step: int) -> None:
        """Ignore the event: the trace is known."""

    def used(self, keys: np.ndarray, step: int) -> None:
        """Ignore the event: the trace is known."""

    def worth(self, now: int, after: int | np.ndarray) -> np.ndarray:
        """Return float64 [layers, experts]: uses within the window after `now` ÷ (m + 1)."""
        while self._tick < now:
            step, first = divmod(self._tick + 1, self._uses.layers)
            last = min(now - step * self._uses.layers, self._uses.layers - 1)
            self._count(step, first, last, -1)
            self._count(step + self._window, first, last, 1)
            self._tick = step * self._uses.layers + last
        return self._upcoming.reshape(self._uses.layers, -1) / (self._window + 1.0)

    def _count(self, step: int, first: int, last: int, change: int) -> None:
        """Add the uses of these layers in `step` to the window (`change` 1), or remove them (-1)."""
        if step < self._uses.steps:
            keys = self._uses.of(step)
            begin, end = np.searchsorted(keys, [first * self._uses.experts, (last + 1) * self._uses.experts])
            self._upcoming[keys[begin:end]] += change
