"""The routing of a step as the `StepRouting` message carries it, read safely."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ...ipc.messages import StepRouting

UNROUTED = 0xFFFF
"""Instead of an expert's number, where a token does not see a layer: a prompt sees none of a decoder's."""


def read_routing(used: StepRouting, layers: int, experts: int) -> np.ndarray | None:
    """uint16 [tokens, layers, top_k] expert numbers, a view of the message; None if sizes or numbers do not fit."""
    routing = read_partial_routing(used, layers, experts)
    return None if routing is None or (routing == UNROUTED).any() else routing


def read_partial_routing(used: StepRouting, layers: int, experts: int) -> np.ndarray | None:
    """The same, with UNROUTED where a token does not see a layer."""
    tokens = len(used.token_ids)
    if used.top_k < 1 or len(used.experts) != 2 * tokens * layers * used.top_k:
        return None
    routing = np.frombuffer(used.experts, dtype="<u2").reshape(tokens, layers, used.top_k)
    return routing if ((routing < experts) | (routing == UNROUTED)).all() else None


def used_keys(routing: np.ndarray, experts: int) -> np.ndarray:
    """The distinct keys (layer * experts + expert) that a routing uses, ascending: in the order the layers ran."""
    layers = routing.shape[1]
    mask = np.zeros(layers * experts, dtype=bool)
    keys = routing + (np.arange(layers) * experts)[None, :, None]
    mask[keys[routing != UNROUTED]] = True
    return np.flatnonzero(mask)


def seen_layers(tokens: int, sources: int, layers: int, encoder_layers: int) -> np.ndarray:
    """bool [tokens, layers]: the first `sources` tokens see an encoder's layers, the others those behind it.

    Without an encoder all see all.
    """
    if not encoder_layers:
        return np.ones((tokens, layers), dtype=bool)
    is_source = (np.arange(tokens) < sources)[:, None]
    return is_source == (np.arange(layers) < encoder_layers)


def laid_out(of_layers: Mapping[int, np.ndarray], seen: np.ndarray, missing: int) -> np.ndarray:
    """[tokens, layers, ...] from what each layer has of the tokens that it sees; `missing` elsewhere."""
    first = next(iter(of_layers.values()))
    whole = np.full((*seen.shape, *first.shape[1:]), missing, dtype=first.dtype)
    for layer, values in of_layers.items():
        whole[seen[:, layer], layer] = values
    return whole
