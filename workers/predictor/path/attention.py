"""Looking back: attention to the earlier tokens of a row, and the routing that is read off there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .features import distance_bucket, without_tiny
from .history import Asked

MAX_COPIED = 16
"""Earlier tokens whose routing is read; the rest of their weight goes to the token table."""


@dataclass(frozen=True)
class View:
    """Who looks at whom: all arrays [rows, tokens, past]."""

    away: np.ndarray
    """Bucket of the distance."""
    same: np.ndarray
    """The token id is the same."""
    allowed: np.ndarray
    """Earlier, and within the window."""

    @staticmethod
    def of(asked: Asked, window: int) -> View:
        distances = asked.distances()
        return View(distance_bucket(distances), asked.same(), (distances > 0) & (distances <= window))


def attend(queries: np.ndarray, keys: np.ndarray, near: np.ndarray, alike: np.ndarray, view: View) -> np.ndarray:
    """float32 [rows, heads, tokens, past]: how much each token attends to each earlier one; the rest is for none.

    `queries` [rows, tokens, heads, key], `keys` [rows, past, heads, key]; `near` [heads, DISTANCE_BUCKETS] is added by
    distance, and `alike` [heads] where the token id is the same.
    """
    scale = np.float32(1 / np.sqrt(queries.shape[3]))
    scores = queries.transpose(0, 2, 1, 3) @ keys.transpose(0, 2, 3, 1)
    scores *= scale
    for head in range(len(near)):
        scores[:, head] += near[head][view.away] + alike[head] * view.same
    scores = np.where(view.allowed[:, None], scores, -np.inf)
    highest = scores.max(axis=3, keepdims=True, initial=0.0)
    scores -= highest
    weights = np.exp(scores, out=scores)
    weights /= weights.sum(axis=3, keepdims=True) + np.exp(-highest)
    return without_tiny(weights)


def read_routing_at(shares: np.ndarray, routes: np.ndarray, width: int) -> np.ndarray:
    """float32 [rows * tokens, width]: the routing of earlier tokens, each weighing its share [rows, tokens, past]."""
    count = shares.shape[0] * shares.shape[1]
    row, token, place = np.nonzero(shares)
    lines = row * shares.shape[1] + token
    places = (lines[:, None] * width + routes[row, place]).ravel()
    weights = np.repeat(shares[row, token, place], routes.shape[2])
    return np.bincount(places, weights=weights, minlength=count * width).reshape(count, width).astype(np.float32)


def largest(shares: np.ndarray) -> np.ndarray:
    """Only the `MAX_COPIED` largest of each token, 0 for the others."""
    if shares.shape[2] <= MAX_COPIED:
        return shares
    least = np.partition(shares, -MAX_COPIED, axis=2)[:, :, -MAX_COPIED, None]
    return np.where(shares >= least, shares, np.float32(0))
