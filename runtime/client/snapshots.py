"""The merge of several snapshots into one with stages called ENGINE/STAGE, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from msgspec import structs

from ...errors import EngineError
from ...ipc.messages import Snapshot

T = TypeVar("T")

_SEPARATOR = "/"
_FIELDS = ("stages", "pss_bytes", "restarts", "facts", "down", "ended", "failures")


def combine_snapshots(outcomes: Sequence[Snapshot | EngineError], is_group: bool) -> Snapshot:
    """Return the snapshot of a single engine unchanged, those of a group merged without the engines that ended.

    Raises the first EngineError if there is no snapshot at all.
    """
    errors = [outcome for outcome in outcomes if isinstance(outcome, EngineError)]
    if len(errors) == len(outcomes):
        raise errors[0] if errors else EngineError("all engines have ended", "group", "Start them again")
    found = {number: outcome for number, outcome in enumerate(outcomes) if isinstance(outcome, Snapshot)}
    if not is_group:
        return found[0]
    return merge_snapshots({engine_name(device_of(each), number): each for number, each in found.items()})


def merge_snapshots(snapshots: dict[str, Snapshot]) -> Snapshot:
    """Return one snapshot of all engines, as old as the oldest."""
    fields: dict[str, Any] = {
        field: {
            f"{engine}{_SEPARATOR}{stage}": value
            for engine, snapshot in snapshots.items()
            for stage, value in getattr(snapshot, field).items()
        }
        for field in _FIELDS
    }
    return Snapshot(time_ns=min(snapshot.time_ns for snapshot in snapshots.values()), **fields)


def split_snapshot(snapshot: Snapshot) -> dict[str, Snapshot]:
    """Return engine -> its snapshot; a snapshot that was never merged is returned under the key ''."""
    engines = sorted({name.rpartition(_SEPARATOR)[0] for field in _FIELDS for name in getattr(snapshot, field)})
    return {engine: _part(snapshot, engine) for engine in engines or [""]}


def device_of(snapshot: Snapshot) -> str:
    """Return the device of an engine, as compute publishes it; empty before."""
    return str(snapshot.facts.get("compute", {}).get("device", ""))


def engine_name(device: str, number: int) -> str:
    """Return the name of an engine in a group: its device, without the device's own name."""
    return device.partition(" ")[0] or f"engine {number}"


def _part(snapshot: Snapshot, engine: str) -> Snapshot:
    parts = {field: _of_engine(getattr(snapshot, field), engine) for field in _FIELDS}
    return structs.replace(snapshot, **parts)


def _of_engine(values: dict[str, T], engine: str) -> dict[str, T]:
    names = {name: name.rpartition(_SEPARATOR) for name in values}
    return {stage: values[name] for name, (owner, _, stage) in names.items() if owner == engine}
