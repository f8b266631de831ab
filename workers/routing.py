"""The routing of a step as the `Used` message carries it, read safely."""

from __future__ import annotations

import numpy as np

from ..ipc.messages import Used


def read_routing(used: Used, layers: int, experts: int) -> np.ndarray | None:
    """uint16 [tokens, layers, top_k] expert numbers, a view of the message; None if sizes or numbers do not fit."""
    tokens = len(used.token_ids)
    if used.top_k < 1 or len(used.experts) != 2 * tokens * layers * used.top_k:
        return None
    routing = np.frombuffer(used.experts, dtype="<u2").reshape(tokens, layers, used.top_k)
    return routing if tokens == 0 or int(routing.max()) < experts else None


def used_keys(routing: np.ndarray, experts: int) -> np.ndarray:
    """The distinct keys (layer * experts + expert) that a routing uses, ascending: in the order the layers ran."""
    layers = routing.shape[1]
    mask = np.zeros(layers * experts, dtype=bool)
    mask[routing + (np.arange(layers) * experts)[None, :, None]] = True
    return np.flatnonzero(mask)
