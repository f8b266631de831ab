"""From token ids of the model to lines of a predictor's token table."""

from __future__ import annotations

import numpy as np

from ..spelling import Spelling
from .file import TokenCounts
from .words import MOST_GRAMS, grams_of


class Lexicon:
    """Table lines and spelling of token ids, worked out once for each."""

    def __init__(self, table: TokenCounts, grams: int, spelling: Spelling | None) -> None:
        self._table, self._buckets, self._spelling = table, grams, spelling
        self._line_of = {token: line for line, token in enumerate(table.tokens.tolist())}
        self._known: dict[int, tuple[int, np.ndarray]] = {}

    def look_up(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Counts [n, width], sightings [n] and, if spelling matters, grams int64 [n, MOST_GRAMS]."""
        found = [self._known.get(token) or self._learn(token) for token in ids.tolist()]
        lines = np.array([line for line, _ in found], dtype=np.int64)
        grams = np.stack([grams for _, grams in found]) if self._buckets and found else None
        known = lines >= 0
        return self._table.counts[lines] * known[:, None], self._table.seen[lines] * known, grams

    def _learn(self, token: int) -> tuple[int, np.ndarray]:
        text = self._spelling(token) if self._spelling else None
        line = self._line_of.get(text if self._table.named else token, -1)
        empty = np.full(MOST_GRAMS, self._buckets, dtype=np.int32)
        known = line, grams_of(text, self._buckets) if text is not None and self._buckets else empty
        self._known[token] = known
        return known
