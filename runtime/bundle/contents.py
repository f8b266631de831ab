"""The contents of a bundle, and the members of its file."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from ...ipc.messages import Activity, HistoryPoint, Snapshot, Span
from ..doctor.checks import Finding
from ..doctor.facts import MachineFacts
from ..engine.timeline import decode_timeline

FORMAT = 1
"""Number of the file's format; a reader refuses a newer one."""
Values = dict[str, str | int | float | bool]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """Origin and time of a bundle."""

    format: int = FORMAT
    version: str
    """Version of ExpertFlow that wrote it."""
    written: str
    """Time of writing, ISO 8601 in UTC."""
    engines: list[str]
    """Devices of a group's engines; [''] for a single one."""
    timeline: str
    """Origin of the timeline: 'file' that the engine writes, or 'watched' while the bundle was made."""


class MachineReport(msgspec.Struct, frozen=True, kw_only=True):
    """The machine as `expertflow doctor` sees it without a model."""

    facts: MachineFacts
    findings: list[Finding]
    system: dict[str, str]
    """Kernel, distribution, processor."""


class Bundle(msgspec.Struct, frozen=True, kw_only=True):
    """Everything in a bundle. Engines are named as in `Watcher.history`."""

    manifest: Manifest
    configurations: dict[str, Values]
    """Engine -> its options, secrets and the home folder masked."""
    versions: dict[str, str]
    """Installed package -> version; all that ExpertFlow asks for."""
    machine: MachineReport
    snapshot: Snapshot
    history: dict[str, list[HistoryPoint]]
    activity: dict[str, Activity]
    """Activity of the engines while the bundle was made; requests have numbers in place of ids and users."""
    metrics: str
    """All metrics in Prometheus' text format."""
    timeline: bytes
    """Spans in Chrome's trace format; it may be cut off at the end."""

    def spans(self) -> Iterator[tuple[str, Span]]:
        """Yield (stage, span) of the timeline, as `expertflow why` reads them. Raises UsageError if it is broken."""
        yield from decode_timeline(self.timeline.splitlines(keepends=True), "the bundle's timeline")


MEMBERS = {
    "manifest": "manifest.json",
    "configurations": "configuration.json",
    "versions": "versions.json",
    "machine": "doctor.json",
    "snapshot": "snapshot.json",
    "history": "history.json",
    "activity": "activity.json",
    "metrics": "metrics.txt",
    "timeline": "timeline.json",
}
"""Field of `Bundle` -> name of the member."""
PLAIN = ("metrics", "timeline")
"""Members that are stored as they are."""
