"""What the predictor remembers of running sequences: bounded for each row, and in how many rows."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from .mixing import RECENT_DECAYS, RECENT_PRIOR
from .past import Past, Recent
from .shape import PathShape

MEMORY_BYTES = 64 << 20


class RowHistory:
    """The last `window` tokens of one row, in a ring, and decayed averages of all its routing."""

    def __init__(self, shape: PathShape, popularity: np.ndarray, popularity_code: np.ndarray) -> None:
        window = shape.window
        self.end = 0
        """Position after the last token that is known."""
        self._filled = 0
        self._keys = np.empty((window, (shape.heads + 1) * shape.key), dtype=np.float32)
        self._values = np.empty((window, shape.code), dtype=np.float32)
        self._routes = np.empty((window, shape.layers * shape.top_k), dtype=np.uint16)
        self._tokens = np.empty(window, dtype=np.int64)
        self._positions = np.empty(window, dtype=np.int64)
        self._decays = np.array(RECENT_DECAYS, dtype=np.float32)
        self._weight = np.zeros(len(self._decays), dtype=np.float32)
        self._sums = np.zeros((len(self._decays), shape.width), dtype=np.float32)
        self._code_sums = np.zeros((len(self._decays), shape.code), dtype=np.float32)
        self._popularity, self._popularity_code = popularity, popularity_code
        self._last = np.zeros(shape.width, dtype=np.float32)
        self._last_code = np.zeros(shape.code, dtype=np.float32)

    def extend(
        self, first: int, tokens: np.ndarray, hot: np.ndarray, routes: np.ndarray, codes: np.ndarray,
        keys: np.ndarray, values: np.ndarray,
    ) -> None:  # fmt: skip
        """Takes in tokens at positions first, first + 1, … with their routing (`hot` [n, width], `routes` places)."""
        count = len(tokens)
        kept = slice(max(count - len(self._tokens), 0), count)
        positions = np.arange(first, first + count)[kept]
        lines = positions % len(self._tokens)
        self._keys[lines], self._values[lines] = keys[kept], values[kept]
        self._routes[lines], self._tokens[lines], self._positions[lines] = routes[kept], tokens[kept], positions
        self._filled = min(self._filled + len(positions), len(self._tokens))
        self._average(hot, codes)
        self._last, self._last_code = hot[-1], codes[-1]
        self.end = first + count

    def _average(self, hot: np.ndarray, codes: np.ndarray) -> None:
        ages = np.arange(len(hot) - 1, -1, -1)
        weights = self._decays[:, None] ** ages[None, :]
        kept = self._decays ** len(hot)
        self._weight = kept * self._weight + weights.sum(axis=1)
        self._sums = kept[:, None] * self._sums + weights @ hot
        self._code_sums = kept[:, None] * self._code_sums + weights @ codes

    def past(self) -> Past:
        """The tokens of the window, in no order."""
        lines = slice(0, self._filled)
        known = np.ones(self._filled, dtype=bool)
        return Past(
            self._keys[lines],
            self._values[lines],
            self._routes[lines],
            known,
            self._tokens[lines],
            self._positions[lines],
        )

    def recent(self) -> Recent:
        """What the latest tokens say to the one that comes next."""
        prior, weight = np.float32(RECENT_PRIOR), (self._weight + np.float32(RECENT_PRIOR))[:, None]
        return Recent(
            previous=self._last[None],
            previous_code=self._last_code[None],
            averages=((self._sums + prior * self._popularity) / weight)[None],
            average_codes=((self._code_sums + prior * self._popularity_code) / weight)[None],
            known=np.ones((1, 1), dtype=np.float32),
        )


class Rows:
    """Histories by row number; the row that was not heard of for longest makes room."""

    def __init__(self, shape: PathShape, popularity: np.ndarray, popularity_code: np.ndarray) -> None:
        self._shape, self._popularity, self._popularity_code = shape, popularity, popularity_code
        self._rows: OrderedDict[int, RowHistory] = OrderedDict()
        self.capacity = max(MEMORY_BYTES // row_bytes(shape), 1)

    def before(self, row: int, position: int) -> RowHistory | None:
        """What is known of the row up to this position; None if that is not the whole of it since it began here."""
        history = self._rows.get(row)
        return history if history is not None and history.end == position else None

    def continued(self, row: int, position: int) -> RowHistory:
        """The history to extend at this position: a new one if the row is new, begins anew or has a gap."""
        history = self.before(row, position) or self.fresh()
        self._rows[row] = history
        self._rows.move_to_end(row)
        while len(self._rows) > self.capacity:
            self._rows.popitem(last=False)
        return history

    def fresh(self) -> RowHistory:
        return RowHistory(self._shape, self._popularity, self._popularity_code)


def row_bytes(shape: PathShape) -> int:
    """Memory of one history, rounded up."""
    token = 4 * ((shape.heads + 1) * shape.key + shape.code) + 2 * shape.layers * shape.top_k + 16
    averages = 4 * (len(RECENT_DECAYS) + 1) * (shape.width + shape.code)
    return shape.window * token + averages + 1024
