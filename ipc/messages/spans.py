"""The span: one activity of a stage, as timelines and watchers have it."""

from __future__ import annotations

import msgspec


class Span(msgspec.Struct, frozen=True, array_like=True):
    """One activity of a stage, in nanoseconds of the machine's monotonic clock."""

    name: str
    start_ns: int
    end_ns: int
    lane: int = 0
    detail: dict[str, int | str] = {}
