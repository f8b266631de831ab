"""Everything that `top` and the page show of an engine, from what a watcher is told each second."""

from __future__ import annotations

from collections import deque

import msgspec

from ...ipc.messages import Activity, CacheHeat, HistoryPoint, OpenRequests, Snapshot
from ..client.snapshots import split_snapshot
from ..waits.recent import RecentSpans, RecentWaits
from .history import MAX_POINTS
from .readings import Reading, read_pair


class EngineView(msgspec.Struct, frozen=True, kw_only=True):
    """One engine now, and its last hour."""

    engine: str
    """Device of an engine in a group; else empty."""
    time_ns: int
    reading: Reading
    down: list[str]
    """Stages that have died and are not back yet."""
    points: list[HistoryPoint]
    """The last hour, a point a second, in the order of time."""
    heat: CacheHeat | None
    requests: OpenRequests | None
    waits: RecentWaits

    @property
    def point(self) -> HistoryPoint | None:
        """Return the last second."""
        return self.points[-1] if self.points else None


class EngineViews:
    """Makes views of successive answers. Pure: answers in, views out."""

    def __init__(self) -> None:
        self._before: dict[str, Snapshot] = {}
        self._points: dict[str, deque[HistoryPoint]] = {}
        self._spans: dict[str, RecentSpans] = {}
        self.since_ns = 0
        """Time after which the next points of the history are to be asked for."""

    def update(
        self, snapshot: Snapshot, history: dict[str, list[HistoryPoint]], activity: dict[str, Activity]
    ) -> list[EngineView]:
        """Return the view of every engine. `history`: the points after `since_ns`."""
        snapshots = split_snapshot(snapshot)
        newest = [points[-1].time_ns for points in history.values() if points]
        self.since_ns = min(newest, default=self.since_ns)
        for engine, points in history.items():
            self._add_points(engine, points)
        views = [self._view(engine, now, activity.get(engine)) for engine, now in snapshots.items()]
        self._before = snapshots
        return views

    def _add_points(self, engine: str, points: list[HistoryPoint]) -> None:
        """Add points; in a group, an engine may give some that it has given already."""
        kept = self._points.setdefault(engine, deque(maxlen=MAX_POINTS))
        last_ns = kept[-1].time_ns if kept else -1
        kept.extend(point for point in points if point.time_ns > last_ns)

    def _view(self, engine: str, now: Snapshot, activity: Activity | None) -> EngineView:
        spans = self._spans.setdefault(engine, RecentSpans())
        spans.add(activity.spans if activity else [])
        reading = read_pair(self._before.get(engine, now), now)
        return EngineView(
            engine=engine,
            time_ns=now.time_ns,
            reading=msgspec.structs.replace(reading, engine=engine),
            down=sorted(now.down),
            points=list(self._points.get(engine, ())),
            heat=activity.heat if activity else None,
            requests=activity.requests if activity else None,
            waits=spans.waits(),
        )


def output_rate(point: HistoryPoint) -> float:
    """Return output tokens a second: as compute measured between two publications, which the history's seconds cut."""
    compute = point.stages.get("compute")
    return point.decode_tokens_per_s if compute is None or compute.rate_per_s is None else compute.rate_per_s
