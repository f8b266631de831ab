"""Snapshots of several engines as one, in which stages are called ENGINE/STAGE, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from msgspec import structs

from ...errors import EngineError
from ...ipc.messages import Snapshot

T = TypeVar("T")

_BETWEEN = "/"
_FIELDS = ("stages", "pss_bytes", "restarts", "facts")


def merge_snapshots(snapshots: dict[str, Snapshot]) -> Snapshot:
    """One of all, as old as the oldest."""
    fields: dict[str, Any] = {
        field: {
            f"{engine}{_BETWEEN}{stage}": value
            for engine, snapshot in snapshots.items()
            for stage, value in getattr(snapshot, field).items()
        }
        for field in _FIELDS
    }
    return Snapshot(time_ns=min(snapshot.time_ns for snapshot in snapshots.values()), **fields)


def split_snapshot(snapshot: Snapshot) -> dict[str, Snapshot]:
    """By engine; one that was not joined is that of the engine without a name."""
    engines = sorted({name.rpartition(_BETWEEN)[0] for field in _FIELDS for name in getattr(snapshot, field)})
    return {engine: _part(snapshot, engine) for engine in engines or [""]}


def ask_all(asks: Sequence[Callable[[], Snapshot]], is_group: bool) -> Snapshot:
    """What one engine says as it is, what those of a group say joined. One that has ended is left out; if all have,
    raises EngineError."""
    if not is_group:
        return asks[0]()
    snapshots: dict[str, Snapshot] = {}
    ends: list[EngineError] = []
    for number, ask in enumerate(asks):
        try:
            snapshot = ask()
        except EngineError as end:
            ends.append(end)
        else:
            snapshots[_name(snapshot, f"engine {number}")] = snapshot
    if not snapshots:
        raise ends[0]
    return merge_snapshots(snapshots)


def _name(snapshot: Snapshot, fallback: str) -> str:
    """Of an engine beside others: its device, as compute says."""
    device = str(snapshot.facts.get("compute", {}).get("device", ""))
    return device.partition(" ")[0] or fallback


def _part(snapshot: Snapshot, engine: str) -> Snapshot:
    parts = {field: _of_engine(getattr(snapshot, field), engine) for field in _FIELDS}
    return structs.replace(snapshot, **parts)


def _of_engine(values: dict[str, T], engine: str) -> dict[str, T]:
    names = {name: name.rpartition(_BETWEEN) for name in values}
    return {stage: values[name] for name, (owner, _, stage) in names.items() if owner == engine}
