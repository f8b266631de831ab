"""The address of an engine, and the lock that shows whether it runs."""

from __future__ import annotations

import fcntl
import os

from ...errors import EngineError, UsageError
from ...ipc.transport.addresses import CLIENTS


def run_dir_of(address: str | os.PathLike[str]) -> str:
    """Return the run directory of an address, which may be the client socket in that directory.

    Raises UsageError for anything but a path.
    """
    if not isinstance(address, (str, os.PathLike)) or not address:
        raise UsageError(f"must be a path, not {address!r}", "address", "Give Supervisor.address, or what serve prints")
    path = str(os.fspath(address)).removeprefix("ipc://")
    return os.path.dirname(path) if os.path.basename(path) == CLIENTS else path


def require_engine(run_dir: str) -> None:
    """Raise EngineError unless an engine runs at this address. The error says that the address may be mistyped."""
    try:
        require_alive(run_dir)
    except EngineError as error:
        remedy = "Check the address that `expertflow serve` prints; an engine that has ended has none"
        raise EngineError("no engine answers there", run_dir or "address", remedy) from error


def require_alive(run_dir: str) -> None:
    """Raise EngineError unless a supervisor holds the lock of its run directory."""
    remedy = "Start the engine again; its output says why it ended"
    try:
        fd = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise EngineError("the engine has ended", run_dir, remedy) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    finally:
        os.close(fd)
    raise EngineError("the engine has ended", run_dir, remedy)
