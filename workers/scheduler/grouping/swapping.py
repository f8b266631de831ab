"""Greedy swapping on the objective itself, from the groups as they are, so that few rows move."""

from __future__ import annotations

import numpy as np

from .objective import activated, probabilities_of, unused_by_mates

NEGLIGIBLE = 1e-2
"""Experts: a smaller gain may be a rounding error of the sums."""
MAX_SWAPS = 64
DOUBT = np.float32(0.9)
"""Where every group has some rows of each kind and routes are certain, no first exchange saves anything, unless an
expert that two rows use is surer than that of one."""


def swap(routes: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """int64 [rows]: groups of the same sizes that activate no more experts than `groups` [rows] do.

    The two rows of different groups whose exchange saves the most experts change places, until none saves any: first
    with some doubt in the routes, then as they are. `routes` is [rows, layers, experts], see `activated`.
    """
    used, groups = probabilities_of(routes), np.array(groups, dtype=np.int64)
    found = _descend(used, _descend(DOUBT * used, groups))
    return found if activated(used, found) <= activated(used, groups) else _descend(used, groups)


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
    """[rows, rows]: experts fewer if these two rows change places; 0 for rows of one group.

    A row b in the place of a leaves unused what the mates of a and b itself leave unused: for all pairs together that
    is one product of matrices.
    """
    left = unused_by_mates(unused, groups) @ unused.T
    now = np.diagonal(left)
    return np.where(groups[:, None] == groups, 0.0, left + left.T - now[:, None] - now)
