"""Compute medians, quantiles, and ratios of paired times with their 95 % intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000
Pair = tuple[float, float]
"""Seconds of ours, seconds of theirs, for the same work."""


class Interval(NamedTuple):
    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.estimate:.2f} ({self.low:.2f}–{self.high:.2f})"


def paired_speedup(runs: Sequence[Sequence[Pair]], seed: int = 0) -> Interval:
    """Return how many times as fast we are: their time over ours, summed over the pairs of all runs.

    Two-level bootstrap (Davison & Hinkley 1997, §3.8): runs are drawn, then pairs within each, since steps of one run
    are alike. Empty runs are left out; raises ValueError if none is left.
    """
    arrays = [np.asarray(run, dtype=float) for run in runs if len(run)]
    if not arrays:
        raise ValueError("no pairs")
    rng = np.random.default_rng(seed)
    drawn = [_ratio(_resampled(arrays, rng)) for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(_ratio(np.concatenate(arrays)), float(low), float(high))


def median_interval(values: Sequence[float], seed: int = 0) -> Interval:
    """Return the median of a few figures (ratios of rounds), with a bootstrap interval of it."""
    figures = np.asarray(values, dtype=float)
    drawn = np.median(np.random.default_rng(seed).choice(figures, (RESAMPLES, len(figures))), axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(float(np.median(figures)), float(low), float(high))


def quantile(values: Sequence[float], share: float) -> float:
    return float(np.quantile(np.asarray(values), share))


def _resampled(runs: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    chosen = [runs[index] for index in rng.integers(len(runs), size=len(runs))]
    return np.concatenate([run[rng.integers(len(run), size=len(run))] for run in chosen])


def _ratio(pairs: np.ndarray) -> float:
    ours, theirs = pairs.sum(axis=0)
    return float(theirs / ours)
