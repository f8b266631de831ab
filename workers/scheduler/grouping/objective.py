"""Cost of a grouping: the experts that its groups activate, summed over groups and layers (paper §3.3, Eq. 2)."""

from __future__ import annotations

import numpy as np


def to_probabilities(routes: np.ndarray) -> np.ndarray:
    """Return float32 [rows, layers * experts], probabilities, from routes [rows, layers, experts].

    Routes are bool, probabilities, or uint8 scores of which 255 is certain; NaN counts as 0.
    """
    flat = routes.reshape(len(routes), -1)
    if flat.dtype == np.uint8:
        return flat.astype(np.float32) / np.float32(255)
    return np.clip(np.nan_to_num(flat.astype(np.float32), nan=0.0), 0.0, 1.0)


def count_activated(routes: np.ndarray, groups: np.ndarray) -> float:
    """Return how many experts the groups activate; an expert of two groups counts twice.

    If `routes` are probabilities, this is the expectation for independent rows, Σ 1 − Π (1 − p). `groups` [rows] is the
    group of each row.
    """
    unused = 1 - to_probabilities(routes)
    return float(sum((1 - unused[groups == group].prod(axis=0)).sum() for group in np.unique(groups)))


def unused_by_others(unused: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return float32 [rows, layers * experts]: the probability that no other row of the row's group uses the expert."""
    others = np.empty_like(unused)
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        others[members] = _products_without_each(unused[members])
    return others


def _products_without_each(factors: np.ndarray) -> np.ndarray:
    """Return in row i the product of all rows but row i, without a division, since factors may be 0."""
    before, after = np.ones_like(factors), np.ones_like(factors)
    np.cumprod(factors[:-1], axis=0, out=before[1:])
    np.cumprod(factors[:0:-1], axis=0, out=after[-2::-1])
    return before * after
