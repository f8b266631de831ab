"""Hints: while a MoE layer runs, tell the loader which experts the next MoE layer will probably choose.

Hidden states change little from layer to layer, so a source can predict the next layer's experts from them (2312.17238
"speculative loading"; 2502.12224). Scores are calibrated online: they follow the measured accuracy of past rankings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch

from ....ipc.messages import Hint

DEPTH_OF_TOP_K = 2
"""A ranking names this many times top-k experts a token: a near miss is often the next layer's choice."""
MAX_TOKENS = 64
"""With more tokens the next layer uses nearly every expert, and a hint says nothing."""
MEMORY_TOKENS = 2000.0
"""Tokens after which a measurement counts for 1/e."""
SILENT = -1
"""Step number for which no hints are sent."""
PRIOR_ACCURACY, PRIOR_TOKENS = 0.8, 4.0
"""Accuracy assumed at the start for the first top-k ranks (a quarter of it for others), and its weight in tokens."""


class HintSource(Protocol):
    """Predicts the experts of the next layer."""

    def ranking(self, layer: int, hidden: torch.Tensor, depth: int) -> np.ndarray | None:
        """Rank the experts that tokens will choose in MoE layer `layer` + 1, likeliest first: int64 [tokens, depth].

        `hidden` [tokens, width] is the input of MoE layer `layer`. Returns None if the source cannot tell.
        """
        ...


class Hinter:
    """Turns rankings into probabilities and sends them to the loader.

    With `uncalibrated` the first top-k are certain and others impossible.
    """

    def __init__(
        self,
        source: HintSource,
        layers: int,
        experts: int,
        top_k: int,
        send: Callable[[Hint], None],
        uncalibrated: bool = False,
    ) -> None:
        self._source, self._send = source, send
        self._layers, self._experts = layers, experts
        self._uncalibrated = uncalibrated
        self._depth = top_k if uncalibrated else min(DEPTH_OF_TOP_K * top_k, experts)
        self._correct = np.full((layers, self._depth), PRIOR_ACCURACY * PRIOR_TOKENS)
        """float64 [layers, depth]: tokens for which the expert at this rank was chosen, with fading memory."""
        self._correct[:, top_k:] /= 4
        self._tokens = np.full((layers, 1), PRIOR_TOKENS)
        """float64 [layers, 1]: tokens that were ranked, with fading memory."""
        self._step = SILENT
        self._pending: tuple[int, np.ndarray] | None = None
        """Layer and ranking of the last hint, until that layer's routes are known."""

    def begin_step(self, step: int) -> None:
        """Send the hints of the next `observe` calls for this step; SILENT: send none."""
        self._step, self._pending = step, None

    def is_silent(self, layer: int, tokens: int) -> bool:
        """Return whether no hint follows `layer`."""
        return self._step == SILENT or layer + 1 >= self._layers or tokens > MAX_TOKENS

    def observe(self, layer: int, routes: np.ndarray, hidden: torch.Tensor) -> None:
        """Learn from the routes of a MoE layer, int [tokens, top-k], and send a hint for the next layer.

        `hidden` [tokens, width] is the layer's input. A row that fails in lockstep leaves fewer than were ranked.
        """
        if self._pending is not None and self._pending[0] == layer and len(self._pending[1]) == len(routes):
            self._learn(layer, self._pending[1], routes)
        self._pending = None
        if self.is_silent(layer, len(hidden)):
            return
        ranking = self._source.ranking(layer, hidden, self._depth)
        if ranking is not None:
            self._pending = (layer + 1, ranking)
            self._send(Hint(self._step, layer + 1, self._scores(layer + 1, ranking)))

    def _learn(self, layer: int, ranking: np.ndarray, routes: np.ndarray) -> None:
        correct = (ranking[:, :, None] == routes[:, None, :]).any(axis=2).sum(axis=0)
        fade = max(1 - len(ranking) / MEMORY_TOKENS, 0.0)
        self._correct[layer] *= fade
        self._correct[layer, : len(correct)] += correct
        self._tokens[layer] = self._tokens[layer] * fade + len(ranking)

    def _scores(self, layer: int, ranking: np.ndarray) -> bytes:
        """Return the probability that any token uses each expert, uint8 [experts], 255 is 1; tokens are independent."""
        if self._uncalibrated:
            return (255 * np.isin(np.arange(self._experts), ranking)).astype(np.uint8).tobytes()
        rates = np.minimum(self._correct[layer] / self._tokens[layer], 0.999)[: ranking.shape[1]]
        log_misses = np.broadcast_to(np.log1p(-rates), ranking.shape)
        log_unused = np.bincount(ranking.ravel(), weights=log_misses.ravel(), minlength=self._experts)
        return np.rint(-np.expm1(log_unused) * 255).astype(np.uint8).tobytes()
