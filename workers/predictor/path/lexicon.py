"""What is known of single tokens: the trained token table, which goes on counting, and their spelling."""

from __future__ import annotations

import numpy as np

from ..base.spelling import Spelling
from .file import TokenCounts
from .ngrams import MAX_GRAMS, grams_of

MAX_COUNTED = 255
GROWTH_BYTES = 16 << 20
"""Room for tokens that were not in training; the one that came in first makes room."""
NO_LINE = -1


class Lexicon:
    """Table lines and spelling of token ids, worked out once for each id.

    Counting goes on while the model runs, but for tokens that training saw so often that nothing is to be gained. On
    traces that raised recall, most in a domain that was not trained on (docs/prediction.md).
    """

    def __init__(self, table: TokenCounts, grams: int, spelling: Spelling | None) -> None:
        self._buckets, self._spelling, self._named = grams, spelling, table.named
        self._trained = len(table.tokens)
        self._settled = table.seen == MAX_COUNTED
        self._trained_line = {token: line for line, token in enumerate(table.tokens.tolist())}
        growth = max(GROWTH_BYTES // table.counts.shape[1], 1)
        self._counts = np.concatenate([table.counts, np.zeros((growth, table.counts.shape[1]), dtype=np.uint8)])
        self._seen = np.concatenate([table.seen, np.zeros(growth, dtype=np.uint8)])
        self._line_of: dict[int, int] = {}
        self._grams_of: dict[int, np.ndarray] = {}
        self._grown: list[int] = []
        """Ids in the lines behind the trained ones."""
        self._oldest = 0

    def look_up(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Counts [n, width], sightings [n] and, if spelling matters, grams int32 [n, MAX_GRAMS]."""
        lines = np.array([self._line(token) for token in ids.tolist()], dtype=np.int64)
        grams = np.stack([self._grams(token) for token in ids.tolist()]) if self._buckets and len(ids) else None
        known = lines != NO_LINE
        return self._counts[lines] * known[:, None], self._seen[lines] * known, grams

    def count(self, ids: np.ndarray, hot: np.ndarray) -> None:
        """Tokens ran and went where `hot` [n, width] is 1; old sightings fade where bytes would overflow."""
        for token, routed in zip(ids.tolist(), hot.astype(np.uint8), strict=True):
            line = self._line(token)
            line = self._grow(token) if line == NO_LINE else line
            if line < self._trained and self._settled[line]:
                continue
            if self._seen[line] == MAX_COUNTED:
                self._counts[line] >>= 1
                self._seen[line] >>= 1
            self._counts[line] += routed
            self._seen[line] += 1

    def _line(self, token: int) -> int:
        line = self._line_of.get(token)
        if line is None:
            name = self._spelling(token) if self._named and self._spelling else token
            line = self._line_of[token] = self._trained_line.get(name, NO_LINE)
        return line

    def _grow(self, token: int) -> int:
        if self._trained + len(self._grown) < len(self._seen):
            self._grown.append(token)
            place = len(self._grown) - 1
        else:
            place, self._oldest = self._oldest, (self._oldest + 1) % len(self._grown)
            self._line_of[self._grown[place]] = NO_LINE
            self._grown[place] = token
        line = self._line_of[token] = self._trained + place
        self._counts[line] = 0
        self._seen[line] = 0
        return line

    def _grams(self, token: int) -> np.ndarray:
        grams = self._grams_of.get(token)
        if grams is None:
            text = self._spelling(token) if self._spelling else None
            nothing = np.full(MAX_GRAMS, self._buckets, dtype=np.int32)
            grams = self._grams_of[token] = nothing if text is None else grams_of(text, self._buckets)
        return grams
