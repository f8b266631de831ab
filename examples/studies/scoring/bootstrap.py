"""Intervals by resampling images, since questions about one image share its faults; and a paired test."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

RESAMPLES = 1000


def image_intervals(
    images: Sequence[str],
    outcomes: np.ndarray,
    figures: Callable[[np.ndarray], dict[str, float]],
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Return the 95 % interval of each figure, images drawn with replacement.

    `outcomes` int64 [questions, counts] are summed over the drawn images, and `figures` maps [1, counts] to figures.
    """
    names, places = np.unique(np.asarray(images), return_inverse=True)
    sums = np.zeros((len(names), outcomes.shape[1]), dtype=np.int64)
    np.add.at(sums, places, outcomes)
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), RESAMPLES)
    values = [figures(row[None]) for row in drawn @ sums]
    return {name: _interval([each[name] for each in values]) for name in values[0]}


def _interval(values: list[float]) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def mcnemar_probability(first_right: Sequence[bool], second_right: Sequence[bool]) -> float:
    """Return the exact two-sided probability that two equal systems differ as much on the same questions."""
    only_first = sum(one and not two for one, two in zip(first_right, second_right, strict=True))
    only_second = sum(two and not one for one, two in zip(first_right, second_right, strict=True))
    count, fewer = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(count, k) for k in range(fewer + 1)) / 2**count
    return min(1.0, 2 * tail)
