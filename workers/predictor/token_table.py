"""Learns, while the model runs, which experts each token id uses: P(expert | token id)."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from ...ipc.messages import Forecast, Used
from ..routing import read_routing

CHUNK_TOKENS = 256
"""Distinct tokens worked on at a time; bounds the temporary arrays."""
MOST_COUNTED = 255


class TokenTable:
    """Counts by token id in a bounded table; the token that was not seen for longest makes room.

    A token is believed as far as it was seen: its counts are mixed with the popularity of the experts over all tokens,
    which weighs as much as `prior_tokens` sightings. The tokens of a step are taken as independent, so the probability
    that any of them uses an expert is 1 − Π (1 − p).
    """

    def __init__(
        self, layers: int, experts: int, top_k: int, memory_bytes: int = 16 << 20, prior_tokens: float = 1.0
    ) -> None:
        self._layers, self._experts, self._prior_tokens = layers, experts, prior_tokens
        width = layers * experts
        capacity = max(memory_bytes // (width + 1), 1)
        self._counts = np.zeros((capacity, width), dtype=np.uint8)
        self._seen = np.zeros(capacity, dtype=np.uint8)
        self._line_of: OrderedDict[int, int] = OrderedDict()
        """Token id → line of the table, least recently seen first."""
        self._popularity = np.full(width, top_k / experts)
        self._tokens = 1.0

    def forecast(self, coming: Forecast) -> np.ndarray:
        """float32 [layers, experts]; see `Forecaster`."""
        ids, times = np.unique(np.asarray(coming.token_ids, dtype=np.int64), return_counts=True)
        prior = (self._popularity / self._tokens).astype(np.float32)
        log_unused = np.zeros(prior.size, dtype=np.float32)
        for start in range(0, len(ids), CHUNK_TOKENS):
            part = slice(start, start + CHUNK_TOKENS)
            log_unused += times[part].astype(np.float32) @ self._log_unused(ids[part], prior)
        return (-np.expm1(log_unused)).reshape(self._layers, self._experts)

    def routes(self, coming: Forecast) -> np.ndarray:
        """float32 [tokens, layers, experts]; see `Forecaster`."""
        ids, which = np.unique(np.asarray(coming.token_ids, dtype=np.int64), return_inverse=True)
        prior = (self._popularity / self._tokens).astype(np.float32)
        used = -np.expm1(self._log_unused(ids, prior))
        return used[which].reshape(len(which), self._layers, self._experts)

    def _log_unused(self, ids: np.ndarray, prior: np.ndarray) -> np.ndarray:
        """log(1 − P(expert | token)) [ids, layers * experts]; a token that is not in the table has the prior alone."""
        lines = np.array([self._line_of.get(token, -1) for token in ids.tolist()])
        known = (lines >= 0)[:, None]
        used = (self._counts[lines] * known + self._prior_tokens * prior) / (
            self._seen[lines, None] * known + np.float32(self._prior_tokens)
        )
        return np.log1p(-np.minimum(used, np.float32(1 - 1e-6)))

    def learn(self, used: Used) -> None:
        """Adds the routing of a step; see `Forecaster`."""
        routing = read_routing(used, self._layers, self._experts)
        if routing is None or not len(routing):
            return
        keys = (routing + (np.arange(self._layers) * self._experts)[None, :, None]).reshape(len(routing), -1)
        self._popularity += np.bincount(keys.ravel(), minlength=self._popularity.size)
        self._tokens += len(routing)
        ids, which, times = np.unique(np.asarray(used.token_ids), return_inverse=True, return_counts=True)
        chunk = min(CHUNK_TOKENS, len(self._seen))
        for start in range(0, len(ids), chunk):
            inside = (which >= start) & (which < start + chunk)
            lines = self._lines_for(ids[start : start + chunk].tolist())
            self._add(lines, times[start : start + chunk], keys[inside], which[inside] - start)

    def _add(self, lines: np.ndarray, times: np.ndarray, keys: np.ndarray, which: np.ndarray) -> None:
        """Adds routes `keys` [tokens, layers * k] to the lines that `which` [tokens] names.

        Lines that would overflow are halved until they fit, so that what was seen lately weighs more.
        """
        width = self._counts.shape[1]
        flat = (which[:, None] * width + keys).ravel()
        counts = np.bincount(flat, minlength=len(lines) * width).reshape(len(lines), width) + self._counts[lines]
        seen = self._seen[lines] + times
        while (large := seen > MOST_COUNTED).any():
            counts[large] >>= 1
            seen[large] >>= 1
        self._counts[lines] = np.minimum(counts, MOST_COUNTED)
        self._seen[lines] = seen

    def _lines_for(self, ids: list[int]) -> np.ndarray:
        """A line for each of these distinct tokens, now the most recently seen ones; new lines are empty."""
        return np.array([self._line_for(token) for token in ids])

    def _line_for(self, token: int) -> int:
        line = self._line_of.pop(token, None)
        if line is None:
            full = len(self._line_of) == len(self._seen)
            line = self._line_of.popitem(last=False)[1] if full else len(self._line_of)
            self._counts[line] = 0
            self._seen[line] = 0
        self._line_of[token] = line
        return line
