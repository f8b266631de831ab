"""Say whether a series is flat: its slope by Theil and Sen over medians of blocks, with an interval.

Medians of blocks, and the median of all slopes between two of them (Theil 1950, Sen 1968), hardly move for windows in
which another program had the machine, or one large step had memory. The interval is Sen's, by ranks. It assumes values
that are independent; neighbours are alike, so it is widened by their correlation, as for so many fewer values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

WINDOWS = 4
"""Windows whose median is one value: one of each way to send requests."""
MIN_VALUES = 6
QUANTILE = 1.96
"""Of the normal distribution, for 95 %."""
MAX_CORRELATION = 0.9
"""Largest correlation of neighbours that is allowed for; it widens the interval by a factor of 4.4."""
WARM_UP = 0.45
"""Share of the samples, the first ones, that are left out: a scheduler remembers 20,000 ended requests."""
TOLERANCE = 0.01
"""Growth over the whole run, as a share of the mean, that counts as flat though the slope is not 0."""


class Slope(NamedTuple):
    """Growth of a series over `span` requests, in its own unit, with the interval of 95 %, and its median."""

    growth: float
    low: float
    high: float
    middle: float
    tolerance: float = TOLERANCE

    @property
    def is_flat(self) -> bool:
        """Return whether the interval holds no growth beyond the tolerance: of growth, not of fall."""
        return self.low <= max(0.0, self.tolerance * self.middle)

    @property
    def is_certain(self) -> bool:
        """Return whether the interval leaves no room for growth beyond the tolerance."""
        return self.high <= max(0.0, self.tolerance * self.middle)


def slope_of(requests: Sequence[int], values: Sequence[float], span: int, tolerance: float = TOLERANCE) -> Slope:
    """Return the growth of `values` over `span` requests, after the warm-up.

    Raises ValueError for fewer than 24 samples after the warm-up.
    """
    x, y = _medians(requests), _medians(values)
    if len(x) < MIN_VALUES:
        raise ValueError(f"{len(x)} medians of {WINDOWS} windows after the warm-up: too few for a slope")
    first, second = np.triu_indices(len(x), 1)
    slopes = np.sort((y[second] - y[first]) / (x[second] - x[first]))
    growth = float(np.median(slopes))
    half = (_rank_spread(len(x)) * _widening(y - growth * x)) / 2
    low = max(0, int(np.floor(len(slopes) / 2 - half)))
    high = min(len(slopes) - 1, int(np.ceil(len(slopes) / 2 + half)))
    return Slope(growth * span, slopes[low] * span, slopes[high] * span, float(np.median(y)), tolerance)


def warm_up(count: int) -> int:
    """Return how many of so many samples are left out."""
    return int(WARM_UP * count)


def _medians(values: Sequence[float]) -> np.ndarray:
    """Return the medians of blocks after the warm-up, float64 [blocks]; an incomplete block is left out."""
    kept = np.asarray(values[warm_up(len(values)) :], dtype=float)
    return np.median(kept[len(kept) % WINDOWS :].reshape(-1, WINDOWS), axis=1)


def _rank_spread(count: int) -> float:
    """Return the width of Sen's interval in ranks of slopes, for so many independent values."""
    return QUANTILE * float(np.sqrt(count * (count - 1) * (2 * count + 5) / 18))


def _widening(values: np.ndarray) -> float:
    """Return the factor for an interval whose residuals, float64 [values], are like their neighbours."""
    residuals, count = values - values.mean(), len(values)
    square = float(residuals @ residuals)
    if square == 0:
        return 1.0
    found = float(residuals[1:] @ residuals[:-1]) / square
    unbiased = found + (1 + 3 * found) / count
    correlation = min(max(unbiased, 0.0), MAX_CORRELATION)
    return float(np.sqrt((1 + correlation) / (1 - correlation)))
