"""Watching a running engine from outside, over the monitor socket in its run directory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import zmq

from ...errors import UsageError
from ...ipc.messages import Snapshot
from ...ipc.shared.open_files import CLIENT_FILES, require_open_files
from ...ipc.shared.rundir import engines_of, is_group, living
from ...ipc.transport.sockets import Context
from .address import require_engine, run_dir_of
from .snapshots import EngineMonitors

ANSWER_S = 10.0
POLL_S = 0.1
FAREWELL_MS = 1000
COMMON_BASE = Path("/tmp")


class Watcher:
    """A watcher of the engine at `address` (its run directory), or of all of a group; a context manager."""

    def __init__(self, address: str | os.PathLike[str]) -> None:
        """Raises EngineError if no engine runs there."""
        run_dir = run_dir_of(address)
        require_engine(run_dir)
        require_open_files(CLIENT_FILES, "a watcher")
        self._context: Context = zmq.Context()
        engines = [str(path) for path in engines_of(Path(run_dir))]
        self._monitors = EngineMonitors(self._context, engines, is_group(Path(run_dir)))

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def snapshot(self) -> Snapshot:
        """Return what every stage published last; of a group, stages are called DEVICE/STAGE.

        Raises EngineError when the engine has ended or does not answer.
        """
        return self._monitors.snapshot(ANSWER_S)

    def kill(self, stage: str) -> None:
        """Ask for SIGKILL on a stage (of a group, that of each engine); it is started again like any dead stage."""
        self._monitors.kill(stage)

    def close(self) -> None:
        """Close the sockets; what was asked last still goes out."""
        self._monitors.close(FAREWELL_MS)
        self._context.destroy(linger=None)


def find_engine(address: str) -> str:
    """The given address, or that of the only engine of this user. Raises UsageError if that is not one."""
    if address:
        return address
    found = [str(path) for path in living_engines()]
    if not found:
        raise UsageError("no engine is running", "--address", "Start one with: expertflow serve --model FOLDER")
    if len(found) > 1:
        raise UsageError(f"{len(found)} engines are running", "--address", f"Name one of: {', '.join(found)}")
    return found[0]


def living_engines() -> list[Path]:
    """Return run directories of this user's engines, also of those started without (or with) XDG_RUNTIME_DIR."""
    return sorted({*living(), *living(COMMON_BASE)})


def snapshot_after(take: Callable[[], Snapshot], moment_ns: int, patience_s: float = 3.0) -> Snapshot:
    """The first snapshot in which every stage has published after `moment_ns` (of `time.monotonic_ns`), or the last."""
    deadline_s = time.monotonic() + patience_s
    snapshot = take()
    while time.monotonic() < deadline_s and not _all_published(snapshot, moment_ns):
        time.sleep(POLL_S)
        snapshot = take()
    return snapshot


def _all_published(snapshot: Snapshot, moment_ns: int) -> bool:
    stages = snapshot.stages
    return all(stage in stages and stages[stage].time_ns >= moment_ns for stage in snapshot.restarts)
