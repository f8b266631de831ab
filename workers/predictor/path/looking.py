"""Looking back: attention to the earlier tokens of a sequence, and the routing that is read off there."""

from __future__ import annotations

import numpy as np

from .mixing import distance_bucket
from .past import Asked

MOST_COPIED = 32
"""Earlier tokens whose routing is read; the rest of their weight goes to the token table."""


def look_back(
    asked: Asked, queries: np.ndarray, keys: np.ndarray, near: np.ndarray, alike: np.ndarray, window: int
) -> np.ndarray:
    """float32 [heads, tokens, past]: how much each token attends to each earlier one; what is left is for none.

    `queries` [tokens, heads, key] and `keys` [past, heads, key]; `near` [heads, DISTANCE_BUCKETS] is added by
    distance and `alike` [heads] where the token id is the same.
    """
    distances = asked.positions[:, None] - asked.past.positions[None, :]
    scale = np.float32(1 / np.sqrt(queries.shape[2]))
    scores = queries.transpose(1, 0, 2) @ keys.transpose(1, 2, 0) * scale + near[:, distance_bucket(distances)]
    scores += alike[:, None, None] * (asked.tokens[:, None] == asked.past.tokens[None, :])
    scores[:, (distances <= 0) | (distances > window)] = -np.inf
    highest = np.maximum(scores.max(axis=2, keepdims=True, initial=0.0), 0.0)
    weights = np.exp(scores - highest)
    return weights / (weights.sum(axis=2, keepdims=True) + np.exp(-highest))


def remembered(asked: list[Asked], width: int, shares: list[np.ndarray] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Weighted sum of the routing of earlier tokens [N, width], and the sum of the weights [N, 1].

    `shares` are the weights, [tokens, past] for each of `asked`; without them every earlier token of the same id
    whose routing is known counts 1.
    """
    count = asked[-1].end if asked else 0
    routing = np.zeros((count, width), dtype=np.float32)
    weight = np.zeros((count, 1), dtype=np.float32)
    for number, one in enumerate(asked):
        share = _same(one) if shares is None else _largest(shares[number])
        which, where = np.nonzero(share)
        if len(which):
            weight[one.first : one.end, 0] = share.sum(axis=1)
            routing[one.first : one.end] = _spread(
                share[which, where], which, one.past.routes[where], share.shape[0], width
            )
    return routing, weight


def _same(asked: Asked) -> np.ndarray:
    """[tokens, past]: 1 where an earlier token of known routing has the same id."""
    same = (asked.tokens[:, None] == asked.past.tokens[None, :]) & asked.past.known
    return (same & (asked.positions[:, None] > asked.past.positions[None, :])).astype(np.float32)


def _largest(share: np.ndarray) -> np.ndarray:
    """Only the `MOST_COPIED` largest of each token."""
    if share.shape[1] <= MOST_COPIED:
        return share
    least = np.partition(share, -MOST_COPIED, axis=1)[:, -MOST_COPIED, None]
    return np.where(share >= least, share, np.float32(0))


def _spread(weights: np.ndarray, which: np.ndarray, routes: np.ndarray, count: int, width: int) -> np.ndarray:
    """[count, width]: adds `weights` [n] of tokens `which` [n] at the places `routes` [n, layers * top_k]."""
    places = (which[:, None] * width + routes).ravel()
    added = np.bincount(places, weights=np.repeat(weights, routes.shape[1]), minlength=count * width)
    return added.reshape(count, width).astype(np.float32)
