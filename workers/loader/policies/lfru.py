"""Frequency over age: least frequently and least recently used, combined."""

from __future__ import annotations

import numpy as np

from .base import discount, discount_of_share
from .history import HistoryPolicy


class Lfru(HistoryPolicy):
    """Lifetime count ÷ age, as in the evaluation of arXiv 2608.07911, where it was the best causal policy.

    There the age is the number of events (layers run) since the last use, plus one. Here only whole rounds through the
    layers are counted: the same for the experts of one layer, while the layers compare as if just visited.
    """

    def worth(self, now: int, after: int | np.ndarray) -> np.ndarray:
        age = 1.0 + self._layers * self._history.rounds(now)
        share = self._history.share() / age
        return discount(np.asarray(after - now), self._layers) * discount_of_share(share)
