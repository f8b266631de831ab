"""Emulated next-layer hints of given quality, drawn by a seeded generator; wrong hints are likely experts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ...errors import UsageError
from ...workers.predictor.base.token_table import count_tokens, smooth
from ...workers.traces.trace import Trace
from .steps import Uses

CHUNK_TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Quality of the hints for one token and layer."""

    recall: float
    """Share of the experts used that are hinted."""
    precision: float
    """Share of the hinted experts that are used."""

    def __post_init__(self) -> None:
        for name in ("recall", "precision"):
            if not 0 < getattr(self, name) <= 1:
                what = f"must be above 0 and at most 1, not {getattr(self, name)}"
                raise UsageError(what, f"hints ({name})", "Give shares such as 0.85,0.85")


class EmulatedHints:
    """Emulated hints of every step, over all its tokens.

    Every expert that a token uses is hinted with probability `recall`. As many others are hinted as give the precision
    on average. They are drawn without replacement, by P(expert | token id) over the whole trace.
    """

    def __init__(self, trace: Trace, steps: np.ndarray, quality: Quality, seed: int = 0) -> None:
        self._trace, self._quality = trace, quality
        self._random = np.random.default_rng(seed)
        self._token_shares, self._line_of_token = _token_shares(trace)
        self._width = trace.layers * trace.expert_count
        self._packed = np.zeros((int(steps.max()) + 1, -(-self._width // 8)), dtype=np.uint8)
        for start in range(0, trace.tokens, CHUNK_TOKENS):
            tokens = slice(start, start + CHUNK_TOKENS)
            hinted = self._draw(tokens).reshape(-1, self._width)
            np.bitwise_or.at(self._packed, steps[tokens], np.packbits(hinted, axis=1))

    def of(self, step: int) -> np.ndarray:
        """Return int64 [n]: the hinted keys of a step, ascending."""
        return np.flatnonzero(np.unpackbits(self._packed[step], count=self._width))

    def scores(self, step: int, layer: int) -> bytes:
        """Return uint8 [experts], as a `Hint` carries them."""
        hinted = np.unpackbits(self._packed[step], count=self._width).reshape(self._trace.layers, -1)
        return (hinted[layer] * np.uint8(255)).tobytes()

    def measure(self, uses: Uses) -> Quality:
        """Return the recall and precision that were drawn, over the unions of whole steps."""
        right = used = hinted = 0
        for step in range(uses.steps):
            keys, hints = uses.of(step), self.of(step)
            right += len(np.intersect1d(keys, hints, assume_unique=True))
            used, hinted = used + len(keys), hinted + len(hints)
        return Quality(recall=right / used, precision=right / hinted)

    def _draw(self, tokens: slice) -> np.ndarray:
        """Return bool [tokens, layers, experts]: the hints of these tokens."""
        routes = self._trace.routes[tokens].astype(np.int64)
        likely = self._token_shares[self._line_of_token[tokens]].reshape(*routes.shape[:2], -1)
        np.put_along_axis(likely, routes, 0.0, axis=2)
        hinted = self._draw_wrong(likely)
        recalled = self._random.random(routes.shape) < self._quality.recall
        np.put_along_axis(hinted, routes, recalled, axis=2)
        return hinted

    def _draw_wrong(self, likely: np.ndarray) -> np.ndarray:
        """Draw without replacement, which is ranking by log p + Gumbel noise; return bool as `likely`."""
        quality = self._quality
        mean = self._trace.top_k * quality.recall * (1 - quality.precision) / quality.precision
        counts = np.floor(mean + self._random.random(likely.shape[:2])).astype(np.int64)
        with np.errstate(divide="ignore"):
            noisy = np.log(likely) + self._random.gumbel(size=likely.shape)
        ranks = np.argsort(np.argsort(-noisy, axis=2), axis=2)
        return (ranks < counts[:, :, None]) & (likely > 0)


def _token_shares(trace: Trace) -> tuple[np.ndarray, np.ndarray]:
    """Return P(expert | token id) by the whole trace, float64 [lines, layers * experts], and each token's line."""
    _, line_of_token = np.unique(trace.token_ids, return_inverse=True)
    counts, seen = count_tokens(replace(trace, token_ids=line_of_token))
    return smooth(counts, seen[:, None], counts.sum(axis=0) / trace.tokens), line_of_token
