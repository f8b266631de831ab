"""A view of an engine as plain values, for JSON: the fields of its reading, and what lies beyond."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from ...ipc.messages import CacheHeat, OpenRequests
from .engine_views import EngineView
from .history import describe_point


def view_json(view: EngineView) -> dict[str, Any]:
    """Return the fields of `Reading`, then the last second, the cache, the open requests and the last steps.

    What nothing is known of yet is None.
    """
    return {
        **msgspec.to_builtins(view.reading),
        "time_ns": view.time_ns,
        "down": view.down,
        "last_second": None if view.point is None else describe_point(view.point),
        "cache": None if view.heat is None else cache_json(view.heat),
        "requests": None if view.requests is None else requests_json(view.requests),
        "waits": {**msgspec.to_builtins(view.waits), "overlap": view.waits.overlap},
    }


def cache_json(heat: CacheHeat) -> dict[str, Any]:
    """Return the numbers of experts in memory and on their way, by layer and of all."""
    states = np.frombuffer(heat.residence, np.uint8).reshape(heat.layers, heat.experts)
    held, coming = (states >= 2).sum(axis=1), (states == 1).sum(axis=1)
    return {
        "layers": heat.layers,
        "experts": heat.experts,
        "in_memory": int(held.sum()),
        "on_the_way": int(coming.sum()),
        "in_memory_by_layer": held.tolist(),
    }


def requests_json(requests: OpenRequests) -> dict[str, Any]:
    """Return the requests by names; a request is an array in its message."""
    listed = [{name: getattr(each, name) for name in each.__struct_fields__} for each in requests.requests]
    return {"total": requests.total, "requests": listed}
