"""Static: a hot set, learnt once and then fixed."""

from __future__ import annotations

import numpy as np

from .base import discount, discount_of_share
from .history_policies import UseHistory

WARM_UP_STEPS = 128


class Static:
    """Counts uses during the first `warm_up` steps only. The experts used most then are never evicted.

    All others share the slots that are left. Static baselines of the literature get the most used experts of the very
    trace that they are judged on; this one has to see them first.
    """

    def __init__(self, layers: int, experts: int, top_k: int, warm_up: int = WARM_UP_STEPS) -> None:
        self._layers, self._warm_up = layers, warm_up
        self._history = UseHistory(layers, experts, top_k)

    def touched(self, keys: np.ndarray, step: int) -> None:
        """Count these experts, int64 [count], until the warm-up is over; ignore later steps."""
        if self._history.steps < self._warm_up or step == self._history.latest:
            self._history.add(keys, step)

    used = touched

    def worth(self, now: int, after: int | np.ndarray) -> np.ndarray:
        """Return the discount of the share of uses, float64 [layers, experts]; it stays after the warm-up."""
        return discount(np.asarray(after - now), self._layers) * discount_of_share(self._history.share())
