"""Views of an engine in the form that the page draws."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from ...ipc.messages import CacheHeat, HistoryPoint, OpenRequests
from ..monitor.blocks import resample
from ..monitor.engine_views import EngineView, output_rate
from ..monitor.readings import RESTART, StageLine

MAX_COLUMN = 720
"""Values of a column of the history: the page is hardly wider."""
Column = Callable[[HistoryPoint], float | None]
COLUMNS: dict[str, Column] = {
    "time_ns": lambda point: point.time_ns,
    "decode": output_rate,
    "prefill": lambda point: point.prefill_tokens_per_s,
    "hits": lambda point: point.hit_share,
    "loaded": lambda point: point.loaded_bytes / point.seconds,
    "recall": lambda point: point.recall,
    "precision": lambda point: point.precision,
    "running": lambda point: point.running,
    "waiting": lambda point: point.waiting,
    "memory": lambda point: sum(stage.pss_bytes for stage in point.stages.values()),
}
STAGE_COLUMNS = ("rate_per_s", "busy_share", "stall_share", "queue")


def now_json(view: EngineView, wall_s: float | None = None) -> dict[str, Any]:
    """Return one engine now; `wall_s` is the time of day at `view.time_ns`."""
    return {
        "name": view.engine,
        "time_ns": view.time_ns,
        "wall_ms": round(1000 * (time.time() if wall_s is None else wall_s)),
        "stages": [_stage_json(view, line) for line in view.reading.stages],
        "experts": msgspec.to_builtins(view.reading.experts),
        "decoding": msgspec.to_builtins(view.reading.decoding),
        "memory": msgspec.to_builtins(view.reading.memory),
        "pss_bytes": view.reading.pss_bytes,
        "down": view.down,
        "point": None if view.point is None else history_json([view.point]),
        "heat": None if view.heat is None else _heat_json(view.heat),
        "requests": None if view.requests is None else _requests_json(view.requests),
        "waits": {**msgspec.to_builtins(view.waits), "overlap": view.waits.overlap},
    }


def history_json(points: Sequence[HistoryPoint]) -> dict[str, Any]:
    """Return the history in columns of at most `MAX_COLUMN` means, with those of each stage under `stages`."""
    stages = sorted({stage for point in points for stage in point.stages})
    return {
        **{name: _short([column(point) for point in points]) for name, column in COLUMNS.items()},
        "stages": {stage: _stage_columns(stage, points) for stage in stages},
    }


def _stage_columns(stage: str, points: Sequence[HistoryPoint]) -> dict[str, list[float | None]]:
    found = [point.stages.get(stage) for point in points]
    return {
        name: _short([None if point is None else getattr(point, name) for point in found]) for name in STAGE_COLUMNS
    }


def _short(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else float(f"{value:.12g}") for value in resample(values, MAX_COLUMN)]


def _stage_json(view: EngineView, line: StageLine) -> dict[str, Any]:
    known = view.point.stages.get(line.stage) if view.point is not None else None
    return {
        **msgspec.to_builtins(line),
        "rate_per_s": known.rate_per_s if known is not None else line.rate_per_s,
        "busy_share": known.busy_share if known is not None else line.busy_share,
        "stall_share": known.stall_share if known is not None else None,
        "waiting_on": RESTART if line.stage in view.down else line.waiting_on,
        "down": line.stage in view.down,
    }


def _heat_json(heat: CacheHeat) -> dict[str, Any]:
    """Return the state of the cache; arrays are base64 of uint8 [layers, experts]."""
    return {
        "layers": heat.layers,
        "experts": heat.experts,
        "residence": base64.b64encode(heat.residence).decode(),
        "use": base64.b64encode(heat.use).decode(),
    }


def _requests_json(requests: OpenRequests) -> dict[str, Any]:
    return {"total": requests.total, "rows": msgspec.to_builtins(requests.requests)}
