"""What the predictor remembers of running rows: bounded for each row, and in how many rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..base.forecaster import CHUNK_TOKENS
from ..base.lru import LruLines
from .features import RECENT_DECAYS, RECENT_PRIOR, without_tiny
from .history import NEVER, Recent, TokenHistory
from .shape import PathShape

MEMORY_BYTES = 64 << 20
NOWHERE = -1
"""Line of a row of which nothing is known, as `LruLines.find` has it."""


@dataclass(frozen=True)
class Seen:
    """Tokens that ran: as many of each of some rows."""

    first: np.ndarray
    """int64 [rows]: position of the first one."""
    tokens: np.ndarray
    """int64 [rows, tokens]"""
    hot: np.ndarray
    """float32 [rows, tokens, width]: 1 where a token went."""
    routes: np.ndarray
    """[rows, tokens, layers * top_k]: layer * experts + expert."""
    codes: np.ndarray
    """float32 [rows, tokens, code]"""
    keys: np.ndarray
    """float32 [rows, tokens, heads * key + key]"""
    values: np.ndarray
    """float32 [rows, tokens, code]"""


class Rows:
    """Histories of rows: the last `window` tokens in a ring, and decayed averages of all routing.

    Every row has a line in arrays of a fixed size; the row that was not heard of for longest makes room.
    """

    def __init__(self, shape: PathShape, popularity: np.ndarray, popularity_code: np.ndarray) -> None:
        self._popularity, self._popularity_code = popularity, popularity_code
        self._decays = np.array(RECENT_DECAYS, dtype=np.float32)
        self.capacity = count = max(MEMORY_BYTES // row_bytes(shape), CHUNK_TOKENS)
        self._lines = LruLines(count)
        ring, averages = (count, shape.window), (count, len(RECENT_DECAYS))
        self._end = np.zeros(count, dtype=np.int64)
        self._keys = np.zeros((*ring, (shape.heads + 1) * shape.key), dtype=np.float32)
        self._values = np.zeros((*ring, shape.code), dtype=np.float32)
        self._routes = np.zeros((*ring, shape.layers * shape.top_k), dtype=np.uint16)
        self._tokens = np.zeros(ring, dtype=np.int64)
        self._positions = np.full(ring, NEVER)
        self._weights = np.zeros(averages, dtype=np.float32)
        self._sums = np.zeros((*averages, shape.width), dtype=np.float32)
        self._code_sums = np.zeros((*averages, shape.code), dtype=np.float32)
        self._last = np.zeros((count, shape.width), dtype=np.float32)
        self._last_code = np.zeros((count, shape.code), dtype=np.float32)

    def line(self, row: int, position: int) -> int:
        """Where everything up to `position` is known of the row, else `NOWHERE`."""
        line = self._lines.find(row)
        return line if line != NOWHERE and self._end[line] == position else NOWHERE

    def open(self, row: int, position: int) -> int:
        """The line to extend at this position; an empty one if the row is new, begins anew or has a gap."""
        line, fresh = self._lines.open(row)
        if fresh or self._end[line] != position:
            self._clear(line)
        return line

    def _clear(self, line: int) -> None:
        self._positions[line] = NEVER
        for sums in (self._weights, self._sums, self._code_sums):
            sums[line] = 0

    def extend(self, lines: np.ndarray, seen: Seen) -> None:
        """Takes in tokens that follow what the lines hold; no line comes twice."""
        count, window = seen.tokens.shape[1], self._tokens.shape[1]
        kept = slice(max(count - window, 0), count)
        positions = (seen.first[:, None] + np.arange(count)[None, :])[:, kept]
        where = lines[:, None], positions % window
        self._positions[where] = positions
        for ring, new in (
            (self._keys, seen.keys), (self._values, seen.values),
            (self._routes, seen.routes), (self._tokens, seen.tokens),
        ):  # fmt: skip
            ring[where] = new[:, kept]
        self._last[lines], self._last_code[lines] = seen.hot[:, -1], seen.codes[:, -1]
        self._end[lines] = seen.first + count
        self._average(lines, seen.hot, seen.codes)

    def _average(self, lines: np.ndarray, hot: np.ndarray, codes: np.ndarray) -> None:
        count, added = hot.shape[1], np.ones(1, dtype=np.float32)
        if count > 1:
            shares = self._decays[:, None] ** np.arange(count - 1, -1, -1, dtype=np.float32)
            hot, codes, added = shares @ hot, shares @ codes, shares.sum(axis=1)
        kept = (self._decays**count)[None, :, None]
        self._weights[lines] = kept[..., 0] * self._weights[lines] + added
        self._sums[lines] = without_tiny(kept * self._sums[lines] + hot)
        self._code_sums[lines] = kept * self._code_sums[lines] + codes

    def past(self, lines: np.ndarray) -> TokenHistory:
        """The windows of these lines; `NOWHERE` has none. (`take` is twice as fast as indexing.)"""
        rings = (self._keys, self._values, self._routes, self._tokens)
        keys, values, routes, tokens = (ring.take(lines, axis=0, mode="clip") for ring in rings)
        positions = np.where((lines == NOWHERE)[:, None], NEVER, self._positions[lines])
        return TokenHistory(keys, values, routes, positions != NEVER, tokens, positions)

    def recent(self, lines: np.ndarray, begins: np.ndarray) -> Recent:
        """What the latest tokens say to the ones that come next; `begins` [n]: nothing came before them."""
        here = (lines != NOWHERE)[:, None].astype(np.float32)
        prior = np.float32(RECENT_PRIOR)
        weights = (self._weights[lines] * here + prior)[..., None]
        return Recent(
            previous=self._last[lines] * here,
            previous_code=self._last_code[lines] * here,
            averages=(self._sums[lines] * here[..., None] + prior * self._popularity) / weights,
            average_codes=(self._code_sums[lines] * here[..., None] + prior * self._popularity_code) / weights,
            known=np.maximum(here, begins[:, None]).astype(np.float32),
        )


def row_bytes(shape: PathShape) -> int:
    """Memory of one row, rounded up."""
    token = 4 * ((shape.heads + 1) * shape.key + shape.code) + 2 * shape.layers * shape.top_k + 16
    averages = 4 * (len(RECENT_DECAYS) + 1) * (shape.width + shape.code)
    return shape.window * token + averages + 1024
