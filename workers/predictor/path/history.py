"""The past that a prediction looks at: the remembered tokens of each row, and averages of their routing.

Arrays begin with [rows, tokens]: many rows with one token each in decode, one row with many tokens in a prefill.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from ..base.forecaster import CHUNK_TOKENS
from ..base.lru import LruLines
from .features import RECENT_DECAYS, RECENT_PRIOR, clear_tiny
from .file import PathShape

MEMORY_BYTES = 64 << 20
NOWHERE = -1
"""Line of a row without a history, as `LruLines.find` returns it."""
NEVER = np.int64(1) << 40
"""Position of an empty entry: later than all others, so that no token looks at it."""


@dataclass(frozen=True)
class TokenHistory:
    """Earlier tokens of some rows, in no order."""

    keys: np.ndarray
    """float32 [rows, past, heads * key + key]: to attend to, and to copy from."""
    values: np.ndarray
    """float32 [rows, past, code]"""
    routes: np.ndarray
    """uint16 [rows, past, layers * top_k]: layer * experts + expert; without meaning where `has_routing` is False."""
    has_routing: np.ndarray
    """bool [rows, past]: the routing of the token is known."""
    tokens: np.ndarray
    """int64 [rows, past]: token ids."""
    positions: np.ndarray
    """int64 [rows, past]; `NEVER` in an empty entry."""

    def since(self, first: int) -> TokenHistory:
        """Return only the tokens of a single row at position `first` or later, and its empty entries."""
        inside = self.positions[0] >= first
        return TokenHistory(*(getattr(self, field.name)[:, inside] for field in fields(self)))

    def followed_by(self, other: TokenHistory) -> TokenHistory:
        """Return the tokens of both, for the same rows."""
        names = [field.name for field in fields(self)]
        return TokenHistory(*(np.concatenate([getattr(self, name), getattr(other, name)], axis=1) for name in names))


@dataclass(frozen=True)
class RecentRouting:
    """Routing of the tokens just before each of N tokens."""

    previous: np.ndarray
    """float32 [N, width]: 1 for the experts of the token before, 0 elsewhere and where its routing is unknown."""
    previous_code: np.ndarray
    """float32 [N, code]"""
    averages: np.ndarray
    """float32 [N, RECENT_DECAYS, width]: averages of the earlier routing; popularity where it is unknown."""
    average_codes: np.ndarray
    """float32 [N, RECENT_DECAYS, code]"""
    has_previous: np.ndarray
    """float32 [N, 1]: 1 if the routing of the token before is known, or no token came before."""

    def followed_by(self, other: RecentRouting) -> RecentRouting:
        """Return the N tokens of this one and then those of the other."""
        names = [field.name for field in fields(self)]
        return RecentRouting(*(np.concatenate([getattr(self, name), getattr(other, name)]) for name in names))


@dataclass(frozen=True)
class RequestedTokens:
    """Tokens to predict, and the past that the tokens of each row look at."""

    tokens: np.ndarray
    """int64 [rows, tokens]"""
    positions: np.ndarray
    """int64 [rows, tokens]"""
    past: TokenHistory

    def distances(self) -> np.ndarray:
        """Return int64 [rows, tokens, past]: how many tokens back each earlier token is."""
        return self.positions[:, :, None] - self.past.positions[:, None, :]

    def same_token(self) -> np.ndarray:
        """Return bool [rows, tokens, past]: the token ids are equal."""
        return self.tokens[:, :, None] == self.past.tokens[:, None, :]


@dataclass(frozen=True)
class RoutedTokens:
    """Tokens that ran, the same number for each of some rows."""

    first: np.ndarray
    """int64 [rows]: position of the first token."""
    tokens: np.ndarray
    """int64 [rows, tokens]"""
    multi_hot: np.ndarray
    """float32 [rows, tokens, width]: 1 for the experts that the token used."""
    routes: np.ndarray
    """[rows, tokens, layers * top_k]: layer * experts + expert."""
    codes: np.ndarray
    """float32 [rows, tokens, code]"""
    keys: np.ndarray
    """float32 [rows, tokens, heads * key + key]"""
    values: np.ndarray
    """float32 [rows, tokens, code]"""


class RowHistories:
    """Histories of rows: the last `window` tokens in a ring, and decayed averages of all routing.

    Every row has a line in arrays of a fixed size; the least recently extended row makes room.
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
        """Return the line of a row whose history ends just before `position`, else `NOWHERE`."""
        line = self._lines.find(row)
        return line if line != NOWHERE and self._end[line] == position else NOWHERE

    def open(self, row: int, position: int) -> int:
        """Return the line to extend at this position; an empty one if the row is new, begins anew or has a gap."""
        line, fresh = self._lines.open(row)
        if fresh or self._end[line] != position:
            self._clear(line)
        return line

    def _clear(self, line: int) -> None:
        self._positions[line] = NEVER
        for sums in (self._weights, self._sums, self._code_sums):
            sums[line] = 0

    def extend(self, lines: np.ndarray, routed: RoutedTokens) -> None:
        """Add the tokens that follow the history of `lines` [rows]; no line may come twice."""
        count, window = routed.tokens.shape[1], self._tokens.shape[1]
        kept = slice(max(count - window, 0), count)
        positions = (routed.first[:, None] + np.arange(count)[None, :])[:, kept]
        where = lines[:, None], positions % window
        self._positions[where] = positions
        for ring, new in (
            (self._keys, routed.keys), (self._values, routed.values),
            (self._routes, routed.routes), (self._tokens, routed.tokens),
        ):  # fmt: skip
            ring[where] = new[:, kept]
        self._last[lines], self._last_code[lines] = routed.multi_hot[:, -1], routed.codes[:, -1]
        self._end[lines] = routed.first + count
        self._average(lines, routed.multi_hot, routed.codes)

    def _average(self, lines: np.ndarray, multi_hot: np.ndarray, codes: np.ndarray) -> None:
        count, added = multi_hot.shape[1], np.ones(1, dtype=np.float32)
        if count > 1:
            shares = self._decays[:, None] ** np.arange(count - 1, -1, -1, dtype=np.float32)
            multi_hot, codes, added = shares @ multi_hot, shares @ codes, shares.sum(axis=1)
        kept = (self._decays**count)[None, :, None]
        self._weights[lines] = kept[..., 0] * self._weights[lines] + added
        self._sums[lines] = clear_tiny(kept * self._sums[lines] + multi_hot)
        self._code_sums[lines] = kept * self._code_sums[lines] + codes

    def past(self, lines: np.ndarray) -> TokenHistory:
        """Return the windows of `lines` [n], empty for `NOWHERE`. (`take` is twice as fast as indexing.)"""
        rings = (self._keys, self._values, self._routes, self._tokens)
        keys, values, routes, tokens = (ring.take(lines, axis=0, mode="clip") for ring in rings)
        positions = np.where((lines == NOWHERE)[:, None], NEVER, self._positions[lines])
        return TokenHistory(keys, values, routes, positions != NEVER, tokens, positions)

    def recent(self, lines: np.ndarray, begins: np.ndarray) -> RecentRouting:
        """Return the recent routing before the next token of `lines` [n]; `begins` [n]: no token came before it."""
        found = (lines != NOWHERE)[:, None].astype(np.float32)
        prior = np.float32(RECENT_PRIOR)
        weights = (self._weights[lines] * found + prior)[..., None]
        return RecentRouting(
            previous=self._last[lines] * found,
            previous_code=self._last_code[lines] * found,
            averages=(self._sums[lines] * found[..., None] + prior * self._popularity) / weights,
            average_codes=(self._code_sums[lines] * found[..., None] + prior * self._popularity_code) / weights,
            has_previous=np.maximum(found, begins[:, None]).astype(np.float32),
        )


def row_bytes(shape: PathShape) -> int:
    """Return the memory of one row, rounded up."""
    token = 4 * ((shape.heads + 1) * shape.key + shape.code) + 2 * shape.layers * shape.top_k + 16
    averages = 4 * (len(RECENT_DECAYS) + 1) * (shape.width + shape.code)
    return shape.window * token + averages + 1024
