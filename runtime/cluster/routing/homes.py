"""The kind of requests that is at home at each replica: balanced clustering (k-means) of forecasts, online. Pure.

A replica's home is the mean forecast of the requests that it was sent, so it moves slowly, and two kinds do not chase
the same replica. Where there are more kinds than replicas, similar ones share a home; a large kind takes several.
"""

from __future__ import annotations

import numpy as np

from .forecasts import FEATURES

MEMORY = 0.97
"""Factor on what a replica was sent, at each request that it is sent: half is forgotten after about 23."""
HELD_REQUESTS = 2.0
"""Requests that the experts in a replica's slots count as: they decide where nothing was sent yet."""


class Homes:
    """Homes of all replicas, by index."""

    def __init__(self) -> None:
        self._sums = np.zeros((0, FEATURES))
        self._weights = np.zeros(0)
        self._held = np.zeros((0, FEATURES))

    def reserve(self, count: int) -> None:
        """Make room for `count` replicas."""
        more = count - len(self._weights)
        if more > 0:
            self._sums, self._held = (np.pad(each, ((0, more), (0, 0))) for each in (self._sums, self._held))
            self._weights = np.pad(self._weights, (0, more))

    def forget(self, place: int) -> None:
        """Forget a replica: its index is for another one."""
        self._sums[place] = self._held[place] = self._weights[place] = 0

    def send(self, place: int, forecast: np.ndarray) -> None:
        """Note that a request with this forecast, float [FEATURES], was sent to a replica."""
        if forecast.any():
            self._sums[place] = MEMORY * self._sums[place] + forecast
            self._weights[place] = MEMORY * self._weights[place] + 1

    def hold(self, place: int, features: np.ndarray) -> None:
        """Take which experts a replica holds: shares of its slots as float [FEATURES]."""
        self._held[place] = features

    def fits(self, forecasts: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Return float64 [jobs, places], how well forecasts, float [jobs, FEATURES], fit homes.

        The highest is the nearest home: minus half of the squared distance, but for what is equal for all homes.
        """
        homes = self._means(places)
        return forecasts @ homes.T - (homes**2).sum(axis=1) / 2

    def _means(self, places: np.ndarray) -> np.ndarray:
        """Return float64 [places, FEATURES]; what all of these replicas hold is no replica's home."""
        held = self._held[places]
        known = held.any(axis=1, keepdims=True)
        held = np.where(known, held - held.sum(axis=0) / max(int(known.sum()), 1), 0)
        weights = self._weights[places, None] + HELD_REQUESTS * known
        return (self._sums[places] + HELD_REQUESTS * held) / np.maximum(weights, 1e-12)
