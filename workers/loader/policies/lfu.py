"""Least frequently used."""

from __future__ import annotations

import numpy as np

from .base import discount, discount_of_share
from .history import HistoryPolicy


class Lfu(HistoryPolicy):
    """Counts over the whole lifetime, kept when an expert is evicted; the layer's place in the round does not count."""

    def worth(self, now: int, after: int | np.ndarray) -> np.ndarray:
        return discount(np.asarray(after - now), self._layers) * discount_of_share(self._history.share())
