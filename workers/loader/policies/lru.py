"""Least recently used."""

from __future__ import annotations

import numpy as np

from .base import discount
from .history import HistoryPolicy


class Lru(HistoryPolicy):
    """An expert is expected to stay unused for as long again as it was already.

    The baseline of mixtral-offloading (arXiv 2312.17238) and of ExpertFlow's own comparisons ("Cache-MoE").
    """

    def worth(self, now: int, after: int | np.ndarray) -> np.ndarray:
        return discount(after - self._history.last_tick(), self._layers)
