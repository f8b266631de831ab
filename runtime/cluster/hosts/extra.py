"""The extra `ray`: imported when a command needs it, and never before."""

from __future__ import annotations

import importlib.util
import os

from ....errors import UsageError

QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
"""Settings of Ray in this process and in what it starts: no reports to Ray's authors; none of its own on devices."""


def require_ray() -> None:
    """Raise UsageError unless Ray is installed; tell it to report to nobody."""
    if importlib.util.find_spec("ray") is None:
        remedy = "Install the extra: pip install 'expertflow-runtime[ray]'"
        raise UsageError("needs ray, which is not installed", "cluster", remedy)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
