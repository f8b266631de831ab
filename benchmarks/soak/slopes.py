"""Say whether a series is flat: its slope by least squares, with an interval that allows for neighbours being alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000
BLOCK = 5
"""Samples that are drawn together: neighbours are alike (Künsch 1989)."""
WARM_UP = 0.45
"""Share of the samples, the first ones, that are left out: a scheduler remembers 20,000 ended requests."""
TOLERANCE = 0.01
"""Growth over the whole run, as a share of the mean, that counts as flat though the slope is not 0."""


class Slope(NamedTuple):
    """Growth of a series over `span` requests, in its own unit, with the interval of 95 %, and its mean."""

    growth: float
    low: float
    high: float
    mean: float

    @property
    def is_flat(self) -> bool:
        """Return whether the interval holds no growth beyond the tolerance: of growth, not of fall."""
        return self.low <= max(0.0, TOLERANCE * self.mean)

    @property
    def is_certain(self) -> bool:
        """Return whether the interval leaves no room for growth beyond the tolerance."""
        return self.high <= max(0.0, TOLERANCE * self.mean)


def slope_of(requests: Sequence[int], values: Sequence[float], span: int, seed: int = 0) -> Slope:
    """Return the growth of `values` over `span` requests, after the warm-up.

    The interval is that of the residuals, drawn again in blocks. Raises ValueError for fewer than 8 samples.
    """
    first = warm_up(len(values))
    x, y = np.asarray(requests[first:], dtype=float), np.asarray(values[first:], dtype=float)
    if len(x) < 8:
        raise ValueError(f"{len(x)} samples after the warm-up: too few for a slope")
    weights = (x - x.mean()) / np.square(x - x.mean()).sum()
    growth = weights @ y
    residuals = y - y.mean() - growth * (x - x.mean())
    drawn = growth + _redraw(residuals, np.random.default_rng(seed)) @ weights
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Slope(float(growth * span), float(low * span), float(high * span), float(y.mean()))


def warm_up(count: int) -> int:
    """Return how many of so many samples are left out."""
    return int(WARM_UP * count)


def _redraw(residuals: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return residuals in circular blocks drawn at random, float64 [RESAMPLES, count]."""
    count = len(residuals)
    starts = rng.integers(count, size=(RESAMPLES, -(-count // BLOCK), 1))
    places = (starts + np.arange(BLOCK)).reshape(RESAMPLES, -1)[:, :count] % count
    return residuals[places]
