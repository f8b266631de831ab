"""What happened at each of several engines, from their merge_snapshots snapshots."""

from __future__ import annotations

from msgspec import structs

from ...ipc.messages import Snapshot
from ..client.snapshots import split_snapshot
from .readings import Meter, Reading, read_pair


class EngineMeters:
    """A meter an engine; one that has ended keeps what was seen of it."""

    def __init__(self, first: Snapshot) -> None:
        self._meters = {engine: Meter(snapshot) for engine, snapshot in split_snapshot(first).items()}

    def add(self, now: Snapshot) -> None:
        for engine, snapshot in split_snapshot(now).items():
            self._meters[engine].add(snapshot)

    def readings(self, seconds: float) -> list[Reading]:
        """See `Meter.reading`."""
        return [structs.replace(meter.reading(seconds), engine=engine) for engine, meter in self._meters.items()]


def read_pairs(before: Snapshot, now: Snapshot) -> list[Reading]:
    """See `read_pair`: of each engine that was there both times."""
    earlier = split_snapshot(before)
    return [
        structs.replace(read_pair(earlier[engine], snapshot), engine=engine)
        for engine, snapshot in split_snapshot(now).items()
        if engine in earlier
    ]
