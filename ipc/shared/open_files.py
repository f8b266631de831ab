"""How many files this process may open: sockets, pipes and shared memory count as such."""

from __future__ import annotations

import resource

from ...errors import EngineError

ENGINE_FILES = 256
"""An engine's processes have 20 to 40 each, besides one for each shard of the checkpoint and for each client."""
CLIENT_FILES = 48


def require_open_files(least: int, who: str) -> None:
    """Raise EngineError unless this process, and those it starts, may open `least` files at once."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed != resource.RLIM_INFINITY and allowed < least:
        what = f"only {allowed} files may be open at once, {who} takes up to {least}"
        raise EngineError(what, "ulimit -n", "Allow more in this shell, for example: ulimit -n 1024")
