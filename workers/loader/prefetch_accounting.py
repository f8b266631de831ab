"""Experts that were brought in because of a prediction, until it is known whether the prediction was right."""

from __future__ import annotations

import numpy as np

NOT_PREFETCHED = -1


class PrefetchAccounting:
    """For each expert that was brought in ahead and is not judged yet, the tick for which it was brought."""

    def __init__(self, keys: int) -> None:
        self._due = np.full(keys, NOT_PREFETCHED, dtype=np.int64)
        self._finished = NOT_PREFETCHED
        """The last tick of the last step whose routing is known."""
        self.useful = 0
        self.wasted = 0

    def bring(self, key: int, due: int) -> None:
        self._due[key] = due

    def void(self, key: int) -> bool:
        """No prefetch any more (compute asked for it, or the transfer failed); whether it was one."""
        was_one = bool(self._due[key] != NOT_PREFETCHED)
        self._due[key] = NOT_PREFETCHED
        return was_one

    def evicted(self, key: int, position: int) -> bool:
        """Gone before its layer began, or after its step: wasted (True). In between, the step's routing will tell."""
        wasted = bool(self._due[key] > position or NOT_PREFETCHED < self._due[key] <= self._finished)
        if wasted:
            self.void(key)
            self.wasted += 1
        return wasted

    def unused(self, used: np.ndarray, first_tick: int, last_tick: int) -> list[int]:
        """Return the keys brought in for these ticks that are not among those that were `used`."""
        mine = np.flatnonzero((self._due >= first_tick) & (self._due <= last_tick))
        return np.setdiff1d(mine, used).tolist()

    def judge(self, used: np.ndarray, placed: np.ndarray, tick: int) -> None:
        """A step has used these keys and ended at `tick`; `placed` (bool by key) are still there."""
        self._finished = max(self._finished, tick)
        right = used[self._due[used] != NOT_PREFETCHED]
        self._due[right] = NOT_PREFETCHED
        wrong = (self._due != NOT_PREFETCHED) & (self._due <= tick) & ~placed
        self._due[wrong] = NOT_PREFETCHED
        self.useful += len(right)
        self.wasted += int(np.count_nonzero(wrong))

    def waiting(self, position: int) -> int:
        """How many still wait for their layer."""
        return int(np.count_nonzero(self._due > position))
