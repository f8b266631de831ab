"""The last hour of an engine: a bounded ring of one point a second, made from successive snapshots.

A point is kept encoded, about 300 bytes, and goes to watchers as it is: keeping and sending an hour costs next to
nothing (I7).
"""

from __future__ import annotations

from collections import deque
from typing import Any

import msgspec

from ...ipc.messages import HistoryPoint, Snapshot, StagePoint
from .readings import RESTART, StageDelta, kv_bytes, stage_deltas

POINT_EVERY_NS = 1_000_000_000
MAX_POINTS = 3600
MAX_BYTES = 8_000_000
"""Bound of all points together, whatever stages are called; the usual four stages take 1.5 MB."""
MAX_SILENCE_NS = 5_000_000_000
"""A stage that published nothing for so long has no rate. Before, its last one holds: stages publish once a second,
so now and then none of them falls into a second."""

_COMPUTE = {"hits": "hits", "misses": "misses", "stall_ns": "stall_ns", "prefill_tokens": "prefill_tokens"}
_LOADER = {
    "loads": "loads",
    "bytes": "loaded_bytes",
    "evictions": "evictions",
    "prefetches": "prefetches",
    "useful": "useful",
    "wasted": "wasted",
    "predicted": "predicted",
    "needed": "needed",
    "predicted_needed": "predicted_needed",
}
"""Counter of the stage -> field of the point."""


class HistoryRing:
    """A ring of points. Pure: the caller says when a second is over, by adding the snapshot of that moment."""

    def __init__(self, max_points: int = MAX_POINTS, max_bytes: int = MAX_BYTES) -> None:
        self._max_points, self._max_bytes = max_points, max_bytes
        self._points: deque[tuple[int, bytes]] = deque()
        """(time_ns, encoded point) in the order of time."""
        self._bytes = 0
        self._last: Snapshot | None = None
        self._shares: dict[str, StagePoint] = {}
        """Stage -> its newest point."""
        self._encoder = msgspec.msgpack.Encoder()

    @property
    def next_ns(self) -> int:
        """Return when the next snapshot is due, in monotonic ns."""
        return self._last.time_ns + POINT_EVERY_NS if self._last is not None else 0

    @property
    def size_bytes(self) -> int:
        """Return the bytes of all points."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._points)

    def add(self, now: Snapshot) -> None:
        """Add a point for the time since the last snapshot; the first one makes none."""
        before, self._last = self._last, now
        if before is None or now.time_ns <= before.time_ns:
            return
        point = self._point(before, now)
        encoded = self._encoder.encode(point)
        self._points.append((now.time_ns, encoded))
        self._bytes += len(encoded)
        self._shares = point.stages
        while len(self._points) > self._max_points or self._bytes > self._max_bytes:
            self._bytes -= len(self._points.popleft()[1])

    def since(self, since_ns: int = 0) -> list[msgspec.Raw]:
        """Return the encoded points after `since_ns`, in the order of time."""
        newest = [msgspec.Raw(encoded) for time_ns, encoded in reversed(self._points) if time_ns > since_ns]
        newest.reverse()
        return newest

    def _point(self, before: Snapshot, now: Snapshot) -> HistoryPoint:
        deltas = stage_deltas(before, now)
        names = now.pss_bytes.keys() | now.stages.keys()
        return HistoryPoint(
            now.time_ns,
            (now.time_ns - before.time_ns) / 1e9,
            {name: self._stage_point(name, now, deltas.get(name, StageDelta())) for name in sorted(names)},
            **_counts(deltas.get("compute", StageDelta()), _COMPUTE),
            **_counts(deltas.get("loader", StageDelta()), _LOADER),
            decode_tokens=deltas.get("compute", StageDelta()).done,
            running=_level(now, "scheduler", "running"),
            waiting=now.stages["scheduler"].queue if "scheduler" in now.stages else 0,
            kv_bytes=kv_bytes(now),
        )

    def _stage_point(self, name: str, now: Snapshot, delta: StageDelta) -> StagePoint:
        stats = now.stages.get(name)
        rates = self._rates(name, now, delta)
        waiting_on = RESTART if name in now.down else stats.waiting_on if stats else ""
        queue = stats.queue if stats else 0
        return StagePoint(*rates, waiting_on, queue, now.restarts.get(name, 0), now.pss_bytes.get(name, 0))

    def _rates(self, name: str, now: Snapshot, delta: StageDelta) -> tuple[float | None, float | None, float | None]:
        """Return rate, busy share and stall share; the last ones of a stage that published nothing since."""
        if delta.time_ns > 0:
            shares = [min(1.0, max(0.0, part / delta.time_ns)) for part in (delta.busy_ns, delta.stalled_ns)]
            return delta.done * 1e9 / delta.time_ns, shares[0], shares[1]
        stats, last = now.stages.get(name), self._shares.get(name)
        if last is None or stats is None or name in now.down or now.time_ns - stats.time_ns > MAX_SILENCE_NS:
            return None, None, None
        return last.rate_per_s, last.busy_share, last.stall_share


def describe_point(point: HistoryPoint) -> dict[str, Any]:
    """Return a point by names, with the shares and rates that follow from its counts, for JSON and tables."""
    derived = ("hit_share", "precision", "recall", "prefill_tokens_per_s", "decode_tokens_per_s")
    stages = {name: msgspec.structs.asdict(stage) for name, stage in point.stages.items()}
    return {
        **msgspec.structs.asdict(point),
        "stages": stages,
        **{name: getattr(point, name) for name in derived},
    }


def _counts(delta: StageDelta, fields: dict[str, str]) -> dict[str, int]:
    """Return the fields of a point that a stage counts; a counter is never negative, whatever a stage publishes."""
    return {field: max(0, int(delta.counters.get(name, 0))) for name, field in fields.items()}


def _level(now: Snapshot, stage: str, name: str) -> int:
    return int(now.stages[stage].counters.get(name, 0)) if stage in now.stages else 0
