"""Collects the routes of a step over all layers, and knows which positions are tokens."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ....ipc.messages import StepRouting
from ...model.step_input import StepTokens
from ...traces.routing import UNROUTED, lay_out, seen_layers
from .residency import FeedCounts
from .tracing import StepTrace

DeferredRoutes = Callable[[], np.ndarray]
"""Routes on their way from a device: calling it waits for the copy and returns them."""

_NO_TOKENS = StepTokens(None, [], [], [])


@dataclass(frozen=True)
class RowRoutes:
    """Experts of one row's positions from `start` on: uint16 [positions, layers, top-k]."""

    start: int
    experts: np.ndarray


class RoutingCollector:
    """Collects the routes of one step; pads are left out.

    The first `encoder_layers` of `layers` MoE layers see the tokens of prompts, the others those of the decoder.
    Without an encoder all layers see the same tokens.
    """

    def __init__(self, trace: StepTrace | None = None, layers: int = 0, encoder_layers: int = 0) -> None:
        self._trace, self._layers, self._encoder_layers = trace, layers, encoder_layers
        self._source = self._tokens = _NO_TOKENS
        self._source_indices: torch.Tensor | None = None
        self._indices: torch.Tensor | None = None
        self._routes: dict[int, np.ndarray | DeferredRoutes] = {}

    def begin(self, tokens: StepTokens, source: StepTokens | None = None) -> None:
        """Begin a forward over these tokens, and over the tokens of an encoder's input."""
        self._tokens, self._source = tokens, source or _NO_TOKENS
        self._indices, self._source_indices = _token_indices(self._tokens), _token_indices(self._source)
        self._routes.clear()
        if self._trace is not None:
            self._trace.begin(tokens)

    def tokens_of(self, layer: int) -> StepTokens:
        """Return the tokens that a MoE layer sees."""
        return self._source if layer < self._encoder_layers else self._tokens

    def token_indices(self, layer: int) -> torch.Tensor | None:
        """Return the indices of tokens among the positions of a layer, int64 [tokens]; None if there are no pads."""
        return self._source_indices if layer < self._encoder_layers else self._indices

    def add(self, layer: int, routes: np.ndarray | DeferredRoutes, hidden: torch.Tensor, weights: torch.Tensor) -> None:
        """Add the choice of one layer: routes and their weights [tokens, top-k], for `hidden` [tokens, width].

        In lockstep a layer may see fewer tokens than the forward began with; such a step has no routing and no trace.
        """
        self._routes[layer] = routes if callable(routes) else routes.astype("<u2")
        if self._trace is not None and len(hidden) >= len(self.tokens_of(layer).token_ids):
            self._trace.layer(layer, hidden, weights)

    def step_routing(self, step: int, counts: FeedCounts) -> StepRouting:
        """End the forward and return its routing."""
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

    def routes_of(self, rows: Collection[int]) -> dict[int, RowRoutes]:
        """Return the routes of these rows in the forward that has just run; for models without an encoder."""
        if not rows:
            return {}
        stacked, owners = self._stacked(), np.array(self._tokens.rows)
        positions = np.array(self._tokens.positions)
        return {row: RowRoutes(int(positions[owners == row][0]), stacked[owners == row]) for row in rows}

    def _stacked(self) -> np.ndarray:
        """Return uint16 [tokens, layers, top-k], tokens of prompts first; with an encoder no token sees all layers."""
        arrays = {layer: _read(self._routes[layer]).astype("<u2") for layer in sorted(self._routes)}
        filled = _widen(arrays)
        if not self._encoder_layers:
            return np.stack(list(filled.values()), axis=1)
        sources = len(self._source.token_ids)
        count = sources + len(self._tokens.token_ids)
        return lay_out(filled, seen_layers(count, sources, self._layers, self._encoder_layers), UNROUTED)


class RowWatch:
    """Collects the routes of rows that run as forwards of their own, in any number of forwards each."""

    def __init__(self, starts: Sequence[int]) -> None:
        """Watch forwards 0, 1, …, which begin at these positions of their rows."""
        self._starts = starts
        self._routes: dict[int, dict[int, list[np.ndarray]]] = {}

    def add(self, forward: int, layer: int, routes: torch.Tensor) -> None:
        """Add the routes [positions, top-k] of one layer."""
        layers = self._routes.setdefault(forward, {})
        layers.setdefault(layer, []).append(routes.numpy().astype("<u2"))

    def routes_of(self, forward: int) -> RowRoutes:
        """Return what a forward that has ended was routed to."""
        layers = sorted(self._routes[forward].items())
        filled = _widen({layer: np.concatenate(parts) for layer, parts in layers})
        return RowRoutes(self._starts[forward], np.stack(list(filled.values()), axis=1))


def _widen(arrays: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Return the routes of all layers with the top-k of the widest."""
    widest = max(routes.shape[1] for routes in arrays.values())
    return {layer: _repeat_first(routes, widest) for layer, routes in arrays.items()}


def _read(routes: np.ndarray | DeferredRoutes) -> np.ndarray:
    return routes() if callable(routes) else routes


def _repeat_first(routes: np.ndarray, top_k: int) -> np.ndarray:
    """Pad the routes of a layer with a smaller top-k: repeat its first expert, so that every number is an expert."""
    missing = top_k - routes.shape[1]
    return np.concatenate([routes, np.repeat(routes[:, :1], missing, axis=1)], axis=1) if missing else routes


def _token_indices(tokens: StepTokens) -> torch.Tensor | None:
    if tokens.real is None or tokens.indices is not None:
        return tokens.indices
    return tokens.real.nonzero().squeeze(-1)
