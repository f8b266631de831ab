"""Limit of open files of this process; sockets, pipes and shared memory count as files."""

from __future__ import annotations

import errno
import os
import resource

from ...errors import EngineError

ENGINE_FILES = 256
"""An engine's processes open 20 to 40 files each, and one for each shard of the checkpoint and for each client."""
CLIENT_FILES = 48
UNLIMITED = 2**31


def require_open_files(min_files: int, user: str) -> None:
    """Raise EngineError unless this process, and those it starts, may open `min_files` files at once."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed != resource.RLIM_INFINITY and allowed < min_files:
        what = f"only {allowed} files may be open at once, {user} takes up to {min_files}"
        raise EngineError(what, "ulimit -n", "Allow more in this shell, for example: ulimit -n 1024")


def free_files() -> int:
    """Return how many files this process may still open, at most: files above the lowest free descriptor do not count.

    The system always gives out the lowest one. So where this number never falls below a reserve, the reserve stays.
    """
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        lowest = os.eventfd(0, os.EFD_CLOEXEC)
    except OSError as error:
        if error.errno == errno.EMFILE:
            return 0
        raise
    os.close(lowest)
    return UNLIMITED if allowed == resource.RLIM_INFINITY else max(0, allowed - lowest)


def allow_open_files(wanted: int) -> int:
    """Raise this process's limit to `wanted` files, as far as the system lets it; return the limit."""
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed != resource.RLIM_INFINITY and allowed < wanted:
        allowed = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))
    return wanted if allowed == resource.RLIM_INFINITY else allowed
