"""Requests for snapshots, and the merge of several snapshots into one with stages called ENGINE/STAGE."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, TypeVar

from msgspec import structs

from ...errors import EngineError
from ...ipc.messages import AskSnapshot, KillStage, Snapshot
from ...ipc.messages.control import SNAPSHOT
from ...ipc.transport.addresses import MONITOR, socket_address
from ...ipc.transport.link import Link
from ...ipc.transport.sockets import Context
from .address import require_alive

T = TypeVar("T")

_SEPARATOR = "/"
_FIELDS = ("stages", "pss_bytes", "restarts", "facts", "down")
_POLL_MS = 100


class EngineMonitors:
    """The monitor sockets of one engine, or of all engines of a group; a context manager, owned by one thread.

    `snapshot` waits for answers. A driver that must not block calls `ask`, then `answer` again and again.
    """

    def __init__(self, context: Context, run_dirs: Sequence[str], is_group: bool) -> None:
        self._is_group = is_group
        self._engines = [_EngineMonitor(context, run_dir) for run_dir in run_dirs]

    def __enter__(self) -> EngineMonitors:
        return self

    def __exit__(self, cls: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def snapshot(self, timeout_s: float) -> Snapshot:
        """Return the latest statistics of every stage. Raises EngineError if no engine answers within `timeout_s`."""
        self.ask(timeout_s)
        while (snapshot := self.answer()) is None:
            for engine in self._engines:
                engine.wait()
        return snapshot

    def ask(self, timeout_s: float) -> None:
        """Send the request for a snapshot; `answer` gives up `timeout_s` later."""
        for engine in self._engines:
            engine.ask(timeout_s)

    def answer(self) -> Snapshot | None:
        """Return the snapshot; None: it may still come. Raises EngineError if no engine answers."""
        outcomes = [engine.outcome() for engine in self._engines]
        answers = [outcome for outcome in outcomes if outcome is not None]
        return None if len(answers) < len(outcomes) else combine_snapshots(answers, self._is_group)

    def kill(self, stage: str) -> None:
        """Ask every engine to kill one of its stages (SIGKILL)."""
        for engine in self._engines:
            engine.link.send(KillStage(stage))

    def close(self, linger_ms: int = 0) -> None:
        """Close the sockets; the last messages have `linger_ms` to go out."""
        for engine in self._engines:
            engine.link.close(linger_ms)


class _EngineMonitor:
    """The monitor socket of one engine, and the outcome of the last request."""

    def __init__(self, context: Context, run_dir: str) -> None:
        self._run_dir = run_dir
        self._timeout_s = self._deadline_s = 0.0
        self._outcome: Snapshot | EngineError | None = None
        self.link: Link[Snapshot] = Link.connect(context, socket_address(run_dir, MONITOR), SNAPSHOT)

    def ask(self, timeout_s: float) -> None:
        """Send the request for a snapshot."""
        self.link.receive()  # late answers to an earlier request
        self._outcome, self._timeout_s, self._deadline_s = None, timeout_s, time.monotonic() + timeout_s
        self.link.send(AskSnapshot())

    def outcome(self) -> Snapshot | EngineError | None:
        """Return the snapshot, or the error why none will come; None: it may still come."""
        if self._outcome is None:
            self._outcome = self._check()
        return self._outcome

    def wait(self) -> None:
        """Wait up to 100 ms for an answer that has not come."""
        if self._outcome is None:
            self.link.socket.poll(_POLL_MS)

    def _check(self) -> Snapshot | EngineError | None:
        if answers := self.link.receive():
            return answers[-1]
        try:
            require_alive(self._run_dir)
        except EngineError as end:
            return end
        if time.monotonic() < self._deadline_s:
            return None
        what = f"gave no snapshot within {self._timeout_s:g} s"
        return EngineError(what, self._run_dir, "The machine may be overloaded")


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
    return merge_snapshots({_name(snapshot, f"engine {number}"): snapshot for number, snapshot in found.items()})


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


def _name(snapshot: Snapshot, fallback: str) -> str:
    """Return the name of an engine in a group: its device, as compute publishes it."""
    device = str(snapshot.facts.get("compute", {}).get("device", ""))
    return device.partition(" ")[0] or fallback


def _part(snapshot: Snapshot, engine: str) -> Snapshot:
    parts = {field: _of_engine(getattr(snapshot, field), engine) for field in _FIELDS}
    return structs.replace(snapshot, **parts)


def _of_engine(values: dict[str, T], engine: str) -> dict[str, T]:
    names = {name: name.rpartition(_SEPARATOR) for name in values}
    return {stage: values[name] for name, (owner, _, stage) in names.items() if owner == engine}
