"""Compares our rounding error with that of transformers (I1c), position by position, and separates chance from faults.

In bfloat16 a router that is nearly undecided may take another expert than in float32, in our kernels or in the
library's. With one expert a token the error of such a position is 50 to 100 times the usual one; positions that attend
to it are off by less. Both sides meet that equally often, but among a few hundred positions one or two decide the mean:
it was 0.9 to 1.6 times that of transformers over twelve random models whose median ratio is 1.0.
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
    """Our errors as multiples of the errors of transformers."""

    mean: float
    """Ratio of the mean errors."""
    low: float
    """The mean ratio that `CHANCE` of the resamples fall below."""
    median: float
    """Ratio of the median errors of a position, which no single position decides."""

    @property
    def holds(self) -> bool:
        """Return whether the median is within the limit, and the mean within it or above it by chance."""
        return self.median <= LIMIT and self.low <= LIMIT

    @property
    def by_chance(self) -> bool:
        """Return whether only a few positions lift the mean above the limit."""
        return self.holds and self.mean > LIMIT


def compare_errors(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> ErrorRatio:
    """Compare the errors of each position: float32 [positions], one array a sequence, the same positions on both sides.

    Sequences are resampled (a wrong position may spoil those after it); of a single sequence its positions.
    """
    our_errors, their_errors = np.concatenate(ours), np.concatenate(theirs)
    if len(ours) == 1:
        sums = our_errors, their_errors
    else:
        sums = np.array([errors.sum() for errors in ours]), np.array([errors.sum() for errors in theirs])
    median = _ratio(np.median(our_errors), np.median(their_errors))
    return ErrorRatio(float(_ratio(our_errors.sum(), their_errors.sum())), _low(*sums), float(median))


def _low(ours: np.ndarray, theirs: np.ndarray) -> float:
    picks = np.random.default_rng(0).integers(0, len(ours), (RESAMPLES, len(ours)))
    return float(np.quantile(_ratio(ours[picks].sum(axis=1), theirs[picks].sum(axis=1)), CHANCE, method="lower"))


def _ratio(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Return ours / theirs: 1 where both are 0, infinite where only theirs is."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(ours == theirs, 1.0, ours / theirs)
