"""Greedy swapping on the objective itself, from the groups as they are, so that few rows move."""

from __future__ import annotations

import numpy as np

from .objective import probabilities_of, unused_by_mates

NEGLIGIBLE = 1e-2
"""Experts: a smaller gain may be a rounding error of the sums."""


def swap(routes: np.ndarray, groups: np.ndarray, least_gain: float = 0.0, most_swaps: int = 64) -> np.ndarray:
    """int64 [rows]: groups of the same sizes that activate no more experts than `groups` [rows] do.

    The two rows of different groups whose exchange saves the most experts change places, until no exchange saves more
    than `least_gain`. `routes` is [rows, layers, experts], see `activated`. All exchanges are judged at once: a row b
    in the place of a leaves unused what the mates of a and b itself leave unused, which for all pairs is one product
    of matrices.
    """
    unused = 1 - probabilities_of(routes)
    groups = np.array(groups, dtype=np.int64)
    for _ in range(most_swaps):
        gains = _gains(unused, groups)
        row, other = np.unravel_index(np.argmax(gains), gains.shape)
        if not gains[row, other] > max(least_gain, NEGLIGIBLE):
            break
        groups[[row, other]] = groups[[other, row]]
    return groups


def _gains(unused: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """[rows, rows]: experts fewer if these two rows change places; 0 for rows of one group."""
    left = unused_by_mates(unused, groups) @ unused.T
    now = np.diagonal(left)
    return np.where(groups[:, None] == groups, 0.0, left + left.T - now[:, None] - now)
