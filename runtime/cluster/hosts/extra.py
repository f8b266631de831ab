"""The extra `ray`: imported when a command needs it, and never before."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from ....errors import UsageError
from ...service.listening import is_loopback

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",
}
"""Settings of Ray in this process and in what it starts: no reports to Ray's authors; none of its own on devices; and
engines with the priority of other processes, where Ray would give them the least but four."""


def require_ray() -> None:
    """Raise UsageError unless Ray is installed; give it our settings (`SETTINGS`)."""
    if importlib.util.find_spec("ray") is None:
        remedy = "Install the extra: pip install 'expertflow-runtime[ray]'"
        raise UsageError("needs ray, which is not installed", "cluster", remedy)
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    if _has_token():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _has_token() -> bool:
    """Return whether this user has a token of Ray's.

    `ray start` of Ray 2.60 asks for it then, while its client (`ray.init`) does not always show it: without a mode that
    both are told, a cluster refused the command that had started it.
    """
    named = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    return named or (Path.home() / ".ray" / "auth_token").is_file()


def keep_private(address: str) -> None:
    """Let Ray take the loopback address of a Ray of this machine as it is; call it before ray is imported.

    Ray otherwise looks for such a Ray at the machine's public address, where one that is private does not listen.
    The setting's name speaks of other systems; on Linux it does this alone.
    """
    if is_loopback(address.rpartition(":")[0]):
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
