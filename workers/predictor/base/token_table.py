"""Token tables, P(expert | token id): one that learns while the model runs, and what all of them share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ....ipc.messages import PredictStep, StepRouting
from ...traces.routing import read_routing
from ...traces.trace import Trace
from .forecaster import CHUNK_TOKENS, Forecaster, Part, chunks
from .lru import LruLines

MAX_COUNTED = 255
"""Largest count that a table in bytes holds."""
TABLE_BYTES = 16 << 20


class TokenTable(Forecaster):
    """Counts by token id in a bounded table; the least recently used token makes room.

    The more often a token was seen, the more its own counts weigh. Against them stands the popularity of the experts
    over all tokens, which weighs as much as `prior_tokens` sightings.
    """

    def __init__(
        self, layers: int, experts: int, top_k: int, memory_bytes: int = TABLE_BYTES, prior_tokens: float = 1.0
    ) -> None:
        super().__init__(layers, experts)
        self._prior_tokens = np.float32(prior_tokens)
        width = layers * experts
        capacity = max(memory_bytes // (width + 1), 1)
        self._counts = np.zeros((capacity, width), dtype=np.uint8)
        self._seen = np.zeros(capacity, dtype=np.uint8)
        self._lines = LruLines(capacity)
        """Token id → its line in the two arrays."""
        self._popularity = np.full(width, top_k / experts)
        self._tokens = 1.0

    def parts(self, request: PredictStep) -> Iterator[Part]:
        ids = np.asarray(request.token_ids, dtype=np.int64)
        for indices in chunks(len(ids)):
            yield indices, self._probabilities(ids[indices]).reshape(-1, self._layers, self._experts)

    def _probabilities(self, ids: np.ndarray) -> np.ndarray:
        """Return float32 [ids, layers * experts]; a token that is not in the table has the popularity alone."""
        lines = np.array([self._lines.find(token) for token in ids.tolist()])
        found = (lines >= 0)[:, None].astype(np.float32)
        counts, seen = self._counts[lines] * found, self._seen[lines, None] * found
        return smooth(counts, seen, (self._popularity / self._tokens).astype(np.float32), self._prior_tokens)

    def learn(self, routing: StepRouting) -> None:
        """Count the routing of a step; see `Forecaster`."""
        routes = read_routing(routing, self._layers, self._experts)
        if routes is None or not len(routes):
            return
        keys = expert_keys(routes, self._experts)
        self._popularity += np.bincount(keys.ravel(), minlength=self._popularity.size)
        self._tokens += len(routes)
        ids, which, times = np.unique(np.asarray(routing.token_ids), return_inverse=True, return_counts=True)
        chunk = min(CHUNK_TOKENS, len(self._seen))
        for start in range(0, len(ids), chunk):
            inside = (which >= start) & (which < start + chunk)
            lines = self._open_lines(ids[start : start + chunk].tolist())
            self._add(lines, times[start : start + chunk], keys[inside], which[inside] - start)

    def _add(self, lines: np.ndarray, times: np.ndarray, keys: np.ndarray, which: np.ndarray) -> None:
        """Add `keys` [tokens, layers * k] to the lines that `which` [tokens] selects.

        Lines that would overflow are halved until they fit, so that recent sightings weigh more.
        """
        width = self._counts.shape[1]
        flat = (which[:, None] * width + keys).ravel()
        counts = np.bincount(flat, minlength=len(lines) * width).reshape(len(lines), width) + self._counts[lines]
        seen = self._seen[lines] + times
        while (large := seen > MAX_COUNTED).any():
            counts[large] >>= 1
            seen[large] >>= 1
        self._counts[lines] = np.minimum(counts, MAX_COUNTED)
        self._seen[lines] = seen

    def _open_lines(self, ids: list[int]) -> np.ndarray:
        """Return a line for each of these distinct tokens, now the most recent ones; new lines are empty."""
        return np.array([self._open_line(token) for token in ids])

    def _open_line(self, token: int) -> int:
        line, fresh = self._lines.open(token)
        if fresh:
            self._counts[line] = 0
            self._seen[line] = 0
        return line


def expert_keys(routes: np.ndarray, experts: int) -> np.ndarray:
    """Return int64 [tokens, layers * top_k], layer * experts + expert, of `routes` [tokens, layers, top_k]."""
    tokens, layers, top_k = routes.shape
    return (routes + (np.arange(layers) * experts)[None, :, None]).reshape(tokens, layers * top_k)


def smooth(counts: np.ndarray, seen: np.ndarray, popularity: np.ndarray, prior_tokens: Any = 1.0) -> np.ndarray:
    """Return P(expert | token) [tokens, width] from `counts` [tokens, width] in `seen` [tokens, 1] sightings.

    `popularity` [width], probabilities, weighs as much as `prior_tokens` sightings of the token.
    """
    return (counts + prior_tokens * popularity) / (seen + prior_tokens)


def count_tokens(trace: Trace) -> tuple[np.ndarray, np.ndarray]:
    """Return int32 [ids, layers * experts] counts and int64 [ids] sightings, for all ids up to the largest."""
    width = trace.layers * trace.expert_count
    ids = int(trace.token_ids.max()) + 1
    counts = np.zeros((ids, width), dtype=np.int32)
    order = np.argsort(trace.token_ids, kind="stable")
    bounds = np.searchsorted(trace.token_ids[order], np.arange(ids + 1))
    for token in np.flatnonzero(np.diff(bounds)).tolist():
        of_token = order[bounds[token] : bounds[token + 1]]
        counts[token] = np.bincount(expert_keys(trace.routes[of_token], trace.expert_count).ravel(), minlength=width)
    return counts, np.diff(bounds)
