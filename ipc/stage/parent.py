"""A child ends with its supervisor, whichever way that one goes."""

from __future__ import annotations

import os
import select
from threading import Thread

ORPHANED = 75
"""Exit code of a process whose supervisor has gone."""


def end_with_supervisor(death_fd: int, supervisor_pid: int) -> None:
    """Watch from a thread and leave with `os._exit` when the supervisor has gone, in the middle of a computation too.

    The pipe also ends with a supervisor that merely gave up; the process itself is watched too, since whoever forked it
    keeps a copy of the pipe open.
    """
    _watch_from_thread([death_fd, _open_process(supervisor_pid)])


def end_with_process(pid: int) -> None:
    """The same for a process that was given no pipe."""
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
