"""A ring of layers: what was just passed goes first."""

from __future__ import annotations

import numpy as np

from .base import discount
from .history import HistoryPolicy


class Ring(HistoryPolicy):
    """The order of SE-MoE (arXiv 2205.10034): the layer that comes up furthest away makes room, whatever its experts.

    Within a layer, where all experts are alike to the ring, the least recently used one goes first.
    """

    def worth(self, now: int, after: int | np.ndarray) -> np.ndarray:
        visit = after + 1 + (self._layer_of - after - 1) % self._layers
        idle = self._history.rounds(now)
        return discount(visit - now + idle / (1.0 + idle), self._layers)
