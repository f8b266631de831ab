"""Greedy swaps of rows that lower the objective, starting from the present groups, so that few rows move."""

from __future__ import annotations

import numpy as np

from .objective import count_activated, to_probabilities, unused_by_others

NEGLIGIBLE = 1e-2
"""Smallest gain, in experts, that cannot be a rounding error of the sums."""
MAX_SWAPS = 64
DISCOUNT = np.float32(0.9)
"""Factor on the routes in the first descent. If every group holds rows of every kind and routes are certain, no first
swap saves anything; with this factor an expert that two rows use is more probable than that of one."""


def swap(routes: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return int64 [rows]: groups of the same sizes that activate no more experts than `groups` [rows] do.

    Each swap takes the two rows of different groups whose exchange saves the most experts, until none saves any. Swaps
    are first found on routes scaled by `DISCOUNT`, then on the routes themselves. `routes` is [rows, layers, experts],
    see `to_probabilities`.
    """
    used, groups = to_probabilities(routes), np.array(groups, dtype=np.int64)
    found = _descend(used, _descend(DISCOUNT * used, groups))
    return found if count_activated(used, found) <= count_activated(used, groups) else _descend(used, groups)


def _descend(used: np.ndarray, groups: np.ndarray) -> np.ndarray:
    unused, groups = 1 - used, groups.copy()
    for _ in range(MAX_SWAPS):
        gains = _gains(unused, groups)
        row, other = np.unravel_index(np.argmax(gains), gains.shape)
        if gains[row, other] <= NEGLIGIBLE:
            break
        groups[[row, other]] = groups[[other, row]]
    return groups


def _gains(unused: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return float32 [rows, rows]: the experts saved if two rows change places; 0 for rows of one group.

    With row b in the place of row a, an expert is unused if neither b nor the other rows of a's group use it. For all
    pairs together that is one matrix product.
    """
    left = unused_by_others(unused, groups) @ unused.T
    now = np.diagonal(left)
    return np.where(groups[:, None] == groups, 0.0, left + left.T - now[:, None] - now)
