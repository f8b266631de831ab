"""Safe reader of the routing in a `StepRouting` message, and helpers for arrays of routing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...ipc.messages import StepRouting

UNROUTED = 0xFFFF
"""Stands for an expert's number where a token does not see a layer: a prompt sees no layer of a decoder."""


def read_routing(routing: StepRouting, layers: int, experts: int) -> np.ndarray | None:
    """Return uint16 [tokens, layers, top_k], expert numbers, a view of the message; None if sizes or numbers misfit."""
    routes = read_partial_routing(routing, layers, experts)
    return None if routes is None or (routes == UNROUTED).any() else routes


def read_partial_routing(routing: StepRouting, layers: int, experts: int) -> np.ndarray | None:
    """Return uint16 [tokens, layers, top_k] as `read_routing`; UNROUTED where a token does not see a layer."""
    tokens = len(routing.token_ids)
    if routing.top_k < 1 or len(routing.experts) != 2 * tokens * layers * routing.top_k:
        return None
    routes = np.frombuffer(routing.experts, dtype="<u2").reshape(tokens, layers, routing.top_k)
    return routes if ((routes < experts) | (routes == UNROUTED)).all() else None


def used_keys(routes: np.ndarray, experts: int) -> np.ndarray:
    """Return int64: the distinct keys (layer * experts + expert) in `routes` [tokens, layers, top_k], ascending.

    Ascending keys are in the order in which the layers ran.
    """
    layers = routes.shape[1]
    mask = np.zeros(layers * experts, dtype=bool)
    keys = routes + (np.arange(layers) * experts)[None, :, None]
    mask[keys[routes != UNROUTED]] = True
    return np.flatnonzero(mask)


def seen_layers(tokens: int, sources: int, layers: int, encoder_layers: int) -> np.ndarray:
    """Return bool [tokens, layers]: which layers each token sees.

    The first `sources` tokens see the encoder's layers, the others those behind it. Without an encoder all see all.
    """
    if not encoder_layers:
        return np.ones((tokens, layers), dtype=bool)
    is_source = (np.arange(tokens) < sources)[:, None]
    return is_source == (np.arange(layers) < encoder_layers)


def lay_out(by_layer: Mapping[int, np.ndarray], seen: np.ndarray, missing: int) -> np.ndarray:
    """Return [tokens, layers, ...] from the values of each layer for the tokens that it sees; `missing` elsewhere."""
    first = next(iter(by_layer.values()))
    whole = np.full((*seen.shape, *first.shape[1:]), missing, dtype=first.dtype)
    for layer, values in by_layer.items():
        whole[seen[:, layer], layer] = values
    return whole
