"""Constants and small functions that training and inference share, so that both compute the same."""

from __future__ import annotations

import numpy as np

FLOOR = 1e-3
"""Smallest probability whose logarithm is taken; smaller ones are raised to it."""
COPY_FLOOR = 3e-3
RECENT_FLOOR = 3e-2
RECENT_DECAYS = (0.8, 0.97)
"""Decay of two averages of recent routing: the weight of a token's routing one token later."""
RECENT_PRIOR = 0.5
"""Weight of popularity in those averages."""
TABLE_SCALE = 0.3
"""Brings log ratios to about 1."""
GRAM_SCALE = 0.3
RECENT_SCALE = 2.0
NOTHING = 1e-20
"""Weights below are taken as 0: with numbers too small for the usual form processors are ten times slower."""
COUNT_BUCKETS = 12
DISTANCE_BUCKETS = 16
EVIDENCE = ("table", "same token", "previous", "copied", *(f"recent {decay}" for decay in RECENT_DECAYS))
"""Sources from which the routing is read directly, each weighed by layer and token."""


def clear_tiny(weights: np.ndarray) -> np.ndarray:
    """Set weights below `NOTHING` to 0, in place, and return the array.

    float32 of any shape; no weight may be negative.
    """
    weights *= weights > np.float32(NOTHING)
    return weights


def count_bucket(counts: np.ndarray) -> np.ndarray:
    """Return numbers of sightings on a logarithmic scale, int64 0 … COUNT_BUCKETS − 1, in the same shape."""
    return np.minimum(np.log2(np.asarray(counts, dtype=np.float32) + 1) * 1.5, COUNT_BUCKETS - 1).astype(np.int64)


def distance_bucket(distances: np.ndarray) -> np.ndarray:
    """Return distances (1, 2, … tokens back) on a logarithmic scale, in the same shape.

    int64, 0 … DISTANCE_BUCKETS − 1.
    """
    logs = np.log2(np.maximum(np.asarray(distances, dtype=np.float32), 1.0)) * 1.8
    return np.minimum(logs, DISTANCE_BUCKETS - 1).astype(np.int64)
