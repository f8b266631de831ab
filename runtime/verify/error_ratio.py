"""Judges our rounding error by that of transformers (I1c): errors per position, with chance told apart from a fault.

In bfloat16 a router that is nearly undecided may take another expert than in float32, in our kernels or in the
library's. With one expert a token such a position is wrong by 50 to 100 times the usual error, and the positions that
look back on it by less. Both sides meet that equally often, but among a few hundred positions the mean is decided by
one or two of them: it was 0.9 to 1.6 times that of transformers over twelve random models that are 1.0 in the median.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

LIMIT = 1.25
RESAMPLES = 2000
CHANCE = 0.01
"""A mean above the limit is chance if it falls below in more than this share of the resamples."""


class ErrorRatio(msgspec.Struct, frozen=True):
    """Our errors in errors of transformers."""

    mean: float
    """Ratio of the mean errors."""
    low: float
    """The mean ratio that `CHANCE` of the resamples fall below."""
    median: float
    """Ratio of the median errors of a position: what no single position decides."""

    @property
    def holds(self) -> bool:
        """Whether the median is within the limit, and the mean within it or above it by chance."""
        return self.median <= LIMIT and self.low <= LIMIT

    @property
    def by_chance(self) -> bool:
        """Whether a few positions alone lift the mean above the limit."""
        return self.holds and self.mean > LIMIT


def compare_errors(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> ErrorRatio:
    """Compare errors of each position, one array [positions] a sequence, the same positions on both sides.

    Sequences are resampled (a wrong position may spoil those after it); a single one by its positions.
    """
    mine, other = np.concatenate(ours), np.concatenate(theirs)
    if len(ours) == 1:
        sums = mine, other
    else:
        sums = np.array([each.sum() for each in ours]), np.array([each.sum() for each in theirs])
    median = _ratio(np.median(mine), np.median(other))
    return ErrorRatio(float(_ratio(mine.sum(), other.sum())), _low(*sums), float(median))


def _low(ours: np.ndarray, theirs: np.ndarray) -> float:
    picks = np.random.default_rng(0).integers(0, len(ours), (RESAMPLES, len(ours)))
    return float(np.quantile(_ratio(ours[picks].sum(axis=1), theirs[picks].sum(axis=1)), CHANCE, method="lower"))


def _ratio(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """1 where both are without error, infinite where only theirs is."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(ours == theirs, 1.0, ours / theirs)
