"""End a process with its supervisor, or with any parent: `run_with_parent PID MODULE [ARGUMENT…]` (`python -m`).

A stage calls `end_with_process` and `end_with_supervisor` itself (`entry.py`). A process that knows nothing of
supervisors is started with `python -m expertflow.ipc.stage.run_with_parent`, which runs MODULE and ends with PID.
"""

from __future__ import annotations

import os
import runpy
import select
import sys
from threading import Thread

ORPHANED = 75
"""Exit code of a process whose supervisor or parent has ended."""


def main() -> None:
    """Run the module that the arguments name; end the process with the process PID."""
    _, pid, module, *arguments = sys.argv
    end_with_process(int(pid))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def end_with_supervisor(death_fd: int, supervisor_pid: int) -> None:
    """Watch from a thread; leave with `os._exit` when the supervisor has ended, even in the middle of a computation.

    The pipe also ends when a supervisor merely gives up. The process is watched too, because a fork of the supervisor
    keeps a copy of the pipe open.
    """
    _watch_from_thread([death_fd, _open_process(supervisor_pid)])


def end_with_process(pid: int) -> None:
    """Do the same for a process that has no pipe."""
    _watch_from_thread([_open_process(pid)])


def _open_process(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        os._exit(ORPHANED)


def _watch_from_thread(fds: list[int]) -> None:
    Thread(target=_watch, args=(fds,), name="end-with-supervisor", daemon=True).start()


def _watch(fds: list[int]) -> None:
    poller = select.poll()
    for fd in fds:
        poller.register(fd, select.POLLIN)
    while not poller.poll():
        continue
    os._exit(ORPHANED)


if __name__ == "__main__":
    main()
