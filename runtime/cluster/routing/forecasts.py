"""Forecast of the experts that a prompt will use, learned online from routing that really happened. Pure.

A token is mostly routed to the same experts, whatever stands around it. So for each token the mean of the experts that
it used is kept, and a prompt's forecast is the mean over its tokens. A label, if a client gives one, decides instead:
the mean over the requests that had it. Old requests fade, so that a shift is followed.

Experts are counted in `FEATURES` columns. A model with more experts shares columns between them (count sketch, Charikar
et al. 2002): with signs drawn at random, products of forecasts keep their expected value.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

FEATURES = 256
MAX_TOKENS = 32_768
"""Token ids that are remembered; the one that was not seen for longest is forgotten first."""
MAX_LABELS = 256
FADE = 0.998
"""Factor on the weight of everything learned, for each request: half is forgotten after about 350."""
FADE_EVERY = 64
PRIOR = 1.0
"""Times that each token counts as seen with the mean of all tokens."""
_SIGNS_SEED = 0


class Forecasts:
    """Mean experts of each token and of each label."""

    def __init__(self, expert_count: int) -> None:
        """Begin without knowledge; `expert_count` is that of all layers together."""
        self.experts = expert_count
        self.learned = 0
        """Number of requests that were learned from."""
        self._columns, self._signs = _sketch(expert_count)
        self._sums = np.zeros((MAX_TOKENS, FEATURES), dtype=np.float32)
        self._counts = np.zeros(MAX_TOKENS, dtype=np.float32)
        self._row_of: OrderedDict[int, int] = OrderedDict()
        self._all = _Mean()
        self._labels: OrderedDict[str, _Mean] = OrderedDict()

    @property
    def mean(self) -> np.ndarray:
        """Return float32 [FEATURES], the mean uses of all tokens, which forecasts are less."""
        return self._all.value

    def features(self, uses: np.ndarray) -> np.ndarray:
        """Return float32 [FEATURES] of `uses`, float [experts], how often each was used."""
        return np.bincount(self._columns, uses * self._signs, FEATURES).astype(np.float32)

    def learn(self, token_ids: Sequence[int], keys: np.ndarray, label: str = "") -> None:
        """Learn from a request that has ended.

        `keys` is int64 [positions, uses], the experts of each token, by layer * experts + expert; negative: none.
        """
        positions = min(len(token_ids), len(keys))
        used = self._shares(keys[:positions])
        self._fade()
        rows = np.array([self._row(token) for token in token_ids[:positions]], dtype=np.int64)
        np.add.at(self._sums, rows, used)
        np.add.at(self._counts, rows, 1)
        for mean in (self._all, *self._label(label)):
            mean.add(used.sum(axis=0), positions)
        self.learned += 1

    def forecast(self, prompt_ids: Sequence[int], label: str = "") -> np.ndarray:
        """Return float32 [FEATURES], expected uses of a prompt's request less those of all; 0 before learning."""
        if label in self._labels:
            return self._labels[label].value - self.mean
        tokens = set(prompt_ids)
        rows = [row for row in map(self._row_of.get, tokens) if row is not None]
        if not rows:
            return np.zeros(FEATURES, dtype=np.float32)
        counts = self._counts[rows, None]
        return ((self._sums[rows] - counts * self.mean) / (counts + PRIOR)).sum(axis=0) / len(tokens)

    def _shares(self, keys: np.ndarray) -> np.ndarray:
        """Return float32 [positions, FEATURES] of the uses of each position, which sum to 1 before the sketch."""
        place, column = np.nonzero(keys >= 0)
        used = keys[place, column]
        each = self._signs[used] / np.bincount(place, minlength=len(keys))[place]
        flat = np.bincount(place * FEATURES + self._columns[used], each, len(keys) * FEATURES)
        return flat.reshape(len(keys), FEATURES).astype(np.float32)

    def _fade(self) -> None:
        if self.learned % FADE_EVERY == FADE_EVERY - 1:
            self._sums *= FADE**FADE_EVERY
            self._counts *= FADE**FADE_EVERY
            for mean in (self._all, *self._labels.values()):
                mean.fade(FADE**FADE_EVERY)

    def _row(self, token: int) -> int:
        row = self._row_of.pop(token, None)
        if row is None:
            row = len(self._row_of)
            if row >= MAX_TOKENS:
                _, row = self._row_of.popitem(last=False)
                self._sums[row] = self._counts[row] = 0
        self._row_of[token] = row
        return row

    def _label(self, label: str) -> list[_Mean]:
        """Return the mean of a label as the one that was seen last; empty without a label."""
        if not label:
            return []
        mean = self._labels.pop(label, None) or _Mean()
        self._labels[label] = mean
        if len(self._labels) > MAX_LABELS:
            self._labels.popitem(last=False)
        return [mean]


class _Mean:
    """Weighted mean of vectors, float32 [FEATURES]."""

    def __init__(self) -> None:
        self._sum, self._weight = np.zeros(FEATURES), 0.0

    @property
    def value(self) -> np.ndarray:
        return (self._sum / max(self._weight, 1e-12)).astype(np.float32)

    def add(self, total: np.ndarray, weight: float) -> None:
        self._sum += total
        self._weight += weight

    def fade(self, factor: float) -> None:
        self._sum *= factor
        self._weight *= factor


def _sketch(expert_count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the column, int64 [experts], and the sign, float64 [experts], of each; of its own where there is room."""
    if expert_count <= FEATURES:
        return np.arange(expert_count), np.ones(expert_count)
    rng = np.random.default_rng(_SIGNS_SEED)  # the same in every process
    return rng.integers(FEATURES, size=expert_count), rng.choice([-1.0, 1.0], size=expert_count)
