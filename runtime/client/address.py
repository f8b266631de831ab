"""The address of an engine, and the lock that shows whether it runs."""

from __future__ import annotations

import fcntl
import os

from ...errors import EngineError
from ...ipc.transport.addresses import CLIENTS


def run_dir_of(address: str | os.PathLike[str]) -> str:
    """Return the run directory, also when the address of the client socket in it was given."""
    path = os.fspath(address).removeprefix("ipc://")
    return os.path.dirname(path) if os.path.basename(path) == CLIENTS else path


def require_alive(run_dir: str) -> None:
    """Raise EngineError unless a supervisor holds the lock of its run directory."""
    remedy = "Start the engine again; its output says why it ended"
    try:
        fd = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise EngineError("there is no engine", run_dir or "address", remedy) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    finally:
        os.close(fd)
    raise EngineError("the engine has ended", run_dir, remedy)
