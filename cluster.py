"""The application of Ray Serve: `serve run expertflow.cluster:app model=…`, and `import_path` in a YAML file."""

from __future__ import annotations

from typing import Any


def app(args: dict[str, Any]) -> Any:
    """Return the application of these settings (docs/cluster.md). Raises UsageError without the extra `ray`."""
    from .runtime.cluster.hosts.extra import require_ray

    require_ray()
    from .runtime.cluster.hosts.application import build_application

    return build_application(args)
