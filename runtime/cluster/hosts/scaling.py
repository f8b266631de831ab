"""The autoscaling policy of the engines' deployment, which Serve's controller calls."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import msgspec
from ray.serve.config import AutoscalingContext

from ..autoscaling import Autoscaler, LoadSignal, ScalingBounds

QUEUE_AGE, STALLS, BUSY = "queue_age_s", "stall_share", "busy_share"
"""Names of what a replica tells the controller."""


class ScalingPolicy:
    """Returns the wanted number of replicas from what replicas tell."""

    def __init__(self, bounds: dict[str, Any]) -> None:
        self._scaler = Autoscaler(msgspec.convert(bounds, ScalingBounds))

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """Return the number of replicas, and no state for the controller to keep."""
        signal = read_signal(context.aggregated_metrics or {})
        return self._scaler.target(context.target_num_replicas, signal, time.monotonic()), {}


def read_signal(metrics: Mapping[str, Mapping[Any, float]]) -> LoadSignal:
    """Return the load from metrics by name and replica; the oldest queue counts: replicas hear of the same ones."""
    busy = list(metrics.get(BUSY, {}).values())
    return LoadSignal(
        queue_age_s=max(metrics.get(QUEUE_AGE, {}).values(), default=0.0),
        stall_shares=list(metrics.get(STALLS, {}).values()),
        busy_share=sum(busy) / len(busy) if busy else 0.0,
    )
