"""Least-Stale: what earlier passes left over goes before what the current pass has used."""

from __future__ import annotations

import numpy as np

from .base import discount
from .history import HistoryPolicy


class LeastStale(HistoryPolicy):
    """After SpecMD (arXiv 2602.03921): two generations, each in the order in which its layers run.

    Stale is what the current pass has not used. Of the stale, the layers that run first go first: those have been
    passed, and come up again last. Within a layer the least recently used expert goes first, so with a fixed number of
    slots a layer this is LRU.
    """

    def worth(self, now: int, after: int | np.ndarray) -> np.ndarray:
        """The place in the queue as a time: what goes first is worth a use two rounds away, what goes last one at
        once."""
        step = now // self._layers
        current = self._history.last_step >= step
        recent = 1 / (1.0 + np.maximum(step - self._history.last_step, 0))
        place = self._layers * current + self._layer_of + recent
        return discount(after - now + 2 * self._layers - place, self._layers)
