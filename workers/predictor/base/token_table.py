"""Learns, while the model runs, which experts each token id uses: P(expert | token id)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ....ipc.messages import PredictStep, StepRouting
from ...traces.routing import read_routing
from .forecaster import CHUNK_TOKENS, Forecaster, Part, chunks
from .lru import LruLines

MAX_COUNTED = 255
TABLE_BYTES = 16 << 20


class TokenTable(Forecaster):
    """Counts by token id in a bounded table; the token that was not seen for longest makes room.

    A token is believed as far as it was seen: its counts are mixed with the popularity of the experts over all tokens,
    which weighs as much as `prior_tokens` sightings.
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
        """Of token ids in the table."""
        self._popularity = np.full(width, top_k / experts)
        self._tokens = 1.0

    def parts(self, coming: PredictStep) -> Iterator[Part]:
        ids = np.asarray(coming.token_ids, dtype=np.int64)
        for places in chunks(len(ids)):
            yield places, self._used(ids[places]).reshape(-1, self._layers, self._experts)

    def _used(self, ids: np.ndarray) -> np.ndarray:
        """P(expert | token) [ids, layers * experts]; a token that is not in the table has the prior alone."""
        lines = np.array([self._lines.find(token) for token in ids.tolist()])
        known = (lines >= 0)[:, None].astype(np.float32)
        counts, seen = self._counts[lines] * known, self._seen[lines, None] * known
        prior = (self._popularity / self._tokens).astype(np.float32)
        return (counts + self._prior_tokens * prior) / (seen + self._prior_tokens)

    def learn(self, used: StepRouting) -> None:
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
        while (large := seen > MAX_COUNTED).any():
            counts[large] >>= 1
            seen[large] >>= 1
        self._counts[lines] = np.minimum(counts, MAX_COUNTED)
        self._seen[lines] = seen

    def _lines_for(self, ids: list[int]) -> np.ndarray:
        """A line for each of these distinct tokens, now the most recently seen ones; new lines are empty."""
        return np.array([self._line_for(token) for token in ids])

    def _line_for(self, token: int) -> int:
        line, fresh = self._lines.open(token)
        if fresh:
            self._counts[line] = 0
            self._seen[line] = 0
        return line
