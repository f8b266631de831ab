"""Monitoring of a running engine from outside, over the monitor socket in its run directory."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import zmq

from ...errors import EngineError, UsageError
from ...ipc.messages import Activity, DrainEngine, HistoryPoint, OrderEnded, Snapshot
from ...ipc.shared.open_files import CLIENT_FILES, require_open_files
from ...ipc.shared.rundir import living
from ...ipc.transport.sockets import Context
from .address import Address, Route, is_remote, require_engine, routes_to, run_dir_of
from .monitors import EngineMonitors

ANSWER_S = 10.0
POLL_S = 0.1
LINGER_MS = 1000
ORDER_S = 600.0
"""Longest time that an engine takes to carry out an order, as stages import and memory is allocated."""
COMMON_BASE = Path("/tmp")


class Watcher:
    """A watcher of the engine at `address` (its run directory), or of all of a group; a context manager."""

    def __init__(self, address: Address, keys: Address | None = None) -> None:
        """Open the sockets; `keys`: folder of keys, for one over TCP. Raises EngineError if no engine runs there."""
        self._address, self._is_remote = str(address), is_remote(address)
        if not self._is_remote:
            require_engine(run_dir_of(address))
        routes, is_group = routes_to(address, keys)
        require_open_files(CLIENT_FILES, "a watcher")
        self._context: Context = zmq.Context()
        self._routes = routes
        self._monitors = EngineMonitors(self._context, routes, is_group)

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, cls: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def snapshot(self) -> Snapshot:
        """Return the latest statistics of every stage; in a group, stages are called DEVICE/STAGE.

        Raises EngineError if the engine has ended or does not answer.
        """
        return self._monitors.snapshot(ANSWER_S)

    def history(self, since_ns: int = 0) -> dict[str, list[HistoryPoint]]:
        """Return engine -> its points of the last hour after `since_ns` (`HistoryPoint.time_ns`), one a second.

        A single engine is called ''; in a group, engines are called by their devices. Raises as `snapshot`.
        """
        return self._monitors.history(since_ns, ANSWER_S)

    def activity(self) -> dict[str, Activity]:
        """Return engine -> what its stages do now, with the spans that this watcher has not returned yet.

        Stages report while somebody asks: the first answer is empty, and the next ones are a second old at most.
        Engines are called as by `history`. Raises as `snapshot`.
        """
        return self._monitors.activity(ANSWER_S)

    def drain(self, deadline_s: float) -> int:
        """Let the engine accept nothing new, finish what it has, and end; return once it has ended.

        Returns the number of requests that were cut off by the deadline. Raises EngineError if it ends otherwise.
        """
        self._require_owner()
        answers = self._monitors.order(DrainEngine(deadline_s), deadline_s + ORDER_S)
        _raise_first(answers)
        until_s = time.monotonic() + ORDER_S
        while any(map(_is_alive, self._routes)) and time.monotonic() < until_s:
            time.sleep(POLL_S)
        return sum(answer.unfinished for answer in answers)

    def reload(self, changes: dict[str, str | int | float | bool]) -> None:
        """Change these fields of the configuration of the running engine, in a group of one engine after the other.

        Raises UsageError or BudgetError for what is refused, EngineError with the cause if the old setup is back in
        place. Of a group, the error names the engine, and those that had changed are changed back.
        """
        self._require_owner()
        self._monitors.reload(changes, ORDER_S)

    def kill(self, stage: str) -> None:
        """Kill a stage with SIGKILL, in a group that of each engine. It is restarted like any dead stage."""
        self._require_owner()
        self._monitors.kill(stage)

    def close(self) -> None:
        """Close the sockets; the last messages have a second to go out."""
        self._monitors.close(LINGER_MS)
        self._context.destroy(linger=None)

    def _require_owner(self) -> None:
        if self._is_remote:
            remedy = "Give the order on the engine's machine, with its run directory"
            raise UsageError("takes no orders over TCP", self._address, remedy)


def _raise_first(answers: list[OrderEnded]) -> None:
    for answer in answers:
        if answer.error is not None:
            raise answer.error.to_error()


def _is_alive(route: Route) -> bool:
    try:
        route.require_alive()
    except EngineError:
        return False
    return True


def find_engine(address: str) -> str:
    """Return the given address, or that of this user's only engine. Raises UsageError unless there is exactly one."""
    if address:
        return address
    engines = [str(path) for path in living_engines()]
    if not engines:
        raise UsageError("no engine is running", "--address", "Start one with: expertflow serve --model FOLDER")
    if len(engines) > 1:
        raise UsageError(f"{len(engines)} engines are running", "--address", f"Name one of: {', '.join(engines)}")
    return engines[0]


def living_engines() -> list[Path]:
    """Return the run directories of this user's engines, whether they were started with XDG_RUNTIME_DIR or without."""
    return sorted({*living(), *living(COMMON_BASE)})


def snapshot_after(take: Callable[[], Snapshot], moment_ns: int, timeout_s: float = 3.0) -> Snapshot:
    """Return the first snapshot in which every stage has published after `moment_ns` (of `time.monotonic_ns`).

    After `timeout_s` the latest one is returned.
    """
    deadline_s = time.monotonic() + timeout_s
    snapshot = take()
    while time.monotonic() < deadline_s and not _all_published(snapshot, moment_ns):
        time.sleep(POLL_S)
        snapshot = take()
    return snapshot


def _all_published(snapshot: Snapshot, moment_ns: int) -> bool:
    stages = snapshot.stages
    return all(stage in stages and stages[stage].time_ns >= moment_ns for stage in snapshot.restarts)
