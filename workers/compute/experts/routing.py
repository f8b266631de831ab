"""What the experts layers and the step share: which positions are tokens, and the routes they took."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from ....ipc.messages import StepRouting
from ...model.step_input import StepTokens
from ...traces.routing import UNROUTED, lay_out, seen_layers
from .residency import FeedCounts
from .tracing import StepTrace

DeferredRoutes = Callable[[], np.ndarray]
"""What a device was asked for: the host waits for it when it is called."""

_NO_TOKENS = StepTokens(None, [], [], [])


class RoutingCollector:
    """Pads are left out everywhere.

    The first `encoder_layers` of `layers` MoE layers see the tokens of prompts, the others those of the decoder;
    without an encoder all see the same.
    """

    def __init__(self, trace: StepTrace | None = None, layers: int = 0, encoder_layers: int = 0) -> None:
        self._trace, self._layers, self._encoder_layers = trace, layers, encoder_layers
        self._source = self._tokens = _NO_TOKENS
        self._source_places: torch.Tensor | None = None
        self._places: torch.Tensor | None = None
        self._routes: dict[int, np.ndarray | DeferredRoutes] = {}

    def begin(self, tokens: StepTokens, source: StepTokens | None = None) -> None:
        """Start a forward over these tokens, and those of an encoder's input."""
        self._tokens, self._source = tokens, source or _NO_TOKENS
        self._places, self._source_places = _places(self._tokens), _places(self._source)
        self._routes.clear()
        if self._trace is not None:
            self._trace.begin(tokens)

    def tokens_of(self, layer: int) -> StepTokens:
        """The tokens that a MoE layer sees."""
        return self._source if layer < self._encoder_layers else self._tokens

    def places(self, layer: int) -> torch.Tensor | None:
        """The places of the tokens among all positions that a layer sees, None if there are no pads."""
        return self._source_places if layer < self._encoder_layers else self._places

    def add(self, layer: int, routes: np.ndarray | DeferredRoutes, hidden: torch.Tensor, weights: torch.Tensor) -> None:
        """What one layer chose: experts and their weights [tokens, top-k], for `hidden` [tokens, width]."""
        self._routes[layer] = routes if callable(routes) else routes.astype("<u2")
        if self._trace is not None:
            self._trace.layer(layer, hidden, weights)

    def used(self, step: int, counts: FeedCounts) -> StepRouting:
        """The routing of the forward that just ran."""
        if self._trace is not None:
            self._trace.end()
        routes = self._stacked()
        return StepRouting(
            step=step,
            token_ids=self._source.token_ids + self._tokens.token_ids,
            rows=self._source.rows + self._tokens.rows,
            positions=self._source.positions + self._tokens.positions,
            top_k=routes.shape[2],
            experts=routes.tobytes(),
            hits=counts.hits,
            misses=counts.misses,
            stall_ns=counts.stall_ns,
            sources=len(self._source.token_ids),
        )

    def _stacked(self) -> np.ndarray:
        """[tokens, layers, top-k], those of prompts first; with an encoder no token sees all layers."""
        known = {layer: _known(self._routes[layer]).astype("<u2") for layer in sorted(self._routes)}
        widest = max(routes.shape[1] for routes in known.values())
        filled = {layer: _repeat_first(routes, widest) for layer, routes in known.items()}
        if not self._encoder_layers:
            return np.stack(list(filled.values()), axis=1)
        sources = len(self._source.token_ids)
        count = sources + len(self._tokens.token_ids)
        return lay_out(filled, seen_layers(count, sources, self._layers, self._encoder_layers), UNROUTED)


def _known(routes: np.ndarray | DeferredRoutes) -> np.ndarray:
    return routes() if callable(routes) else routes


def _repeat_first(routes: np.ndarray, top_k: int) -> np.ndarray:
    """[tokens, top-k] of a layer that takes fewer than others: the same experts, and no number that is none."""
    missing = top_k - routes.shape[1]
    return np.concatenate([routes, np.repeat(routes[:, :1], missing, axis=1)], axis=1) if missing else routes


def _places(tokens: StepTokens) -> torch.Tensor | None:
    if tokens.real is None or tokens.places is not None:
        return tokens.places
    return tokens.real.nonzero().squeeze(-1)
