"""Least recently used."""

from __future__ import annotations

import numpy as np

from .base import discount
from .history import UseHistory


class Lru:
    """An expert is expected to stay unused for as long again as it was already.

    The baseline of mixtral-offloading (arXiv 2312.17238) and of ExpertFlow's own comparisons ("Cache-MoE").
    """

    def __init__(self, layers: int, experts: int, top_k: int) -> None:
        self._layers = layers
        self._history = UseHistory(layers, experts, top_k)

    def touched(self, keys: np.ndarray, step: int) -> None:
        self._history.add(keys, step)

    used = touched

    def worth(self, now: int, after: int | np.ndarray) -> np.ndarray:
        return discount(after - self._history.last_tick(), self._layers)
