"""Near hints: which experts the next MoE layer will want, told while this layer runs.

The tokens' hidden states change little from layer to layer, so what would choose the next layer's experts may be asked
now (2312.17238 "speculative loading"; 2502.12224). How far a choice can be believed is measured all the time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch

from ....ipc.messages import Hint

DEPTH_OF_TOP_K = 2
"""So many times top-k experts are named for each token: a near miss is often the next layer's choice."""
MAX_TOKENS = 64
"""More tokens want nearly everything: nothing to foresee."""
MEMORY_TOKENS = 2000.0
SILENT = -1
"""The number of a step that is not to be hinted at."""
FIRST_GUESS, FIRST_GUESS_TOKENS = 0.8, 4.0


class HintSource(Protocol):
    """Names the experts of the next layer."""

    def ranking(self, layer: int, hidden: torch.Tensor, depth: int) -> np.ndarray | None:
        """int64 [tokens, depth]: experts that tokens will choose in MoE layer `layer` + 1, the likeliest first.

        `hidden` [tokens, width] goes into MoE layer `layer`. None: it cannot tell.
        """
        ...


class Hinter:
    """Turn rankings into probabilities and send them to the loader.

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
        self._right = np.full((layers, self._depth), FIRST_GUESS * FIRST_GUESS_TOKENS)
        self._right[:, top_k:] /= 4
        self._seen = np.full((layers, 1), FIRST_GUESS_TOKENS)
        self._step = SILENT
        self._named: tuple[int, np.ndarray] | None = None
        """Layer and ranking of the last hint, until that layer tells what was right."""

    def begin_step(self, step: int) -> None:
        """What `look` shows belongs to this step (SILENT: tell nobody)."""
        self._step, self._named = step, None

    def is_silent(self, layer: int, tokens: int) -> bool:
        """Whether nothing is said about what comes after `layer`."""
        return self._step == SILENT or layer + 1 >= self._layers or tokens > MAX_TOKENS

    def observe(self, layer: int, routes: np.ndarray, hidden: torch.Tensor) -> None:
        """MoE layer `layer` has chosen `routes` [tokens, top-k] for `hidden` [tokens, width]."""
        if self._named is not None and self._named[0] == layer:
            self._learn(layer, self._named[1], routes)
        self._named = None
        if self.is_silent(layer, len(hidden)):
            return
        ranking = self._source.ranking(layer, hidden, self._depth)
        if ranking is not None:
            self._named = (layer + 1, ranking)
            self._send(Hint(self._step, layer + 1, self._scores(layer + 1, ranking)))

    def _learn(self, layer: int, ranking: np.ndarray, routes: np.ndarray) -> None:
        right = (ranking[:, :, None] == routes[:, None, :]).any(axis=2).sum(axis=0)
        fade = max(1 - len(ranking) / MEMORY_TOKENS, 0.0)
        self._right[layer] *= fade
        self._right[layer, : len(right)] += right
        self._seen[layer] = self._seen[layer] * fade + len(ranking)

    def _scores(self, layer: int, ranking: np.ndarray) -> bytes:
        """uint8 [experts]: the chance that any token wants the expert; tokens are taken as independent."""
        if self._uncalibrated:
            return (255 * np.isin(np.arange(self._experts), ranking)).astype(np.uint8).tobytes()
        rates = np.minimum(self._right[layer] / self._seen[layer], 0.999)[: ranking.shape[1]]
        each = np.broadcast_to(np.log1p(-rates), ranking.shape)
        unwanted = np.bincount(ranking.ravel(), weights=each.ravel(), minlength=self._experts)
        return np.rint(-np.expm1(unwanted) * 255).astype(np.uint8).tobytes()
