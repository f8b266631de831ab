"""Expert activation matrices of whole requests, matched to the running one: MoE-Infinity (arXiv 2401.14361)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ....ipc.messages import PredictStep, StepRouting
from ...traces.routing import read_routing
from ..base.forecaster import Forecaster, Part, chunks
from ..base.lru import LruLines

REMEMBERED_REQUESTS = 256


class ActivationMatrixForecaster(Forecaster):
    """Counts for every request how often its tokens used each expert, and expects what the most similar one did.

    Similarity is the cosine of the counts, as in the source. The store is bounded: the request that was not seen for
    longest makes room. A request of which nothing is known yet is expected to use what all others used.
    """

    follows_rows = True

    def __init__(self, layers: int, experts: int, top_k: int, requests: int = REMEMBERED_REQUESTS) -> None:
        super().__init__(layers, experts)
        self._counts = np.zeros((requests, layers * experts), dtype=np.float32)
        self._tokens = np.zeros(requests, dtype=np.float32)
        self._lines = LruLines(requests)
        """Of rows in the store."""
        self._prior = top_k / experts

    def parts(self, coming: PredictStep) -> Iterator[Part]:
        rows = np.array(coming.rows, dtype=np.int64)
        expected = {row: self._expected(row).reshape(self._layers, self._experts) for row in set(coming.rows)}
        for places in chunks(len(rows)):
            yield places, np.stack([expected[row] for row in rows[places].tolist()])

    def _expected(self, row: int) -> np.ndarray:
        line = self._lines.find(row)
        others = self._tokens > 0
        if line >= 0:
            others[line] = False
        if not others.any():
            return np.full(self._counts.shape[1], self._prior, dtype=np.float32)
        if line < 0:
            return self._counts[others].sum(axis=0) / self._tokens[others].sum()
        nearest = np.flatnonzero(others)[np.argmax(self._likeness(line)[others])]
        return self._counts[nearest] / self._tokens[nearest]

    def _likeness(self, line: int) -> np.ndarray:
        """Cosine between this line and every line, but for a factor that all share."""
        lengths = np.linalg.norm(self._counts, axis=1)
        return self._counts @ self._counts[line] / np.maximum(lengths, 1e-9)

    def learn(self, used: StepRouting) -> None:
        routing = read_routing(used, self._layers, self._experts)
        if routing is None:
            return
        keys = (routing + (np.arange(self._layers) * self._experts)[None, :, None]).reshape(len(routing), -1)
        rows = np.array(used.rows, dtype=np.int64)[: len(routing)]
        for row in dict.fromkeys(rows.tolist()):
            mine = rows == row
            line = self._line_for(row)
            self._counts[line] += np.bincount(keys[mine].ravel(), minlength=self._counts.shape[1])
            self._tokens[line] += mine.sum()

    def _line_for(self, row: int) -> int:
        line, fresh = self._lines.open(row)
        if fresh:
            self._counts[line] = 0
            self._tokens[line] = 0
        return line
