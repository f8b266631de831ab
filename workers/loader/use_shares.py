"""Share of recent steps that used each expert, for watchers. A step costs one addition a used expert."""

from __future__ import annotations

import numpy as np

MEMORY_STEPS = 200
"""Steps after which a use counts 1/e as much."""
MAX_WEIGHT = 1e6


class UseShares:
    """Exponentially weighted counts: the weight of a new step grows, instead of all counts shrinking."""

    def __init__(self, keys: int) -> None:
        self._counts = np.zeros(keys, dtype=np.float64)
        self._weight, self._total = 1.0, 0.0

    def add(self, keys: np.ndarray) -> None:
        """Count one step that used these distinct keys, int64 [count]."""
        self._weight *= 1 + 1 / MEMORY_STEPS
        self._total += self._weight
        self._counts[keys] += self._weight
        if self._weight > MAX_WEIGHT:
            self._counts /= self._weight
            self._total /= self._weight
            self._weight = 1.0

    def scaled(self) -> np.ndarray:
        """Return the share of steps by key, uint8 [keys], 255 is all; empty before the first step."""
        if not self._total:
            return np.zeros(0, dtype=np.uint8)
        return np.rint(255 * self._counts / self._total).astype(np.uint8)
