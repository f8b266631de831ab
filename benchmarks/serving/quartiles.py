"""Medians with their quartiles: how far single rounds are from one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Quartiles(NamedTuple):
    """Median, first and third quartile of some values."""

    median: float
    first: float
    third: float

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.first:.3f} to {self.third:.3f})"


def quartiles(values: Sequence[float]) -> Quartiles:
    """Return the quartiles of at least one value, interpolated."""
    first, median, third = np.percentile(values, [25, 50, 75])
    return Quartiles(float(median), float(first), float(third))
