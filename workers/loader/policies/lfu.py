"""Least frequently used."""

from __future__ import annotations

import numpy as np

from .base import discount, discount_of_share
from .history import UseHistory


class Lfu:
    """Counts over the whole lifetime, kept when an expert is evicted; the layer's place in the round does not count."""

    def __init__(self, layers: int, experts: int, top_k: int) -> None:
        self._layers = layers
        self._history = UseHistory(layers, experts, top_k)

    def touched(self, keys: np.ndarray, step: int) -> None:
        self._history.add(keys, step)

    used = touched

    def worth(self, now: int, after: int | np.ndarray) -> np.ndarray:
        return discount(np.asarray(after - now), self._layers) * discount_of_share(self._history.share())
