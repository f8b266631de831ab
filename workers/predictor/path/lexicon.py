"""Knowledge about single tokens: the trained token table, which goes on counting, and n-grams of their spelling."""

from __future__ import annotations

from zlib import crc32

import numpy as np

from ..base.token_table import MAX_COUNTED
from ..base.vocabulary import Spelling
from .file import TokenCounts

GROWTH_BYTES = 16 << 20
"""Room for tokens that were not in training; the one that was added first makes room."""
NO_LINE = -1
MAX_GRAMS = 24
SPACES = "Ġ▁ "
"""Characters by which tokenizers mark the beginning of a word."""


class Lexicon:
    """Table lines and n-grams of token ids, looked up once for each id.

    Counting goes on while the model runs, but not for tokens that training saw `MAX_COUNTED` times or more. On traces
    that raised recall, most in a domain that was not trained on (docs/prediction.md).
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
        self._added: list[int] = []
        """Token ids in the lines behind the trained ones."""
        self._oldest = 0

    def look_up(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return uint8 counts [n, width] and sightings [n], and n-grams int32 [n, MAX_GRAMS] if the network has any."""
        lines = np.array([self._line(token) for token in ids.tolist()], dtype=np.int64)
        grams = np.stack([self._grams(token) for token in ids.tolist()]) if self._buckets and len(ids) else None
        found = lines != NO_LINE
        return self._counts[lines] * found[:, None], self._seen[lines] * found, grams

    def count(self, ids: np.ndarray, multi_hot: np.ndarray) -> None:
        """Count tokens that used the experts where `multi_hot` [n, width] is 1.

        Counts are halved where a byte would overflow, so that old sightings fade.
        """
        for token, used in zip(ids.tolist(), multi_hot.astype(np.uint8), strict=True):
            line = self._line(token)
            line = self._add_line(token) if line == NO_LINE else line
            if line < self._trained and self._settled[line]:
                continue
            if self._seen[line] == MAX_COUNTED:
                self._counts[line] >>= 1
                self._seen[line] >>= 1
            self._counts[line] += used
            self._seen[line] += 1

    def _line(self, token: int) -> int:
        line = self._line_of.get(token)
        if line is None:
            name = self._spelling(token) if self._named and self._spelling else token
            line = self._line_of[token] = self._trained_line.get(name, NO_LINE)
        return line

    def _add_line(self, token: int) -> int:
        if self._trained + len(self._added) < len(self._seen):
            self._added.append(token)
            index = len(self._added) - 1
        else:
            index, self._oldest = self._oldest, (self._oldest + 1) % len(self._added)
            self._line_of[self._added[index]] = NO_LINE
            self._added[index] = token
        line = self._line_of[token] = self._trained + index
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


def grams_of(text: str, buckets: int) -> np.ndarray:
    """Return int32 [MAX_GRAMS]: hash buckets of the n-grams of a token's string, filled up with `buckets`."""
    hashed = [crc32(piece.encode()) % buckets for piece in _pieces(text)[:MAX_GRAMS]]
    return np.array(hashed + [buckets] * (MAX_GRAMS - len(hashed)), dtype=np.int32)


def _pieces(text: str) -> list[str]:
    """Return the word in lower case, its shape, a mark if it begins a word, and its runs of 2 to 4 characters."""
    bare = text.strip(SPACES)
    edged = f"<{bare.lower()}>"
    runs = [edged[start : start + size] for size in (2, 3, 4) for start in range(len(edged) - size + 1)]
    return [f"word {bare.lower()}", f"shape {_shape(bare)}", f"begins {text[:1] in SPACES}", *runs]


def _shape(text: str) -> str:
    return "".join(
        "9" if sign.isdigit() else "X" if sign.isupper() else "x" if sign.islower() else sign for sign in text[:4]
    )
